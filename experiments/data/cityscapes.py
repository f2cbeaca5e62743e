"""Cityscapes: streets seen from a car, each pixel with its class."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from experiments.data.augment import normalised
from experiments.data.batches import Batch, Make, Reading
from experiments.data.imagenet import MEAN, STD
from experiments.data.records import Records, Streamed, picture

SOURCE = "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of https://www.cityscapes-dataset.com"
IGNORE = 255
SCALES = np.arange(5, 22) / 10

# The classes that count, by their number in the data, with their weight in the loss: that of HRNet's code,
# which the reference has taken over.
CLASSES = {
    7: ("road", 0.8373),
    8: ("sidewalk", 0.918),
    11: ("building", 0.866),
    12: ("wall", 1.0345),
    13: ("fence", 1.0166),
    17: ("pole", 0.9969),
    19: ("traffic light", 0.9754),
    20: ("traffic sign", 1.0489),
    21: ("vegetation", 0.8786),
    22: ("terrain", 1.0023),
    23: ("sky", 0.9539),
    24: ("person", 0.9843),
    25: ("rider", 1.1116),
    26: ("car", 0.9037),
    27: ("truck", 1.0865),
    28: ("bus", 1.0955),
    31: ("train", 1.0865),
    32: ("motorcycle", 1.1529),
    33: ("bicycle", 1.0507),
}
TRAIN_IDS = np.full(256, IGNORE, np.uint8)  # from the numbers in the data; all others are ignored
TRAIN_IDS[list(CLASSES)] = np.arange(len(CLASSES))
CLASS_WEIGHTS = np.array([weight for _, weight in CLASSES.values()], np.float32)


@dataclass(frozen=True)
class Cityscapes(Streamed):
    """Images of 2048 x 1024 with 19 classes of pixels, 2,975 and 500, from TensorFlow Datasets.

    In training scaled by 0.5 to 2.1, cropped and flipped every other time; in evaluation whole. What a crop has
    beyond the image is black and ignored. "valid" and "test" are both the official validation images, for the test
    labels are not public. Labels are int32 [rows, height, width], 255 where a pixel does not count.

    Raises:
      FileNotFoundError: the data are not there.
      OSError: a broken record.
      ValueError: a split of another name, a batch that the hosts cannot share.
    """

    folder: Path | None = None  # of TensorFlow Datasets; None: TFDS_DATA_DIR, or ~/tensorflow_datasets
    crop: tuple[int, int] = (1024, 512)  # width and height in training
    augment: bool = True  # scale and flip the training images; if not, only crop them
    reading: Reading = Reading(threads=0)

    DRAWS = 4  # scale, place, flip
    classes = len(CLASSES)
    channels = 3

    def records(self, split: str) -> Records:
        images = ["image_left", "segmentation_label"]
        return Records("cityscapes/semantic_segmentation", split, self.folder, images, SOURCE)

    def make(self, records: Records) -> Make:
        """See `batches.Make`."""

        def batch(examples: np.ndarray, draws: np.ndarray | None) -> Batch:
            rows = []
            for row, example in enumerate(examples.tolist()):
                draw = None if draws is None else draws[row]
                rows.append(records.read(example, lambda one, u=draw: self.example(one, u)))
            images, labels = zip(*rows, strict=True)
            return {"images": np.stack(images), "labels": np.stack(labels)}

        return batch

    def example(self, record: dict, draws: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """A normalised image, float32 [height, width, 3], and its labels, int32 [height, width]."""
        image, label = picture(record["image_left"]).convert("RGB"), picture(grey(record["segmentation_label"]))
        if draws is not None:
            scale = SCALES[int(draws[0] * len(SCALES))] if self.augment else 1.0
            box = random_crop(image.size, self.crop, scale, draws[1:3])
            image = cropped(image, box, self.crop, scale, PIL.Image.Resampling.BILINEAR, 0)
            label = cropped(label, box, self.crop, scale, PIL.Image.Resampling.NEAREST, IGNORE)
            if self.augment and draws[3] < 0.5:
                image, label = (one.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) for one in (image, label))
        ids = TRAIN_IDS[np.asarray(label)].astype(np.int32)
        return normalised(np.asarray(image), MEAN, STD), ids


def grey(label: bytes | np.ndarray) -> bytes | np.ndarray:
    """Without the axis of its one channel."""
    return label[..., 0] if isinstance(label, np.ndarray) else label


def random_crop(shape: tuple[int, int], crop: tuple[int, int], scale: float, draws: np.ndarray) -> tuple[int, ...]:
    """Left, upper, right, lower of a crop in the scaled image, of which it may be the whole; `draws` [2]."""
    corners, far = [], []
    for side, most, draw in zip(shape, crop, draws.tolist(), strict=True):
        full = int(side * scale + 0.5)
        kept = min(full, most)
        corners.append(int(draw * (full - kept + 1)))
        far.append(corners[-1] + kept)
    return *corners, *far


def cropped(
    image: PIL.Image.Image,
    box: tuple[int, ...],
    crop: tuple[int, int],
    scale: float,
    resampling: PIL.Image.Resampling,
    fill: int,
) -> PIL.Image.Image:
    """The part `box` of the scaled image, which alone is scaled; filled up to the crop at the right and below."""
    left, upper, right, lower = box
    source = [edge / scale for edge in box]
    source[2:] = np.minimum(source[2:], image.size).tolist()  # rounding may reach out by a part of a pixel
    part = image.resize((right - left, lower - upper), resampling, tuple(source))
    if part.size == crop:
        return part
    whole = PIL.Image.new(image.mode, crop, fill if image.mode == "L" else (fill,) * 3)
    whole.paste(part)
    return whole
