"""CIFAR-10, ImageNet and Cityscapes: on mock data, on small files in their form, without any, and with broken ones."""

import dataclasses
import re
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from benchmarks import prepared
from experiments.data import Cifar10, Cityscapes, ImageNet, Reading
from experiments.data.cityscapes import CLASS_WEIGHTS, TRAIN_IDS, random_crop
from experiments.data.imagenet import middle, random_part
from experiments.data.records import Records
from tests.experiments.data.reading import ALONE, PAIR, assert_equal, assert_restores, first, together

# On one worker: the fixture is made once.
pytestmark = pytest.mark.xdist_group("records")

SMALL = {"cifar10": Cifar10(), "imagenet": ImageNet(size=24, resized=28), "cityscapes": Cityscapes(crop=(64, 32))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each data set, with a few examples in array_record files."""
    rng = np.random.default_rng(0)
    folders = {name: tmp_path_factory.mktemp(name) for name in SMALL}
    prepared.cifar10(folders["cifar10"], {"train": 10, "test": 6})
    pictures = [rng.integers(0, 256, (30 + 3 * n, 50 - 2 * n, 3), np.uint8) for n in range(6)]
    modes = [None, "L", "CMYK", None, None, None]
    files = [prepared.compressed(*one) for one in zip(pictures, ["JPEG"] * 6, modes, strict=True)]
    prepared.imagenet(folders["imagenet"], files)
    scene = np.kron(rng.integers(0, 34, (16, 32)), np.ones((64, 64), int)).astype(np.uint8)
    pairs = [(np.repeat(7 * label[..., None], 3, -1), label) for label in (scene, scene[::-1], scene[:, ::-1])]
    prepared.cityscapes(folders["cityscapes"], pairs)
    return folders


@pytest.fixture(params=SMALL)
def data(request, folders):
    return dataclasses.replace(SMALL[request.param], folder=folders[request.param])


@pytest.mark.parametrize("data", SMALL.values(), ids=SMALL)
@pytest.mark.filterwarnings("default")  # the mock's own
def test_mock_data(data):
    with tfds.testing.mock_data(num_examples=3):
        batch = first(data.train(2, 0, ALONE), 1)[0]
        whole = (1024, 2048) if data == SMALL["cityscapes"] else batch["images"].shape[1:3]
        test = first(data.evaluate("test", 2, ALONE))
        assert data.steps_per_epoch(2) == 2
    assert batch["images"].dtype == np.float32
    assert batch["labels"].dtype == np.int32
    assert np.isfinite(batch["images"]).all()
    assert [one["images"].shape for one in test] == [(2, *whole, 3)] * 2
    np.testing.assert_array_equal(np.concatenate([one["weights"] for one in test]), [1, 1, 1, 0])


def test_training_is_a_function_of_seed_and_step(data):
    assert_restores(data.train(2, 3, ALONE), 1, 2)
    assert_equal(together([first(data.train(2, 3, host), 2) for host in PAIR]), first(data.train(2, 3, ALONE), 2))


def test_worker_processes_read_the_same(folders):
    data = dataclasses.replace(SMALL["imagenet"], folder=folders["imagenet"])
    assert_equal(
        first(dataclasses.replace(data, reading=Reading(workers=2)).train(3, 0, ALONE), 3),
        first(data.train(3, 0, ALONE), 3),
    )


def test_tensorflow_is_not_needed(data):
    first(data.train(2, 0, ALONE), 1)
    assert "tensorflow" not in sys.modules


def test_cifar_has_the_stored_images(folders, tmp_path):
    data = Cifar10(folders["cifar10"], augment=False)
    _, images, labels = prepared.cifar10(tmp_path, {"train": 10, "test": 6})  # the same
    for batches, split in ((data.train(10, 0, ALONE), "train"), (data.evaluate("test", 6, ALONE), "test")):
        batch = first(batches, 1)[0]
        pixels = batch["images"] * np.float32((0.2023, 0.1994, 0.2010)) + np.float32((0.4914, 0.4822, 0.4465))
        pixels = np.rint(255 * pixels).astype(np.uint8)
        assert pairs(pixels, batch["labels"]) == pairs(images[split], labels[split])


def pairs(images, labels):
    """Without their order, which preparing changes."""
    return {(image.tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)}


def test_cifar_is_cropped_and_flipped(folders):
    plain, augmented = (
        {
            tuple(batch["labels"]): batch["images"]
            for batch in first(Cifar10(folders["cifar10"], augment).train(10, 0, ALONE), 1)
        }
        for augment in (False, True)
    )
    (labels, images), (same, changed) = *plain.items(), *augmented.items()
    assert labels == same  # augmentation leaves the order alone
    for image, other in zip(images, changed, strict=True):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (32, 32, 3))[..., 0, :, :, :]
        known = ~np.isnan(windows)
        for turned in (other, other[:, ::-1]):
            if (((windows == turned) | ~known).all((-1, -2, -3))).any():
                break
        else:
            raise AssertionError("no crop of the padded image")


def test_cifar_holds_out(folders):
    data = Cifar10(folders["cifar10"], augment=False, held_out=4)
    assert data.steps_per_epoch(4) == 2
    valid = first(data.evaluate("valid", 4, ALONE))
    assert len(valid) == 1
    train = first(data.train(6, 0, ALONE), 1)[0]
    together = {image.tobytes() for image in [*valid[0]["images"], *train["images"]]}
    assert len(together) == 10


def test_imagenet_reads_grey_and_four_colour_pictures(folders):
    data = ImageNet(folders["imagenet"], size=24, resized=28)
    batch = first(data.evaluate("valid", 6, ALONE))[0]
    assert sorted(batch["labels"]) == list(range(6))
    grey = batch["images"][list(batch["labels"]).index(1)]
    std, mean = np.array((0.229, 0.224, 0.225)), np.array((0.485, 0.456, 0.406))
    np.testing.assert_allclose(np.ptp(grey * std + mean, axis=-1), 0, atol=1e-6)


def test_evaluation_cuts_out_the_middle():
    assert middle((500, 375), 224, 256) == (500 / 2 - 375 * 7 / 16, 375 / 16, 500 / 2 + 375 * 7 / 16, 375 * 15 / 16)
    picture = PIL.Image.radial_gradient("L").resize((300, 400)).convert("RGB")
    ours = picture.resize((224, 224), PIL.Image.Resampling.BILINEAR, middle(picture.size, 224, 256))
    whole = picture.resize((256, 341), PIL.Image.Resampling.BILINEAR).crop((16, 58, 240, 282))
    difference = np.abs(np.asarray(ours, float) - np.asarray(whole, float))
    assert difference.max() <= 3  # half a pixel apart, for 341 is odd


def test_random_parts_are_inside_and_as_large_and_wide_as_told():
    draws = np.random.default_rng(0).random((2000, 23))
    boxes = np.array([random_part((400, 300), one) for one in draws])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (400, 300)).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    areas, ratios = sides.prod(1) / (400 * 300), sides[:, 0] / sides[:, 1]
    assert 0.075 < areas.min() < 0.1
    assert areas.max() > 0.9
    assert 0.74 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.35
    assert abs(np.log(ratios).mean()) < 0.05


def test_a_long_picture_gives_its_middle():
    draws = np.full(23, 0.99)
    assert random_part((1000, 10), draws) == (494, 0, 507, 10)
    assert random_part((10, 1000), draws) == (0, 494, 10, 507)


def test_half_of_the_imagenet_pictures_are_flipped():
    wedge = np.repeat(np.arange(0, 240, 10, np.uint8)[None, :, None], 24, 0).repeat(3, 2)
    draws = np.random.default_rng(0).random((400, 23))
    images = [ImageNet(size=24).image({"image": wedge}, draw) for draw in draws]
    flipped = np.mean([image[0, 0, 0] > image[0, -1, 0] for image in images])
    assert abs(flipped - 0.5) < 0.1


def test_cityscapes_labels_follow_the_image(folders):
    """Image and label are made so that one tells the other."""
    data = Cityscapes(folders["cityscapes"], crop=(256, 128))
    for batch in first(data.train(3, 0, ALONE), 3):
        assert batch["images"].shape == (3, 128, 256, 3)
        assert batch["labels"].shape == (3, 128, 256)
        grey = 255 * (batch["images"][..., 0] * 0.229 + 0.485)
        numbers = np.rint(grey / 7).astype(int)
        inside = np.abs(grey / 7 - numbers) < 0.01  # not smoothed between two
        agree = TRAIN_IDS[np.clip(numbers, 0, 33)] == batch["labels"]
        assert inside.mean() > 0.8
        assert agree[inside].mean() > 0.97
        assert set(np.unique(batch["labels"])) <= {*range(19), 255}


def test_small_scales_fill_up():
    data = Cityscapes(crop=(1536, 768))
    example = {
        "image_left": np.full((1024, 2048, 3), 90, np.uint8),
        "segmentation_label": np.full((1024, 2048, 1), 7, np.uint8),
    }
    image, label = data.example(example, np.array([0.0, 0.3, 0.3, 0.9]))  # by 0.5, not flipped
    assert image.shape == (768, 1536, 3)
    assert (label[:512, :1024] == 0).all()
    assert (label == 255).sum() == 768 * 1536 - 512 * 1024
    black = -0.485 / 0.229
    np.testing.assert_allclose(image[512:, :, 0], black, rtol=1e-5)
    _, turned = data.example(example, np.array([0.0, 0.3, 0.3, 0.1]))
    np.testing.assert_array_equal(turned, label[:, ::-1])


def test_scales_are_even_from_half_to_twice_and_a_little():
    ramp = np.repeat(np.repeat(np.arange(256, dtype=np.uint8), 4)[:, None, None], 2048, 1)
    example = {"image_left": ramp.repeat(3, -1), "segmentation_label": ramp}
    data, scales, draws = Cityscapes(crop=(8, 400)), [], np.random.default_rng(0).random((170, Cityscapes.DRAWS))
    for draw in draws:
        image, _ = data.example(example, draw)
        rise = (image[-10, 0, 0] - image[10, 0, 0]) * 0.229 * 255
        scales.append(380 / 4 / rise)
    np.testing.assert_allclose(scales, 0.5 + np.floor(17 * draws[:, 0]) / 10, rtol=0.02)
    assert len(set(np.floor(17 * draws[:, 0]))) == 17


def test_crops_are_anywhere_inside():
    draws = np.random.default_rng(0).random((500, 2))
    boxes = np.array([random_crop((200, 100), (40, 70), 1.5, draw) for draw in draws])
    assert (boxes[:, 2:] - boxes[:, :2] == (40, 70)).all()
    assert boxes[:, :2].min() == 0
    assert (boxes[:, :2].max(0) > (255, 78)).all()
    assert (boxes[:, 2:].max(0) <= (300, 150)).all()


def test_train_ids():
    assert sorted(TRAIN_IDS[TRAIN_IDS < 255]) == list(range(Cityscapes.classes))
    assert CLASS_WEIGHTS.shape == (Cityscapes.classes,)
    assert CLASS_WEIGHTS.dtype == np.float32


MISSING = {
    "cifar10": r"cifar10, split 'train', is not in .* `tfds build cifar10 --file_format=array_record --data_dir=",
    "imagenet": r"imagenet2012, .* after you put ILSVRC2012_img_train.tar and .* --manual_dir",
    "cityscapes": r"cityscapes/semantic_segmentation, .* leftImg8bit_trainvaltest.zip and .* option folder",
}


@pytest.mark.parametrize("name", SMALL)
def test_missing_data_are_named_with_a_remedy(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=MISSING[name]):
        dataclasses.replace(SMALL[name], folder=tmp_path).train(2, 0, ALONE)


def test_a_missing_split_too(folders):
    with pytest.raises(FileNotFoundError, match="cifar10, split 'validation', is not in"):
        Records("cifar10", "validation", folders["cifar10"], ["image"])


@pytest.mark.parametrize("damage", ["image", "file"])
def test_a_broken_record_is_named(damage, tmp_path):
    rng = np.random.default_rng(0)
    files = [prepared.compressed(rng.integers(0, 256, (40, 40, 3), np.uint8), "JPEG") for _ in range(3)]
    if damage == "image":
        files[1] = files[1][: len(files[1]) // 2]
    folder = prepared.imagenet(tmp_path, files)
    if damage == "file":
        path = next(folder.glob("*train.array_record*"))
        content = bytearray(path.read_bytes())
        middle = slice(len(content) // 4, 3 * len(content) // 4)
        content[middle] = bytes(255 - byte for byte in content[middle])
        path.write_bytes(content)
    data = ImageNet(tmp_path, size=24, augment=False)
    pattern = rf"record \d of imagenet2012, split 'train', in {re.escape(str(tmp_path))}, is broken .*anew"
    with pytest.raises(OSError, match=pattern):
        first(data.train(3, 0, ALONE), 2)


def test_refusals(data):
    with pytest.raises(ValueError, match='split must be "valid" or "test"; got \'train\''):
        data.evaluate("train", 2, ALONE)
    with pytest.raises(ValueError, match="positive multiple of the 2 hosts; got 3"):
        data.train(3, 0, PAIR[0])
