"""The reader of WikiText's files, and its cache."""

import dataclasses
import os
import re

import numpy as np
import pytest

from experiments.data import WikiText, wikitext
from tests.experiments.data.reading import ALONE, PAIR, assert_equal, assert_restores, first, together

TEXT = {
    "train": " \n = Café = \n \n the cat , the <unk> \n The end \n",
    "valid": " the dog \n",
    "test": " the cat \n end \n",
}
WORDS = ["<eos>", "=", "the", "Café", "cat", ",", "<unk>", "The", "end"]
TRAIN = [0, 1, 3, 1, 0, 0, 2, 4, 5, 2, 6, 0, 7, 8, 0]


@pytest.fixture
def data(tmp_path):
    for split, text in TEXT.items():
        (tmp_path / f"wiki.{split}.tokens").write_text(text, encoding="utf-8")
    return WikiText(tmp_path, length=3)


@pytest.fixture
def encodings(monkeypatch):
    """One entry for each time that the files are encoded."""
    made, write = [], wikitext.write
    monkeypatch.setattr(wikitext, "write", lambda *args: made.append(args) or write(*args))
    return made


def home(data):
    (found,) = data.folder.glob("encoded-*")
    return found


def test_words_and_vocabulary(data):
    text = data.text()
    assert text.words == WORDS
    assert data.vocab == len(WORDS)
    np.testing.assert_array_equal(text.splits["train"], TRAIN)
    np.testing.assert_array_equal(text.splits["valid"], [2, 6, 0])
    np.testing.assert_array_equal(text.splits["test"], [2, 4, 0, 8, 0])
    assert all(isinstance(numbers, np.memmap) and numbers.dtype == np.int32 for numbers in text.splits.values())
    assert data.steps_per_epoch(2) == 3


def test_batches(data):
    assert_restores(data.train(2, 0, ALONE))
    assert_equal(together([first(data.train(2, 0, host), 3) for host in PAIR]), first(data.train(2, 0, ALONE), 3))
    (batch,) = first(data.evaluate("test", 2, ALONE))
    np.testing.assert_array_equal(batch["targets"][batch["weights"] == 1], [2, 4, 0, 8, 0])
    np.testing.assert_array_equal(batch["tokens"][batch["weights"] == 1], [0, 2, 4, 0, 8])


def test_encoded_once(data, encodings):
    for _ in range(3):
        assert data.vocab == len(WORDS)
    assert len(encodings) == 1
    assert sorted(path.name for path in home(data).iterdir()) == [
        "checksums.json",
        "test.npy",
        "train.npy",
        "valid.npy",
        "vocabulary.txt",
    ]


def test_changed_files_are_encoded_anew(data, encodings):
    data.text()
    path = data.folder / "wiki.test.tokens"
    path.write_text(" cat\n")
    np.testing.assert_array_equal(data.text().splits["test"], [4, 0])
    os.utime(path, ns=(0, 0))
    data.text()
    assert len(encodings) == 3


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit": lambda home: flip(home / "train.npy"),
    "cut": lambda home: os.truncate(home / "valid.npy", 100),
    "empty": lambda home: os.truncate(home / "test.npy", 0),
    "gone": lambda home: (home / "vocabulary.txt").unlink(),
    "words": lambda home: (home / "vocabulary.txt").write_text("<eos>"),
    "no sums": lambda home: (home / "checksums.json").unlink(),
    "not sums": lambda home: (home / "checksums.json").write_text("[1, 2"),
    "other sums": lambda home: (home / "checksums.json").write_text("[1, 2]"),
    "few sums": lambda home: (home / "checksums.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_made_anew(damage, data, encodings):
    data.text()
    damage(home(data))
    text = data.text()
    assert text.words == WORDS
    np.testing.assert_array_equal(text.splits["train"], TRAIN)
    data.text()
    assert len(encodings) == 2


def test_nothing_is_left_of_an_encoding_that_failed(data, monkeypatch):
    monkeypatch.setattr(wikitext, "encode", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        data.text()
    assert len(list(data.folder.iterdir())) == 3


def test_another_process_may_be_first(data, monkeypatch):
    """Both encode; the second finds the folder there, and leaves it."""
    fill, homes = wikitext.fill, lambda: [path.stat().st_ino for path in data.folder.glob("encoded-*")]
    found = []

    def late(files, folder):
        monkeypatch.setattr(wikitext, "fill", fill)
        fill(files, folder)
        data.text()
        found.extend(homes())

    monkeypatch.setattr(wikitext, "fill", late)
    np.testing.assert_array_equal(data.text().splits["train"], TRAIN)
    assert homes() == found
    assert len(found) == 1
    assert len(list(data.folder.iterdir())) == 4


def test_a_disk_that_does_not_keep_what_is_written(data, monkeypatch):
    monkeypatch.setattr(wikitext, "load", lambda home: None)
    with pytest.raises(OSError, match="differ from what was just written"):
        data.text()


def test_the_cache_may_be_elsewhere(data, tmp_path):
    elsewhere = dataclasses.replace(data, cache=tmp_path / "far" / "away")
    assert elsewhere.vocab == len(WORDS)
    assert not list(data.folder.glob("encoded-*"))
    assert len(list((tmp_path / "far" / "away").iterdir())) == 1


def test_a_cache_that_cannot_be_written(data):
    (data.folder / "file").touch()
    with pytest.raises(OSError, match=r"cannot be written to .*file.*another folder with the option cache"):
        dataclasses.replace(data, cache=data.folder / "file").text()


def test_missing_files_are_named_with_a_remedy(data):
    (data.folder / "wiki.valid.tokens").unlink()
    expected = f"{re.escape(str(data.folder))}: wiki.valid.tokens missing. Download WikiText-103 .*option folder"
    with pytest.raises(FileNotFoundError, match=expected):
        data.train(2, 0, ALONE)
