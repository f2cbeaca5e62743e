"""Time and memory of training, relative to an explicit network of as many parameters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims import cases, measure, runs
from experiments.claims import figure as figures
from experiments.claims.explicit import title
from experiments.claims.figure import Curve, Panel
from experiments.claims.runs import FORMS, Run
from experiments.claims.table import Spread, Table

COLUMNS = (
    "model",
    "parameters",
    "ms a step, solved",
    "evaluations",
    "minutes of training",
    "relative to the explicit network",
    "MB of temporaries",
    "relative",
)


@dataclass(frozen=True)
class Cost:
    """How long the runs took, and what memory their compiled step asks for.

    Times are those that each run noted: without evaluation and saving, with compiling. They compare only where
    the machine was quiet. Memory is XLA's account of the gradient of one step, beside parameters, batch and the
    optimiser's state; with the penalty it is that of a step that adds it. The paper's sizes are in the
    benchmarks' tables, by compilation alone.

    References:
      Bai, Koltun & Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", 2021, tables 1 and 5,
      figure 6.
    """

    models: tuple[cases.Name, ...] = cases.NAMES
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False  # a smoke test: small models, a few steps

    def run(self, figure: Path) -> Table:
        """Trains what is not trained yet, compiles for the memory, and draws the figure."""
        trained = runs.trained(self.models, FORMS, self.seeds, figure.parent / "runs", self.quick)
        rows = [row for model in self.models for row in self.rows(model, trained)]
        figures.draw(figure, [[panel(model, trained) for model in self.models]])
        return Table(COLUMNS, rows, runs.note(runs.flat(trained)))

    def rows(self, model: cases.Name, trained: dict) -> list[tuple]:
        rows, unit = [], measure.temporaries(trained[model, "explicit"][0].config)
        for form in FORMS:
            seeds = trained[model, form]
            size = measure.temporaries(seeds[0].config, penalised=form == "penalised")
            pairs = zip(seeds, trained[model, "explicit"], strict=True)
            ratio = [None if a.diverged or b.diverged else a.seconds() / b.seconds() for a, b in pairs]
            rows.append(
                (
                    title(seeds[0], form),
                    cases.parameters(seeds[0].config),
                    Spread(runs.each(seeds, lambda run: 1000 * late(run, "seconds_per_step"))),
                    Spread(runs.each(seeds, lambda run: late(run, "forward_steps"))) if form != "explicit" else "-",
                    Spread(runs.each(seeds, lambda run: run.seconds() / 60)),
                    Spread(ratio),
                    size / 1e6,
                    size / unit,
                )
            )
        config: Any = trained[model, "plain"][0].config
        size = measure.temporaries(config, unroll=config.model.max_steps)
        name = f"{title(trained[model, 'plain'][0], 'explicit')}, unrolled {config.model.max_steps} times"
        rows.append((name, cases.parameters(config), "-", config.model.max_steps, "-", "-", size / 1e6, size / unit))
        return rows


def late(run: Run, name: str) -> float:
    """The median of a record over the second half of training, when all models solve."""
    values = [record[name] for record in run.of("train") if record["step"] > run.config.steps / 2]
    return float(np.median(values))


def panel(model: cases.Name, trained: dict) -> Panel:
    """What validation gave after so much training."""
    score, curves = cases.full(model).score, []
    for form in FORMS:
        for run in trained[model, form]:
            steps, values = run.curve("valid", score)
            train = [record["step"] for record in run.of("train")]
            minutes = np.interp(steps, train, run.clock() / 60)
            curves.append(Curve(runs.NAMES[form], figures.COLOURS[form], list(minutes), values))
    return Panel(model, "training (minutes)", figures.label(score, "validation "), curves, log=score == "perplexity")
