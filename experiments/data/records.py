"""Examples of TensorFlow Datasets, read from array_record files without TensorFlow."""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import PIL.Image

from experiments.data.batches import Host, Make, Reading, check_split, in_order, shuffled

FOUND_NOTHING = (AssertionError, FileNotFoundError, NotADirectoryError, NotImplementedError, ValueError)


class Records:
    """The examples of a split, `records[i]`, as dictionaries; images stay as they were compressed.

    Args:
      name: the data set's, with its configuration.
      split: "train" and the like.
      folder: where TensorFlow Datasets keeps its data; None: where `TFDS_DATA_DIR` says, or ~/tensorflow_datasets.
      images: the names of the images in an example.
      source: what to download by hand, and from where, if it is not downloaded by itself.

    Raises:
      FileNotFoundError: it is not there; says what to do.
    """

    def __init__(self, name: str, split: str, folder: Path | None, images: Sequence[str], source: str | None = None):
        import tensorflow_datasets as tfds  # a second, and not needed for what ships with the project

        self.name, self.split, self.folder = name, split, folder
        try:
            self.source = tfds.data_source(name, split=split, data_dir=folder, download=False)
        except FOUND_NOTHING as error:
            raise FileNotFoundError(advice(name, split, folder, source)) from error
        # Set here and not above, so that the mock of TensorFlow Datasets, which cannot encode, makes arrays.
        self.source.decoders = {image: tfds.decode.SkipDecoding() for image in images}

    def __len__(self) -> int:
        return len(self.source)

    def read(self, example: int, decode: Callable[[dict[str, Any]], Any]) -> Any:
        """What `decode` makes of an example.

        Raises:
          OSError: a broken record; says which one.
        """
        try:
            return decode(self.source[example])
        except Exception as error:  # of a file, its compression, a protocol buffer or an image
            raise OSError(
                f"record {example} of {self.name}, split {self.split!r}, {place(self.folder)}, is broken "
                f"({type(error).__name__}: {error}): prepare the data set anew"
            ) from error


class Streamed(ABC):
    """What data sets share that decode images as they read them."""

    DRAWS: int  # random numbers an example
    reading: Reading

    @abstractmethod
    def records(self, split: str) -> Records:
        """Those of "train" or "validation"."""

    @abstractmethod
    def make(self, records: Records) -> Make:
        """What makes batches of them."""

    def train(self, batch: int, seed: int, host: Host | None = None) -> grain.IterDataset:
        records = self.records("train")
        return shuffled(self.make(records), len(records), batch, seed, self.DRAWS, self.reading, host)

    def evaluate(self, split: str, batch: int, host: Host | None = None) -> grain.IterDataset:
        check_split(split)
        records = self.records("validation")
        return in_order(self.make(records), len(records), batch, self.reading, host)

    def steps_per_epoch(self, batch: int) -> int:
        return -(-len(self.records("train")) // batch)


def advice(name: str, split: str, folder: Path | None, source: str | None) -> str:
    """How to get a data set."""
    where = f" --data_dir={folder}" if folder else ""
    manual = f", after you put {source} into a folder that --manual_dir=... names" if source else ""
    return (
        f"{name}, split {split!r}, is not {place(folder)} in a form that can be read. Prepare it once with "
        f"`tfds build {name} --file_format=array_record{where}`{manual}. Preparing needs TensorFlow, on any machine; "
        "reading does not. If it is elsewhere, name its folder with the option folder or with TFDS_DATA_DIR"
    )


def place(folder: Path | None) -> str:
    return f"in {folder}" if folder else "in the folder of TensorFlow Datasets"


def picture(image: bytes | np.ndarray) -> PIL.Image.Image:
    """From the bytes of a file, not decoded yet, or from an array."""
    if isinstance(image, bytes):
        return PIL.Image.open(io.BytesIO(image))
    return PIL.Image.fromarray(image)


def pixels(image: bytes | np.ndarray) -> np.ndarray:
    """An array uint8 [height, width, channels] from a file's bytes or from an array."""
    return image if isinstance(image, np.ndarray) else np.asarray(picture(image).convert("RGB"))
