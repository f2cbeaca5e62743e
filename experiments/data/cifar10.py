"""CIFAR-10, held in memory."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from experiments.data.augment import Augmentation
from experiments.data.batches import Batch
from experiments.data.images import Images, InMemory
from experiments.data.records import Records, pixels

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Cifar10(InMemory):
    """Colour images of 32 x 32 of ten kinds of animals and vehicles, 50,000 and 10,000, from TensorFlow Datasets.

    All are decoded at the start (150 MB). Augmented as in the reference: shifted by up to 4 pixels each way, which
    is a crop of 32 from 40, and flipped.

    Raises:
      FileNotFoundError: the data are not there.
      OSError: a broken record.
      ValueError: a split of another name, a batch that the hosts cannot share.
    """

    folder: Path | None = None  # of TensorFlow Datasets; None: TFDS_DATA_DIR, or ~/tensorflow_datasets
    augment: bool = True  # the training images
    held_out: int = 0  # last training images to validate on instead; 0: "valid" is "test", as in the reference

    classes = 10
    channels = 3
    size = 32

    def records(self, split: str) -> Records:
        return Records("cifar10", split, self.folder, ["image"])

    def images(self, split: str) -> Images:
        return decoded(self.folder, split, len(self.records(split)))

    def batch(self, images: Images, examples: np.ndarray, draws: np.ndarray | None) -> Batch:
        augment = Augmentation(shift=4, flip=True)
        return {"images": augment(images.images[examples], draws, MEAN, STD), "labels": images.labels[examples]}


@lru_cache(maxsize=4)
def decoded(folder: Path | None, split: str, count: int) -> Images:
    """All images of a split, once a process."""
    records = Cifar10(folder).records(split)
    images, labels = np.empty((count, 32, 32, 3), np.uint8), np.empty(count, np.int32)
    for number in range(count):
        images[number], labels[number] = records.read(number, lambda one: (pixels(one["image"]), one["label"]))
    return Images(images, labels)
