"""ImageNet, decoded as it is read."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from experiments.data.augment import normalised
from experiments.data.batches import Batch, Make, Reading
from experiments.data.records import Records, Streamed, picture

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SOURCE = "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of https://image-net.org"
TRIES = 10

Box = tuple[float, float, float, float]  # left, upper, right, lower


@dataclass(frozen=True)
class ImageNet(Streamed):
    """Colour images of 1,000 classes, 1,281,167 and 50,000, from TensorFlow Datasets.

    In training a random part of the image, stretched to a square, and flipped every other time; in evaluation the
    middle. "valid" and "test" are both the official validation images, for the test labels are not public.

    Raises:
      FileNotFoundError: the data are not there.
      OSError: a broken record.
      ValueError: a split of another name, a batch that the hosts cannot share.
    """

    folder: Path | None = None  # of TensorFlow Datasets; None: TFDS_DATA_DIR, or ~/tensorflow_datasets
    size: int = 224  # pixels a side
    resized: int = 256  # shorter side in evaluation, before the middle is cut out
    augment: bool = True  # the training images; if not, they are treated as in evaluation
    reading: Reading = Reading(threads=0)

    DRAWS = 2 * TRIES + 3  # area and ratio of each try, place, flip
    classes = 1000
    channels = 3

    def records(self, split: str) -> Records:
        return Records("imagenet2012", split, self.folder, ["image"], SOURCE)

    def make(self, records: Records) -> Make:
        """See `batches.Make`."""

        def batch(examples: np.ndarray, draws: np.ndarray | None) -> Batch:
            images = np.empty((len(examples), self.size, self.size, 3), np.float32)
            labels = np.empty(len(examples), np.int32)
            for row, example in enumerate(examples.tolist()):
                draw = draws[row] if self.augment and draws is not None else None
                images[row], labels[row] = records.read(example, lambda one, u=draw: (self.image(one, u), one["label"]))
            return {"images": images, "labels": labels}

        return batch

    def image(self, record: dict, draws: np.ndarray | None) -> np.ndarray:
        """Normalised, float32 [size, size, 3]."""
        image = picture(record["image"])
        if draws is None:
            box = middle(image.size, self.size, self.resized)
        else:
            box = random_part(image.size, draws)
        image = cut(image, box, self.size)
        if draws is not None and draws[-1] < 0.5:
            image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        return normalised(np.asarray(image), MEAN, STD)


def cut(image: PIL.Image.Image, box: Box, size: int) -> PIL.Image.Image:
    """A part of the picture as a square of three channels, smoothed where it shrinks."""
    return image.convert("RGB").resize((size, size), PIL.Image.Resampling.BILINEAR, box)


def middle(shape: tuple[int, int], size: int, resized: int) -> Box:
    """What is left if the shorter side becomes `resized` and the middle `size` pixels are cut out."""
    width, height = shape
    side = min(shape) * size / resized
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_part(shape: tuple[int, int], draws: np.ndarray) -> Box:
    """8 to 100 % of the area, sides 3:4 to 4:3, anywhere; after ten misses the middle. `draws` [ImageNet.DRAWS].

    References:
      Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
    """
    width, height = shape
    for area, ratio in draws[: 2 * TRIES].reshape(TRIES, 2).tolist():
        target = (0.08 + 0.92 * area) * width * height
        aspect = math.exp(math.log(4 / 3) * (2 * ratio - 1))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        draws = np.full_like(draws, 0.5)
    left, upper = int(draws[-3] * (width - w + 1)), int(draws[-2] * (height - h + 1))
    return left, upper, left + w, upper + h
