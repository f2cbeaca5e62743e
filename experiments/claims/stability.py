"""Where training without the penalty is unstable: norms, step sizes and budgets, each with and without."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.claims import figure as figures
from experiments.claims import runs
from experiments.claims.cases import Beginning
from experiments.claims.figure import Curve, Panel
from experiments.claims.runs import DEQ, Run
from experiments.claims.table import Spread, Table
from jaxdeq import training

Norm = Literal["post-LN", "pre-LN", "no weight norm"]
NORMS: tuple[Norm, ...] = ("post-LN", "pre-LN", "no weight norm")
RISE = 0.5  # nats by which the loss has risen again
FAR = 0.1  # relative residual of what is no equilibrium
SHOWN = (("loss", "train"), ("forward_residual", "train"), ("radius", "valid"))  # in the figure, from these records

COLUMNS = (
    "norms, peak rate, budget",
    "penalty",
    "unstable seeds",
    "diverged",
    "loss, lowest",
    "loss, last",
    "forward residual, last",
    "backward residual, last",
    "spectral radius, last",
    "spectral radius, largest",
)


class Setting(NamedTuple):
    """What is tried. `max_steps` is the budget forward; backward solves have two more."""

    norm: Norm
    rate: float
    max_steps: int

    def __str__(self) -> str:
        return f"{self.norm}, {self.rate:g}, {self.max_steps}"


@dataclass(frozen=True)
class Stability:
    """Short runs of `sotu_transformer` for all combinations of these settings.

    A run is called unstable if its loss became NaN or infinite, if its loss ends half a nat above its lowest, or if
    its solves, forward or backward, end with a mean relative residual above 0.1. Losses and residuals are means of
    training records after pre-training; the last ones are those of the last tenth of the steps.

    References:
      Bai, Koltun & Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", 2021, figures 3 and 7.
    """

    norms: tuple[Norm, ...] = NORMS
    rates: tuple[float, ...] = (1e-3, 5e-3)  # peaks of Adam's rate; the first is that of `sotu_transformer`
    budgets: tuple[int, ...] = (12, 5)  # evaluations; the first is that of `sotu_transformer`
    penalty: training.Penalty = training.Penalty(0.3, 0.35)  # of `sotu_transformer`; the paper's with pre-LN: 2.0, 0.4
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 1500  # a fifth of them unrolled
    quick: bool = False  # a smoke test: a small model, a few steps, the last setting

    def run(self, figure: Path) -> Table:
        """Trains what is not trained yet, and draws the figure."""
        folder = figure.parent / "runs"
        found = {
            (setting, form): [runs.train(self.config(setting, form, seed, folder)) for seed in self.seeds]
            for setting in self.settings()
            for form in DEQ
        }
        rows = [row(setting, form, seeds) for (setting, form), seeds in found.items()]
        figures.draw(
            figure, [[panel(setting, name, kind, found) for setting in self.settings()] for name, kind in SHOWN]
        )
        return Table(COLUMNS, rows, f"{verdict(found)} {runs.note(runs.flat(found))}")

    def settings(self) -> list[Setting]:
        every = [Setting(*each) for each in product(self.norms, self.rates, self.budgets)]
        return every[-1:] if self.quick else every

    def config(self, setting: Setting, form: runs.Form, seed: int, folder: Path) -> training.Config:
        known = runs.config("sotu_transformer", form, seed, folder, self.quick)
        model: Any = known.model
        optimizer: Any = known.optimizer
        steps = known.steps if self.quick else self.steps
        how = form if form == "plain" else f"{form}_{self.penalty.weight:g}"
        return replace(
            known,
            model=replace(
                model,
                pre_norm=setting.norm == "pre-LN",
                weight_norm=setting.norm != "no weight norm",
                max_steps=setting.max_steps,
                adjoint=replace(model.adjoint, max_steps=setting.max_steps + 2),
            ),
            penalty=known.penalty if form == "plain" else self.penalty,
            optimizer=replace(optimizer, rate=replace(optimizer.rate, peak=setting.rate)),
            data=Beginning(known.data, 4),
            steps=steps,
            pretrain=0 if self.quick else steps // 5,
            evaluation=replace(known.evaluation, every=max(1, steps // 20), radius=True),
            checkpoints=training.Checkpoints(every=0, keep=1),
            log=replace(known.log, every=max(1, steps // 60)),
            work=folder / f"stability-{str(setting).replace(', ', '-').replace(' ', '_')}-{how}-{seed}",
        )


def row(setting: Setting, form: runs.Form, seeds: list[Run]) -> tuple:
    of = lambda measure: Spread(runs.each(seeds, measure))
    return (
        str(setting),
        runs.NAMES[form],
        sum(map(unstable, seeds)),
        sum(bool(run.diverged) for run in seeds),
        of(lambda run: min(solved(run, "train", "loss"))),
        of(lambda run: last(run, "train", "loss")),
        of(lambda run: last(run, "train", "forward_residual")),
        of(lambda run: last(run, "train", "backward_residual")),
        of(lambda run: last(run, "valid", "radius")),
        of(lambda run: max(solved(run, "valid", "radius"))),
    )


def unstable(run: Run) -> bool:
    """See `Stability`."""
    if run.diverged:
        return True
    rise = last(run, "train", "loss") - min(solved(run, "train", "loss"))
    far = max(last(run, "train", f"{way}_residual") for way in ("forward", "backward"))
    return not (rise <= RISE and far <= FAR)


def solved(run: Run, kind: str, name: str) -> list[float]:
    """Values of the records after pre-training; what is not finite in them is infinite."""
    records = [record for record in run.of(kind) if record["step"] > run.config.pretrain and name in record]
    return [np.inf if record[name] is None else record[name] for record in records]


def last(run: Run, kind: str, name: str) -> float:
    """The mean over the last tenth of the steps."""
    start = 0.9 * run.config.steps
    records = [record for record in run.of(kind) if record["step"] > start]
    return float(np.mean([np.inf if record[name] is None else record[name] for record in records]))


def verdict(found: dict[tuple[Setting, str], list[Run]]) -> str:
    """In which settings the penalty is needed, in words."""
    count = lambda setting, form: sum(map(unstable, found[setting, form]))
    settings = dict.fromkeys(setting for setting, _ in found)
    needed = [s for s in settings if count(s, "plain") > count(s, "penalised")]
    either = [s for s in settings if count(s, "plain") and count(s, "plain") <= count(s, "penalised")]
    tell = lambda some: "; ".join(
        f"{s} ({count(s, 'plain')} of {len(found[s, 'plain'])} seeds without, {count(s, 'penalised')} with)"
        for s in some
    )
    if not needed and not either:
        return "None of these settings is unstable without the penalty."
    return " ".join(
        [f"More often unstable without the penalty than with it: {tell(needed) or 'none'}."]
        + ([f"No less often with it: {tell(either)}."] if either else [])
    )


def panel(setting: Setting, name: str, kind: str, found: dict[tuple[Setting, str], list[Run]]) -> Panel:
    curves = [
        Curve(runs.NAMES[form], figures.COLOURS[form], *run.curve(kind, name))
        for form in DEQ
        for run in found[setting, form]
    ]
    marks = (found[setting, "plain"][0].config.pretrain,)
    return Panel(
        str(setting),
        "step of training (count)",
        figures.label(name),
        curves,
        log=name != "loss",
        marks=marks,
    )
