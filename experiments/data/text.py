"""Words as numbers, and streams of them that carry a model's memory from batch to batch."""

import itertools
import lzma
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import grain
import numpy as np

from experiments.data.batches import Batch, Batches, Host, check_split, here
from experiments.data.images import EMBEDDED

END = "<eos>"  # of a line
UNKNOWN = "<unk>"
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class StateOfTheUnion:
    """The addresses of the presidents of the United States, 1790 to 2021, by words; see embedded/README.md."""

    length: int = 64  # words a row of a batch

    @property
    def vocab(self) -> int:
        return len(state_of_the_union()[0])

    def train(self, batch: int, seed: int, host: Host | None = None) -> grain.IterDataset:
        return streams(state_of_the_union()[1]["train"], batch, self.length, seed, host)

    def evaluate(self, split: str, batch: int, host: Host | None = None) -> grain.IterDataset:
        check_split(split)
        return once(state_of_the_union()[1][split], batch, self.length, host)

    def steps_per_epoch(self, batch: int) -> int:
        return -(-len(state_of_the_union()[1]["train"]) // (batch * self.length))


@lru_cache(maxsize=1)
def state_of_the_union() -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """The vocabulary and the numbers of all words, by split: a second the first time."""

    def lines(split: str) -> list[str]:
        with lzma.open(EMBEDDED / f"sotu_{split}.tokens.xz", "rt", encoding="utf-8") as file:
            return list(file)

    train = lines("train")
    numbers = vocabulary(train)
    splits = {split: train if split == "train" else lines(split) for split in SPLITS}
    return numbers, {split: encode(text, numbers) for split, text in splits.items()}


def vocabulary(lines: Iterable[str]) -> dict[str, int]:
    """Each word's number: the line's end first, then by frequency; of equals the one seen first comes first."""
    counts = Counter(itertools.chain.from_iterable(line.split() for line in lines))
    words = [END, *(word for word, _ in counts.most_common() if word != END)]
    return {word: number for number, word in enumerate(words)}


def encode(lines: Iterable[str], numbers: dict[str, int]) -> np.ndarray:
    """The numbers of all words, int32, with the line's end after every line."""
    unknown = numbers.get(UNKNOWN)

    def look_up() -> Iterator[int]:
        for line in lines:
            for word in line.split():
                number = numbers.get(word, unknown)
                if number is None:
                    raise ValueError(f"the word {word!r} is not in the vocabulary, which has no {UNKNOWN} either")
                yield number
            yield numbers[END]

    return np.fromiter(look_up(), np.int32)


def streams(words: np.ndarray, batch: int, length: int, seed: int, host: Host | None = None) -> Batches:
    """Endless batches in which row `i` of a step continues row `i` of the step before.

    The text is a ring. Its rows start at equal distances, from a place that the seed draws, and go round:
    after an epoch a row is where the next one began.

    Args:
      words: int32, [count].
      batch: rows of all hosts together.
      length: words a row.
      seed: for the place where the first row starts.
      host: whose rows; this process's if None.
    """
    check_length(length)
    rows = (host or here()).rows(batch)
    start = np.random.default_rng(seed).integers(len(words))
    starts = (start + np.arange(batch)[rows] * len(words) // batch)[:, None]

    def at(step: int) -> Batch:
        places = (starts + step * length + np.arange(length + 1)) % len(words)
        return pair(words[places])

    return Batches(at)


def once(words: np.ndarray, batch: int, length: int, host: Host | None = None) -> Batches:
    """Every word once as a target, after the one before it; the first word after the last one, a line's end.

    A row of a batch continues that of the batch before. "weights" [rows, length] is 0 where rows are padded.
    """
    check_length(length)
    rows = (host or here()).rows(batch)
    share = -(-len(words) // batch)
    numbers = np.arange(batch)[rows, None]
    starts, stops = numbers * share, np.minimum((numbers + 1) * share, len(words))

    def at(step: int) -> Batch:
        targets = starts + step * length + np.arange(length)
        places = np.concatenate([targets[:, :1] - 1, targets], axis=1) % len(words)
        return pair(words[places]) | {"weights": (targets < stops).astype(np.float32)}

    return Batches(at, -(-share // length))


def pair(words: np.ndarray) -> Batch:
    """Words to read and to predict from [rows, length + 1]."""
    return {"tokens": words[:, :-1], "targets": words[:, 1:]}


def check_length(length: int) -> None:
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}")
