"""Fashion-MNIST, and what happens to its images."""

import dataclasses
import gzip

import numpy as np
import pytest

from experiments.data import FashionMNIST, fashion_mnist
from experiments.data.augment import Augmentation, erase, shifted
from tests.experiments.data.reading import ALONE, PAIR, assert_equal, assert_restores, first, together

BLACK = np.float32(-0.2860 / 0.3530)


def test_batches_are_normalised_images_and_labels():
    batch = first(FashionMNIST(augment=False).train(500, 0, ALONE), 1)[0]
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "images": ((500, 28, 28, 1), "float32"),
        "labels": ((500,), "int32"),
    }
    assert abs(batch["images"].mean()) < 0.05
    assert abs(batch["images"].std() - 1) < 0.05
    assert set(batch["labels"]) == set(range(FashionMNIST.classes))


def test_evaluation_has_the_test_images_in_order():
    _, test = fashion_mnist()
    batches = first(FashionMNIST().evaluate("test", 300, ALONE))
    images, labels, weights = (np.concatenate([batch[k] for batch in batches]) for k in ("images", "labels", "weights"))
    assert weights.sum() == 2000
    np.testing.assert_array_equal(labels[weights == 1], test.labels)
    np.testing.assert_allclose(images[:2000, ..., 0], (test.images / 255 - 0.2860) / 0.3530, atol=1e-5)


def test_held_out_images_are_not_trained_on():
    data = FashionMNIST(held_out=9_900, augment=False)
    assert data.steps_per_epoch(30) == 4
    train, _ = fashion_mnist()
    batch = first(data.train(100, 0, ALONE), 1)[0]
    assert sorted(batch["labels"]) == sorted(train.labels[:100])
    valid = first(data.evaluate("valid", 9_900, ALONE))[0]
    np.testing.assert_array_equal(valid["labels"], train.labels[100:])


def test_valid_is_test_unless_images_are_held_out():
    data = FashionMNIST()
    assert_equal(first(data.evaluate("valid", 1000, ALONE)), first(data.evaluate("test", 1000, ALONE)))


def test_training_restores_and_is_shared_by_hosts():
    data = FashionMNIST(erase=0.5)
    assert_restores(data.train(8, 3, ALONE))
    assert_equal(together([first(data.train(8, 3, host), 2) for host in PAIR]), first(data.train(8, 3, ALONE), 2))


@pytest.mark.parametrize("augment", [False, True])
def test_padding(augment):
    data = FashionMNIST(pad=2, shift=0, augment=augment)
    images = first(data.train(10, 0, ALONE), 1)[0]["images"]
    assert images.shape == (10, data.size, data.size, 1) == (10, 32, 32, 1)
    np.testing.assert_allclose(images[:, [0, 1, -2, -1]], BLACK, rtol=1e-5)
    np.testing.assert_allclose(images[:, :, [0, 1, -2, -1]], BLACK, rtol=1e-5)


def test_every_shift_comes_as_often_and_what_comes_in_is_black():
    count, most = 5000, 2
    dot = np.zeros((count, 5, 5, 1), np.uint8)
    dot[:, 2, 2] = 1
    moved = shifted(dot, 0, most, np.random.default_rng(0).random((count, 2)))
    np.testing.assert_array_equal(moved.sum((1, 2, 3)), 1)
    counts = moved.sum(0, dtype=int)[..., 0]
    assert abs(counts - count / 25).max() < 4 * np.sqrt(count / 25)


def test_half_of_the_images_are_flipped():
    wedge = np.tile(np.arange(4, dtype=np.uint8)[None, None, :, None], (2000, 2, 1, 1))
    out = Augmentation(flip=True)(wedge, np.random.default_rng(0).random((2000, Augmentation.DRAWS)), 0.0, 1 / 255)
    flipped = out[:, 0, 0, 0] > 1
    assert abs(flipped.mean() - 0.5) < 0.05
    np.testing.assert_allclose(out[flipped], wedge[flipped, :, ::-1], rtol=1e-6)
    np.testing.assert_allclose(out[~flipped], wedge[~flipped], rtol=1e-6)


def test_erasing_takes_rectangles_of_the_asked_share():
    ones = np.full((2000, 20, 20, 1), 255, np.uint8)
    out = Augmentation(erase=0.3)(ones, np.random.default_rng(0).random((2000, Augmentation.DRAWS)), 0.0, 1.0)
    missing = (out == 0).mean((1, 2, 3))
    erased = missing > 0
    assert abs(erased.mean() - 0.3) < 0.04
    assert missing[erased].min() < 0.04
    assert 0.3 < missing[erased].max() < 0.36
    for image in out[erased][:20, ..., 0] == 0:
        assert image.sum() == image.any(0).sum() * image.any(1).sum()  # a rectangle


@pytest.mark.parametrize("draws", [(0, 0, 0, 0), (1 - 1e-9,) * 4, (1 - 1e-9, 0, 1 - 1e-9, 0)])
def test_erasing_stays_inside(draws):
    image = np.ones((3, 28, 1), np.float32)
    erase(image, np.array(draws))
    assert 0 < (image == 0).sum() < image.size


def test_no_augmentation_changes_the_stored_images():
    before = fashion_mnist()[0].images[:8].copy()
    data = FashionMNIST(erase=1.0, held_out=9_992)
    stored = data.images("train").first(8)
    data.batch(stored, np.arange(8), np.full((8, Augmentation.DRAWS), 0.1))
    np.testing.assert_array_equal(stored.images, before)


def idx(values):
    """Bytes of an IDX file."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.astype(np.uint8).tobytes()


@pytest.fixture
def full(tmp_path):
    """The four files of the full set, with 12 and 5 images."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("t10k", 5)):
        for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            with gzip.open(tmp_path / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(idx(rng.integers(0, 10, shape)))
    return FashionMNIST(part="full", folder=tmp_path, augment=False)


def test_the_full_set_is_read_from_its_four_files(full):
    batch = first(full.train(12, 0, ALONE), 1)[0]
    assert batch["images"].shape == (12, 28, 28, 1)
    expected = np.random.default_rng(0)
    expected.integers(0, 10, (12, 28, 28))
    assert sorted(batch["labels"]) == sorted(expected.integers(0, 10, 12))
    assert sum(batch["weights"].sum() for batch in first(full.evaluate("test", 4, ALONE))) == 5
    assert full.steps_per_epoch(5) == 3


def test_missing_files_are_named_with_a_remedy(full):
    (full.folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"t10k-labels-idx1-ubyte.gz missing. Install Debian's package .*folder"
    ):
        full.train(2, 0, ALONE)


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"\0\0\x08\1"), gzip.compress(idx(np.ones((3, 3)))[:-1])],
    ids=["empty", "not gzip", "no sizes", "too short"],
)
def test_a_broken_file_is_named(full, content):
    path = full.folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"{path} is broken .*: get it anew"):
        full.train(2, 0, ALONE)


def test_a_cut_file_is_named(full):
    path = full.folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(OSError, match="is broken"):
        full.train(2, 0, ALONE)


def test_refusals():
    with pytest.raises(ValueError, match='split must be "valid" or "test"; got \'train\''):
        FashionMNIST().evaluate("train", 10, ALONE)
    for held_out in (-1, 10_000):
        with pytest.raises(ValueError, match=f"held_out must be from 0 to 9999.* got {held_out}"):
            dataclasses.replace(FashionMNIST(), held_out=held_out).train(10, 0, ALONE)
