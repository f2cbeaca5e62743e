"""Trains a small multiscale deep equilibrium model, with and without Jacobian regularisation.

python -m experiments.demo            (or: make demo; --help lists the options)
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

from experiments import data, demo_train
from experiments.demo_config import Config
from experiments.demo_picture import draw
from experiments.demo_train import Metrics, Training

PENALISED, PLAIN, WARMUP = "with penalty", "without", "warm-up"


def main(config: Config) -> dict[str, dict[str, float]]:
    """Trains, measures, prints and saves.

    Returns:
      The table that it prints, by model.
    """
    began = time.perf_counter()
    session = Session(config)
    start = session.fit(WARMUP, session.initial, range(config.warmup), frequency=0.0)
    session.compile(start)
    epochs = range(config.warmup, config.warmup + config.epochs)
    results, traces = {}, {}
    for model, frequency in {PENALISED: config.frequency, PLAIN: 0.0}.items():
        if model == PENALISED or config.compare:
            trained = session.fit(model, start, epochs, frequency)
            results[model], traces[model] = session.measure(model, trained)
    draw(config.work / "demo.png", session.epochs, traces, config.rtol)
    session.bar.close()
    print(table(results))
    print(f"{session.parameters:,} parameters; {time.perf_counter() - began:.0f} s in all; see {config.work}/")
    return results


class Session:
    """Data, model, progress bar and metrics file of one run of the demo."""

    def __init__(self, config: Config):
        self.config = config
        train, test = data.fashion_mnist()
        self.train, self.test = train.first(config.train_images), test.first(config.test_images)
        self.graphdef, self.initial = demo_train.start(config)
        self.parameters = sum(x.size for x in jax.tree.leaves(self.initial.params))
        self.epochs: list[dict[str, Any]] = []
        config.work.mkdir(parents=True, exist_ok=True)
        (config.work / "metrics.jsonl").write_text("")
        epochs = config.warmup + config.epochs * (1 + config.compare)
        self.bar = tqdm(total=epochs * demo_train.steps_per_epoch(config), unit="step", mininterval=0.5)

    def compile(self, training: Training):
        """Both kinds of step, before the clock of either model starts."""
        self.bar.set_description("compiling")
        batch = next(demo_train.batches(self.config, self.train, 0))
        for penalised in {False, self.config.frequency > 0}:
            demo_train.step(self.config, self.graphdef, training, batch, warmup=False, penalised=penalised)

    def fit(self, model: str, training: Training, epochs: Iterable[int], frequency: float) -> Training:
        """Trains for some epochs, tests after each, and records both."""
        warmup = model == WARMUP
        for epoch in epochs:
            began, history = time.perf_counter(), []
            coins = demo_train.penalised_steps(self.config, epoch, frequency)
            for batch, coin in zip(demo_train.batches(self.config, self.train, epoch), coins, strict=True):
                training, metrics = demo_train.step(
                    self.config, self.graphdef, training, batch, warmup=warmup, penalised=bool(coin)
                )
                history.append(Metrics(*map(float, metrics)))
                self.show(model, epoch, history)
            test = demo_train.test(self.config, self.graphdef, training.params, self.test)
            means = Metrics(*map(mean, zip(*history, strict=True)))._asdict()
            seconds = time.perf_counter() - began
            self.epochs.append({"model": model, "epoch": epoch + 1, **means, **test, "seconds": seconds})
            self.write(self.epochs[-1])
        return training

    def show(self, model: str, epoch: int, history: list[Metrics]):
        """Moves the bar on; the numbers are means of the last 20 steps."""
        m = Metrics(*map(mean, zip(*history[-20:], strict=True)))
        self.bar.set_description(f"{model}, epoch {epoch + 1}", refresh=False)
        self.bar.set_postfix_str(
            f"loss {m.loss:.3f}, accuracy {m.accuracy:.3f}, steps {m.steps:.1f} + {m.backward_steps:.1f}", refresh=False
        )
        self.bar.update()

    def measure(self, model: str, training: Training) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """A column of the table, and the solver's convergence."""
        last = self.epochs[-1]
        radius, traces = demo_train.convergence(self.graphdef, training.params, self.test.images)
        row = {
            "test accuracy": last["test_accuracy"],
            "forward steps, training": last["steps"],
            "backward steps, training": last["backward_steps"],
            "forward steps, test": last["test_steps"],
            "residual, test": last["test_residual"],
            "spectral radius, test": radius,
            "seconds of training": sum(e["seconds"] for e in self.epochs if e["model"] == model),
        }
        self.write({"model": model, "result": row})
        return row, traces

    def write(self, record: dict[str, Any]):
        """Appends a line to the metrics. What is not a number is null there."""
        finite = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}
        with (self.config.work / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(finite) + "\n")


def mean(values: Iterable[float]) -> float:
    """Of those that are numbers; NaN if none is."""
    numbers = [v for v in values if not math.isnan(v)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def table(results: dict[str, dict[str, float]]) -> str:
    """One row a quantity, one column a model."""
    lines = ["".join([" " * 26, *(f"{model:>14}" for model in results)])]
    for name in results[PENALISED]:
        lines.append("".join([f"{name:<26}", *(f"{row[name]:>14.4g}" for row in results.values())]))
    return "\n".join(lines)


def read(args: list[str] | None = None) -> Config:
    """The options of the command line; a wrong one is refused with the valid names."""
    try:
        return tyro.cli(Config, args=args)
    except SystemExit as stop:
        if stop.code:
            names = (f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Config))
            print("Options:", *names, file=sys.stderr)
        raise


if __name__ == "__main__":
    main(read())
