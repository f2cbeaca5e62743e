"""Data sets of small images, held in memory."""

import gzip
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import grain
import numpy as np

from experiments.data.augment import Augmentation
from experiments.data.batches import Batch, Host, check_split, in_order, shuffled

EMBEDDED = Path(__file__).parent / "embedded"


class Images(NamedTuple):
    """Images and their classes.

    Attributes:
      images: uint8, [count, height, width] if grey, else [count, height, width, channels].
      labels: int32, [count].
    """

    images: np.ndarray
    labels: np.ndarray

    def first(self, count: int) -> "Images":
        return Images(self.images[:count], self.labels[:count])

    def but_first(self, count: int) -> "Images":
        return Images(self.images[count:], self.labels[count:])


class InMemory(ABC):
    """What data sets of small images share that are held in memory."""

    augment: bool
    held_out: int

    @abstractmethod
    def images(self, split: str) -> Images:
        """Those of "train" or "test"."""

    @abstractmethod
    def batch(self, images: Images, examples: np.ndarray, draws: np.ndarray | None) -> Batch:
        """See `batches.Make`."""

    def train(self, batch: int, seed: int, host: Host | None = None) -> grain.IterDataset:
        images, _ = self.kept()
        make = lambda examples, draws: self.batch(images, examples, draws if self.augment else None)
        return shuffled(make, len(images.labels), batch, seed, Augmentation.DRAWS, host=host)

    def evaluate(self, split: str, batch: int, host: Host | None = None) -> grain.IterDataset:
        check_split(split)
        images = self.kept()[1] if split == "valid" and self.held_out else self.images("test")
        make = lambda examples, draws: self.batch(images, examples, draws)
        return in_order(make, len(images.labels), batch, host=host)

    def steps_per_epoch(self, batch: int) -> int:
        return -(-len(self.kept()[0].labels) // batch)

    def kept(self) -> tuple[Images, Images]:
        """The training images, and those of them that are held out."""
        images = self.images("train")
        count = len(images.labels)
        if not 0 <= self.held_out < count:
            raise ValueError(
                f"held_out must be from 0 to {count - 1}, for there are {count} training images; got {self.held_out}"
            )
        return images.first(count - self.held_out), images.but_first(count - self.held_out)


@lru_cache(maxsize=1)
def fashion_mnist() -> tuple[Images, Images]:
    """10,000 images to train on and 2,000 to test on; see embedded/README.md."""
    with np.load(EMBEDDED / "fashion_mnist_12k.npz") as file:
        train, test = (
            Images(file[f"{split}_images"], file[f"{split}_labels"].astype(np.int32)) for split in ("train", "test")
        )
    return train, test


@dataclass(frozen=True)
class FashionMNIST(InMemory):
    """Grey images of 28 x 28 of ten kinds of clothes: 12,000 ship with the project.

    Raises:
      FileNotFoundError: part="full" without its files in `folder`.
      OSError: a broken file.
      ValueError: a split of another name, a batch that the hosts cannot share.
    """

    part: Literal["12k", "full"] = "12k"  # 10,000 to train on and 2,000 to test on, or 60,000 and 10,000
    folder: Path = Path("/usr/share/datasets/fashion-mnist")  # of the full set's four files
    augment: bool = True  # the training images, as the next three say
    shift: int = 2  # pixels at most, each way
    flip: bool = True  # left to right, every other time
    erase: float = 0.0  # share of the images that lose a rectangle
    pad: int = 0  # black pixels on each side: 2 for 32 x 32
    held_out: int = 0  # last training images to validate on instead; 0: "valid" is "test"

    classes = 10
    channels = 1

    @property
    def size(self) -> int:
        """Pixels a side."""
        return 28 + 2 * self.pad

    def images(self, split: str) -> Images:
        train, test = fashion_mnist() if self.part == "12k" else idx(self.folder)
        return train if split == "train" else test

    def batch(self, images: Images, examples: np.ndarray, draws: np.ndarray | None) -> Batch:
        augment = Augmentation(self.shift, self.flip, self.erase, self.pad)
        pixels = augment(images.images[examples][..., None], draws, mean=0.2860, std=0.3530)
        return {"images": pixels, "labels": images.labels[examples]}


@lru_cache(maxsize=1)
def idx(folder: Path) -> tuple[Images, Images]:
    """The full Fashion-MNIST from its four files, as published."""
    names = [
        f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz")
    ]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"the full Fashion-MNIST is not in {folder}: {', '.join(missing)} missing. Install Debian's package "
            "dataset-fashion-mnist, or get the four files from https://github.com/zalandoresearch/fashion-mnist "
            "and name their folder with the option folder"
        )
    arrays = [read_idx(folder / name) for name in names]
    train, test = Images(arrays[0], arrays[1].astype(np.int32)), Images(arrays[2], arrays[3].astype(np.int32))
    return train, test


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format: two zeros, 8 for bytes, the number of axes, their lengths, the values."""
    try:
        with gzip.open(path) as file:
            content = file.read()
        axes = content[3]
        shape = np.frombuffer(content, ">i4", axes, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise OSError(f"{path} is broken ({error}): get it anew") from error
