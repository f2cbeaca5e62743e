"""WikiText-103, encoded once and then mapped from disk."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from experiments.data.batches import Host, check_split
from experiments.data.text import SPLITS, encode, once, streams, vocabulary

FORMAT = 1  # of the cache
CHUNK = 1 << 26  # bytes that are checked at a time


@dataclass(frozen=True)
class WikiText:
    """`wiki.{train,valid,test}.tokens`, by words: WikiText-103, WikiText-2 or anything in their layout.

    The first use encodes the files, a minute for WikiText-103, into a folder `encoded-...` that later uses map into
    memory. It is made anew if the files have another size or time, or if it is damaged.

    Raises:
      FileNotFoundError: a file is not there.
      OSError: the cache cannot be written.
      ValueError: a split of another name, a batch that the hosts cannot share.
    """

    folder: Path = Path("wikitext-103")  # of the three files
    length: int = 150  # words a row of a batch
    cache: Path | None = None  # folder for the encoded words; None: the same one

    @property
    def vocab(self) -> int:
        return len(self.text().words)

    def train(self, batch: int, seed: int, host: Host | None = None) -> grain.IterDataset:
        return streams(self.text().splits["train"], batch, self.length, seed, host)

    def evaluate(self, split: str, batch: int, host: Host | None = None) -> grain.IterDataset:
        check_split(split)
        return once(self.text().splits[split], batch, self.length, host)

    def steps_per_epoch(self, batch: int) -> int:
        return -(-len(self.text().splits["train"]) // (batch * self.length))

    def text(self) -> "Text":
        return encoded(self.folder, self.cache or self.folder)


class Text(NamedTuple):
    """Encoded words.

    Attributes:
      words: the vocabulary; a word's number is its place.
      splits: int32, [count], of each split; mapped from disk.
    """

    words: list[str]
    splits: dict[str, np.ndarray]


def encoded(folder: Path, cache: Path) -> Text:
    """The files' words, from the cache if they are there."""
    files = {split: folder / f"wiki.{split}.tokens" for split in SPLITS}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"WikiText is not in {folder.absolute()}: {', '.join(missing)} missing. Download WikiText-103 (word level, "
            "wikitext-103-v1.zip; not the raw one), unpack it, and name the folder of its three files "
            "with the option folder"
        )
    facts = [FORMAT, *((stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, files.values()))]
    home = cache / f"encoded-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"
    text = load(home)
    if text is None:
        write(files, home)
        text = load(home)
        if text is None:
            raise OSError(f"the encoded words in {home} differ from what was just written: is the disk broken?")
    return text


def load(home: Path) -> Text | None:
    """What was written there; None if it is not all there, byte for byte."""
    try:
        if json.loads((home / "checksums.json").read_text()) != checksums(home):
            return None
        words = (home / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
        return Text(words, {split: np.load(home / f"{split}.npy", mmap_mode="r") for split in SPLITS})
    except (OSError, ValueError):
        return None


def write(files: dict[str, Path], home: Path) -> None:
    """Encodes the files. The folder appears at once and whole; if another process was first, its folder stays."""
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
    except OSError as error:
        raise OSError(
            f"the encoded words cannot be written to {home.parent} ({error}): name another folder with the option cache"
        ) from error
    try:
        with contextlib.suppress(OSError):  # it is damaged, or would have been used; others still encode
            os.rename(home, scratch / "damaged")
        (scratch / "new").mkdir()
        fill(files, scratch / "new")
        try:
            os.rename(scratch / "new", home)
        except OSError:
            if not home.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fill(files: dict[str, Path], folder: Path) -> None:
    """Writes vocabulary, words and checksums into a folder."""
    with files["train"].open(encoding="utf-8") as lines:
        numbers = vocabulary(lines)
    (folder / "vocabulary.txt").write_text("\n".join(numbers), encoding="utf-8")
    for split, path in files.items():
        with path.open(encoding="utf-8") as lines:
            np.save(folder / f"{split}.npy", encode(lines, numbers))
    (folder / "checksums.json").write_text(json.dumps(checksums(folder)))


def checksums(home: Path) -> dict[str, int]:
    """CRC-32 of each file."""
    sums = {}
    for name in ("vocabulary.txt", *(f"{split}.npy" for split in SPLITS)):
        sums[name] = 0
        with (home / name).open("rb") as file:
            while chunk := file.read(CHUNK):
                sums[name] = zlib.crc32(chunk, sums[name])
    return sums
