"""Batches as functions of a step: the same whatever the number of hosts, threads and worker processes."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

Batch = dict[str, np.ndarray]


class Data(Protocol):
    """A data set as a config names it: a frozen dataclass of settings.

    A batch is a dictionary of arrays whose rows are this host's share of the global batch. That of a step depends
    on the seed and the step alone; an iterator's state is `{"step": step}`, the same on every host.

    Images: "images", float32 [rows, height, width, channels], normalised, and "labels", int32 [rows], or
    [rows, height, width] with 255 where a pixel does not count; `classes` and `channels` say how many there are.
    Text: "tokens" and "targets", int32 [rows, length], where a row goes on in the next batch; `vocab` words.
    In evaluation also "weights", float32 [rows] for images, [rows, length] for text: 0 where the batch is padded.
    """

    def train(self, batch: int, seed: int) -> grain.IterDataset:
        """Endless. `batch` counts the rows of all hosts."""

    def evaluate(self, split: str, batch: int) -> grain.IterDataset:
        """Every example of "valid" or "test" once, in order."""

    def steps_per_epoch(self, batch: int) -> int:
        """Steps after which every training example was seen, rounded up."""


class Host(NamedTuple):
    """One of the processes that train together."""

    index: int
    count: int

    def rows(self, batch: int) -> slice:
        """Its rows of a global batch."""
        if batch < 1 or batch % self.count:
            raise ValueError(f"batch must be a positive multiple of the {self.count} hosts; got {batch}")
        share = batch // self.count
        return slice(self.index * share, (self.index + 1) * share)


def here() -> Host:
    """This process, as JAX counts them."""
    import jax  # worker processes do without

    return Host(jax.process_index(), jax.process_count())


@dataclass(frozen=True)
class Reading:
    """Who makes the batches, and how many of them in advance. What is in them does not depend on it."""

    threads: int = 1  # in each process; 0: together as many as there are cores
    workers: int = 0  # processes of their own; 0: threads of this one
    ahead: int = 2  # batches made in advance, by each process


class Batches(grain.IterDataset):
    """The batches `make(0), make(1), ...`, made in advance.

    Its iterator's state is the number of the next step, so that it can be restored where there are
    other numbers of threads, workers and hosts.

    Args:
      make: a batch from its step; pure, and has to pickle where there are workers.
      steps: how many there are; None: endless.
      reading: who makes them.
    """

    def __init__(self, make: Callable[[int], Batch], steps: int | None = None, reading: Reading = Reading()):
        super().__init__()
        self.make, self.steps, self.reading = make, steps, reading

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(self)

    def start_at(self, step: int) -> grain.DatasetIterator:
        """Grain's iterator over the batches from `step` on."""
        reading = self.reading
        stop = sys.maxsize if self.steps is None else self.steps
        steps = grain.MapDataset.range(step, stop).map(self.make)
        threads = reading.threads or max(1, cores() // max(1, reading.workers))
        batches = steps.to_iter_dataset(grain.ReadOptions(threads, max(threads, reading.ahead)))
        if reading.workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # Grain hands absl's flags on to its workers
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(reading.workers, per_worker_buffer_size=reading.ahead)
            batches = batches.mp_prefetch(options)
        return iter(batches)


class BatchIterator(grain.DatasetIterator):
    """Counts steps. Grain's own state would also hold how many workers there are."""

    def __init__(self, batches: Batches):
        super().__init__()
        self.batches, self.step, self.inner = batches, 0, None

    def __next__(self) -> Batch:
        if self.batches.steps is not None and self.step >= self.batches.steps:
            raise StopIteration
        if self.inner is None:
            self.inner = self.batches.start_at(self.step)
        batch = next(self.inner)
        self.step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"step": self.step}

    def set_state(self, state: dict[str, Any]) -> None:
        self.stop()
        self.step = int(state["step"])

    def close(self) -> None:
        self.stop()
        super().close()

    def stop(self) -> None:
        """Drops what was made in advance."""
        if self.inner is not None:
            self.inner.close()
            self.inner = None


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Make(Protocol):
    """How a data set makes a batch of examples, given by their numbers, int64 [rows].

    `draws`, float64 [rows, k], are uniform random numbers in [0, 1) for the augmentation; None: as for a test.
    """

    def __call__(self, examples: np.ndarray, draws: np.ndarray | None) -> Batch: ...


def shuffled(
    make: Make, count: int, batch: int, seed: int, draws: int, reading: Reading = Reading(), host: Host | None = None
) -> Batches:
    """Endless batches of examples in an order drawn anew for each epoch; a batch may span two epochs.

    Args:
      make: a batch from its examples.
      count: how many examples there are.
      batch: rows of all hosts together.
      seed: for the order and for the augmentation.
      draws: random numbers an example.
      reading: who makes the batches.
      host: whose rows; this process's if None.
    """
    rows = (host or here()).rows(batch)

    def at(step: int) -> Batch:
        epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch)[rows], count)
        examples = np.empty_like(places)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            examples[now] = order(count, seed, int(epoch))[places[now]]
        return make(examples, np.random.default_rng((seed, step)).random((batch, draws))[rows])

    return Batches(at, None, reading)


def in_order(make: Make, count: int, batch: int, reading: Reading = Reading(), host: Host | None = None) -> Batches:
    """Every example once, in order; "weights" is 0 in the rows that pad the last batch."""
    rows = (host or here()).rows(batch)

    def at(step: int) -> Batch:
        examples = np.arange(step * batch, (step + 1) * batch)[rows]
        made = make(np.minimum(examples, count - 1), None)
        return made | {"weights": (examples < count).astype(np.float32)}

    return Batches(at, -(-count // batch), reading)


def check_split(split: str) -> None:
    if split not in ("valid", "test"):
        raise ValueError(f'split must be "valid" or "test"; got {split!r}')


@lru_cache(maxsize=4)
def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: 10 MB and 20 ms for ImageNet, and so kept from one batch to the next."""
    # The third number sets these draws apart from those of a step.
    return np.random.default_rng((seed, epoch, 1)).permutation(count)
