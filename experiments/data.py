"""The data sets that experiments train on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent / "data"


class Images(NamedTuple):
    """Grey images and their classes.

    Attributes:
      images: uint8, [count, height, width].
      labels: int32, [count].
    """

    images: np.ndarray
    labels: np.ndarray

    def first(self, count: int) -> "Images":
        return Images(self.images[:count], self.labels[:count])


def fashion_mnist() -> tuple[Images, Images]:
    """10,000 images to train on and 2,000 to test on; see data/README.md."""
    with np.load(HERE / "fashion_mnist_12k.npz") as file:
        train, test = (
            Images(file[f"{split}_images"], file[f"{split}_labels"].astype(np.int32)) for split in ("train", "test")
        )
    return train, test
