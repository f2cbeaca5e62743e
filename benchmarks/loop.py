"""What `jaxdeq.training` takes of each step on the host, whatever the device does meanwhile."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import grain
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.cases import Plan, Row
from benchmarks.timing import Ratio, exactly
from jaxdeq import training
from jaxdeq.models import ResNetConfig

WARM = 100  # steps that do not count


class Number(nnx.Module):
    def __init__(self) -> None:
        self.value = nnx.Param(jnp.zeros(()))


class Output(NamedTuple):
    stats: None = None
    penalty: None = None


@dataclass(frozen=True)
class Empty(training.Classification):
    """A task without a model's work: a single number is the loss itself."""

    def build(self, config: Any, rngs: nnx.Rngs) -> nnx.Module:
        return Number()

    def apply(self, model: Any, batch: Any, carry: Any, **solve: Any) -> training.Outcome:
        loss = model.value[...]
        return training.Outcome(loss, {"loss": loss, "weight": jnp.float32(1)}, (), Output())

    def scores(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        return {"loss": float(sums["loss"] / sums["weight"])}

    def best(self) -> tuple[str, bool]:
        return "loss", False

    def unit(self) -> str:
        return "rows"

    def count(self, batch: Any) -> int:
        return len(batch["rows"])


class Clock(grain.DatasetIterator):
    """Batches of nothing; notes when each is asked for."""

    asked: ClassVar[list[float]] = []

    def __next__(self) -> dict[str, np.ndarray]:
        self.asked.append(time.perf_counter())
        return {"rows": np.zeros((1, 1), np.float32)}

    def get_state(self) -> dict[str, int]:
        return {}

    def set_state(self, state: dict[str, int]) -> None:
        pass


class Clocked(grain.IterDataset):
    def __iter__(self) -> Clock:
        return Clock()


@dataclass(frozen=True)
class Data:
    def train(self, batch: int, seed: int) -> grain.IterDataset:
        return Clocked()

    def evaluate(self, split: str, batch: int) -> Any:
        return [{"rows": np.zeros((batch, 1), np.float32), "weights": np.ones(batch, np.float32)}]

    def steps_per_epoch(self, batch: int) -> int:
        return 100


def host(plan: Plan) -> Iterator[Row]:
    """Milliseconds a step of `training.train` with a model of one number, records and progress bar; not a ratio."""
    steps = WARM + (20 if plan.tiny else 2000)
    Clock.asked.clear()
    unseen = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(unseen),
        contextlib.redirect_stdout(unseen),
    ):
        config = training.Config(
            ResNetConfig((1,), classes=2),  # as a config wants one; the task takes no notice
            Empty(),
            Data(),
            training.Adam(training.Cosine(1e-3)),
            steps,
            batch=1,
            evaluation=training.Evaluation(every=0),
            checkpoints=training.Checkpoints(every=0),
            mesh=training.Mesh(data=1),
            work=Path(folder) / "run",
        )
        training.train(config)
    took = 1e3 * np.diff(Clock.asked[WARM:])
    low, median, high = np.quantile(took, [0.25, 0.5, 0.75])
    yield Row("host", "a model of one number", "a step, median", Ratio(median, low, high, min(took)), 2.0)
    mean = float(np.mean(took))  # with the steps that write records
    yield Row("host", "a model of one number", "a step, mean", exactly(mean), 2.0)


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {"host": host}
