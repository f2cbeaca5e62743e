"""Runs of seconds: small models on data made up on the spot."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from jaxdeq import adjoints, solvers, training
from jaxdeq.models import Branch, DEQTransformerConfig, MDEQConfig, ResNetConfig

CLASSES, SIDE, WORDS = 3, 8, 20


class Stream(grain.DatasetIterator):
    """Batches by their number, which is the iterator's state."""

    def __init__(self, make: Any, length: int | None = None):
        super().__init__()
        self.make, self.length, self.at = make, length, 0

    def __next__(self):
        if self.at == self.length:
            raise StopIteration
        self.at += 1
        return self.make(self.at - 1)

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


class Batches(grain.IterDataset):
    def __init__(self, make: Any, length: int | None = None):
        super().__init__()
        self.make, self.length = make, length

    def __iter__(self):
        return Stream(self.make, self.length)


def share(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This host's rows."""
    return {name: np.split(x, jax.process_count())[jax.process_index()] for name, x in batch.items()}


@dataclass(frozen=True)
class Patches:
    """Images whose brightest channel is their class."""

    bad: int = -1  # the number of a batch with a NaN in it
    classes = CLASSES
    channels = 3

    def make(self, seed: Any, batch: int, weighted: bool) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        labels = rng.integers(CLASSES, size=batch, dtype=np.int32)
        images = rng.normal(0, 1, (batch, SIDE, SIDE, 3)).astype(np.float32)
        images += 2 * np.eye(3, dtype=np.float32)[labels][:, None, None]
        if seed[-1] == self.bad:
            images[0] = np.nan
        return share(
            {"images": images, "labels": labels} | ({"weights": np.ones(batch, np.float32)} if weighted else {})
        )

    def train(self, batch: int, seed: int) -> grain.IterDataset:
        return Batches(lambda i: self.make((seed, 0, i), batch, weighted=False))

    def evaluate(self, split: str, batch: int) -> grain.IterDataset:
        return Batches(lambda i: self.make((len(split), 1, i + 10_000), batch, weighted=True), length=2)

    def steps_per_epoch(self, batch: int) -> int:
        return 10


@dataclass(frozen=True)
class Counting:
    """Text that counts, from row to row in other steps, so that the next word follows from the last two."""

    length: int = 6
    vocab = WORDS

    def make(self, i: int, batch: int, weighted: bool) -> dict[str, np.ndarray]:
        words = np.arange(self.length + 1)[None] + self.length * i
        words = (words * (1 + np.arange(batch)[:, None] % 3) % WORDS).astype(np.int32)
        rows = {"tokens": words[:, :-1], "targets": words[:, 1:]}
        return share(rows | ({"weights": np.ones((batch, self.length), np.float32)} if weighted else {}))

    def train(self, batch: int, seed: int) -> grain.IterDataset:
        return Batches(lambda i: self.make(i, batch, weighted=False))

    def evaluate(self, split: str, batch: int) -> grain.IterDataset:
        return Batches(lambda i: self.make(i, batch, weighted=True), length=2)

    def steps_per_epoch(self, batch: int) -> int:
        return 10


IMAGES = training.Config(
    model=MDEQConfig(
        (Branch(8, 2), Branch(8, 2)), CLASSES, groups=2, expansion=1, final_channels=8, unroll=2, max_steps=4,
        dropout=0.1, solver=solvers.Anderson(history=2), adjoint=adjoints.Implicit(max_steps=4),
    ),
    task=training.Classification(),
    data=Patches(),
    optimizer=training.Adam(training.Cosine(3e-3)),
    steps=8,
    batch=8,
    evaluation=training.Evaluation(every=4),
    checkpoints=training.Checkpoints(every=2),
    log=training.Log(every=2, tensorboard=False, bar=False),
    mesh=training.Mesh(data=1),
)  # fmt: skip

EXPLICIT = replace(IMAGES, model=ResNetConfig((1,), CLASSES, width=8, small_images=True))

TEXT = replace(
    IMAGES,
    model=DEQTransformerConfig(
        vocab=WORDS, width=16, heads=2, inner=16, embed=16, memory=6, dropout=0.1, max_steps=6,
        adjoint=adjoints.Implicit(max_steps=6),
    ),
    task=training.LanguageModelling(),
    data=Counting(),
    pretrain=3,
    penalty=training.Penalty(weight=0.5, frequency=0.5),
    budget=training.Budget(jitter=(-1, 0)),
    ema=0.9,
)  # fmt: skip


def run(config: training.Config, work: Path, **changes: Any) -> dict[str, Any]:
    return training.train(replace(config, work=work, **changes))


LONG = replace(
    TEXT,
    steps=300,
    evaluation=training.Evaluation(every=100),
    checkpoints=training.Checkpoints(every=10),
    log=replace(TEXT.log, every=5),
)

if __name__ == "__main__":  # python -m tests.training.tiny work [port count index]
    work, *several = sys.argv[1:]
    config = LONG
    if several:
        port, count, index = several
        hosts = training.Hosts(f"127.0.0.1:{port}", int(count), int(index))
        hosts.connect()
        config = replace(
            LONG,
            steps=40,  # slow ones: numbers go from process to process many times in each
            pretrain=0,
            penalty=replace(LONG.penalty, frequency=1.0),  # one program alone: test_resume.py has all
            checkpoints=training.Checkpoints(every=5),
            hosts=hosts,
            mesh=training.Mesh(data=2, fsdp=2),
        )
    print(run(config, Path(work)))
