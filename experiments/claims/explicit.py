"""Models with an equilibrium beside explicit networks of as many parameters, trained by the same loop."""

from dataclasses import dataclass
from pathlib import Path

from experiments.claims import cases, runs
from experiments.claims import figure as figures
from experiments.claims.figure import Curve, Panel
from experiments.claims.runs import DEQ, FORMS, Run
from experiments.claims.table import Spread, Table

COLUMNS = (
    "model",
    "parameters",
    "test accuracy",
    "test perplexity",
    "evaluations",
    "share that converges",
)


@dataclass(frozen=True)
class Explicit:
    """Scores of the last weights on the test data; data, optimiser, steps and batches are the same for all.

    Where the explicit network works on finer grids than the equilibrium there is one more, on grids as coarse.

    References:
      Bai, Koltun & Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", 2021, tables 1 and 2.
    """

    models: tuple[cases.Name, ...] = cases.NAMES
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False  # a smoke test: small models, a few steps

    def run(self, figure: Path) -> Table:
        """Trains what is not trained yet, and draws the figure."""
        trained, folder = {}, figure.parent / "runs"
        for model in self.models:
            trained |= runs.trained([model], forms(model), self.seeds, folder, self.quick)
        names = ("accuracy", "perplexity", "forward_steps", "forward_converged")
        rows = [
            (
                title(seeds[0], form),
                cases.parameters(seeds[0].config),
                *(Spread(run.test.get(name) for run in seeds) for name in names),
            )
            for (_, form), seeds in trained.items()
        ]
        figures.draw(figure, [[panel(model, trained) for model in self.models]])
        return Table(COLUMNS, rows, runs.note(runs.flat(trained)))


def forms(model: cases.Name) -> tuple[runs.Form, ...]:
    """All that there are of a model."""
    return FORMS if cases.full(model).coarse is None else ("explicit", "coarse", *DEQ)


def title(run: Run, form: runs.Form) -> str:
    name = type(run.config.model).__name__.removesuffix("Config")
    return name if form == "explicit" else f"{name}, {runs.NAMES[form]}"


def panel(model: cases.Name, trained: dict) -> Panel:
    score = cases.full(model).score
    curves = [
        Curve(runs.NAMES[form], figures.COLOURS[form], *run.curve("valid", score))
        for form in forms(model)
        for run in trained[model, form]
    ]
    return Panel(
        model, "step of training (count)", figures.label(score, "validation "), curves, log=score == "perplexity"
    )
