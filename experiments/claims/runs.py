"""The trained models that studies share: trained once, and read back after that."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments.claims import cases
from experiments.claims.where import where
from jaxdeq import training

Form = Literal["explicit", "coarse", "plain", "penalised"]
DEQ: tuple[Form, ...] = ("plain", "penalised")
FORMS: tuple[Form, ...] = ("explicit", *DEQ)
NAMES = {
    "explicit": "explicit network",
    "coarse": "explicit network on coarse grids",
    "plain": "without the penalty",
    "penalised": "with the penalty",
}


class Run(NamedTuple):
    """A run that has ended.

    Attributes:
      config: of it.
      records: all that `training.train` wrote of it.
      test: scores of the last weights on the test data; empty where it diverged.
      diverged: how, if so.
      where: how and on what it ran.
    """

    config: training.Config
    records: list[dict[str, Any]]
    test: dict[str, float]
    diverged: str
    where: dict[str, Any]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Records of training, `train`, or of validation, `valid`."""
        return [record for record in self.records if record["kind"] == kind]

    def curve(self, kind: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values, where there are any."""
        points = [(record["step"], record[name]) for record in self.of(kind) if record.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def seconds(self) -> float:
        """Of training, with compiling, without evaluation and saving."""
        return float(self.clock()[-1]) if self.of("train") else 0.0

    def clock(self) -> np.ndarray:
        """Seconds of training up to each of its records."""
        train = self.of("train")
        return np.cumsum(
            np.diff([0, *(record["step"] for record in train)]) * [record["seconds_per_step"] for record in train]
        )


def config(model: cases.Name, form: Form, seed: int, folder: Path, quick: bool = False) -> training.Config:
    """A run of one of the embedded experiments: as it is there, but for the form and the seed."""
    known = cases.quick(model) if quick else cases.full(model)
    unsolved = {"pretrain": 0, "penalty": training.Penalty(), "budget": training.Budget()}
    changes: dict[str, Any] = {
        "plain": {"penalty": replace(known.config.penalty, weight=0.0)},
        "penalised": {},
        "explicit": {"model": known.explicit, **unsolved},
        "coarse": {"model": known.coarse, **unsolved},
    }[form]
    keep = 1000 if form in DEQ else 2  # all: a study solves with what they hold
    return replace(
        known.config,
        seed=seed,
        checkpoints=replace(known.config.checkpoints, keep=keep),
        log=replace(known.config.log, tensorboard=False, bar=not quick),
        work=folder / f"{model}-{form}-{seed}",
        **changes,
    )


def trained(
    names: Sequence[cases.Name], forms: Sequence[Form], seeds: Sequence[int], folder: Path, quick: bool
) -> dict[tuple[str, str], list[Run]]:
    """Runs by model and form, one a seed."""
    pairs = [(name, form) for name in names for form in forms]
    return {(name, form): [train(config(name, form, seed, folder, quick)) for seed in seeds] for name, form in pairs}


def train(config: training.Config) -> Run:
    """A run to its end: read back if it has ended, else gone on with, else begun.

    Raises:
      ValueError: there is a run with other settings in that folder.
      SystemExit: it was told to stop.
    """
    settings, end = config.work / "settings.txt", config.work / "end.json"
    own = repr(replace(config, work=Path()))
    if settings.exists() and settings.read_text() != own:
        raise ValueError(f"{config.work} must be a run of these settings, or not be there; choose another --out")
    if not end.exists():
        config.work.mkdir(parents=True, exist_ok=True)
        write(settings, own)
        write(end, json.dumps({**ended(config), "where": where()}, indent=1))
        jax.clear_caches()  # a study has dozens of runs, and each compiles its own programs
    lines = (config.work / "metrics.jsonl").read_text().splitlines()
    return Run(config, [json.loads(line) for line in lines], **json.loads(end.read_text()))


def ended(config: training.Config) -> dict[str, Any]:
    """Trains to the end, and says which."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="solves stop converging")  # a study is to find that out
            results = training.train(config)
    except training.Diverged as error:
        return {"test": {}, "diverged": str(error).split(";")[0]}
    if not results["finished"]:
        raise SystemExit("stopped; the same command goes on from there")
    return {"test": results["last"], "diverged": ""}


def write(path: Path, text: str) -> None:
    """The whole file or nothing, whenever it is killed."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def note(runs: Sequence[Run]) -> str:
    """On what they ran and how long; runs that were read back may be from elsewhere."""
    kinds = dict.fromkeys(tuple((name, run.where[name]) for name in run.where if name != "command") for run in runs)
    places = "; or ".join(", ".join(f"{name} {value}" for name, value in kind) for kind in kinds)
    hours = sum(run.seconds() for run in runs) / 3600
    failed = [f"{run.config.work.name} ({run.diverged})" for run in runs if run.diverged]
    told = f"{len(runs)} runs, {hours:.3g} hours of training in all, on: {places}."
    return told + (f" Diverged: {', '.join(failed)}." if failed else "")


def flat(runs: dict[Any, list[Run]]) -> list[Run]:
    return [run for seeds in runs.values() for run in seeds]


def each(seeds: Sequence[Run], measure: Callable[[Run], float]) -> Iterator[float | None]:
    """A number a seed; None where it diverged."""
    for run in seeds:
        yield None if run.diverged else measure(run)
