"""How many evaluations a tolerance takes while a model is trained, with and without the penalty."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.claims import cases, measure, runs
from experiments.claims import figure as figures
from experiments.claims.cases import Beginning
from experiments.claims.figure import Curve, Panel
from experiments.claims.measure import Solved
from experiments.claims.runs import DEQ, Run
from experiments.claims.table import Spread, Table
from jaxdeq import training

COLUMNS = (
    "model",
    "step of training",
    "forward",
    "share that converges",
    "backward",
    "share that converges, backward",
)


@dataclass(frozen=True)
class Evaluations:
    """Solves, with a large budget, of what the checkpoints of training hold.

    On the first validation batches, without dropout, and with averaged weights where training has them.
    Where the budget is used up the count is a lower bound; the share that converges says how often.

    References:
      Bai, Koltun & Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", 2021, figures 1 and 10.
    """

    models: tuple[cases.Name, ...] = cases.NAMES
    seeds: tuple[int, ...] = (0, 1, 2)
    rtol: float = 1e-3  # of both solves, whatever training used
    max_steps: int = 64  # budget of both
    batches: int = 4  # to solve for
    quick: bool = False  # a smoke test: small models, a few steps

    def run(self, figure: Path) -> Table:
        """Trains what is not trained yet, solves, and draws the figure."""
        trained = runs.trained(self.models, DEQ, self.seeds, figure.parent / "runs", self.quick)
        found = {case: [self.over_training(run) for run in seeds] for case, seeds in trained.items()}
        rows = []
        for (model, form), seeds in found.items():
            for step in dict.fromkeys(step for seed in seeds for step in seed):
                cells = zip(*(seed[step] for seed in seeds if step in seed), strict=True)
                rows.append((f"{model}, {runs.NAMES[form]}", step, *map(Spread, cells)))
        figures.draw(figure, [self.panels(model, found) for model in self.models])
        limits = f"Relative residual {self.rtol:g}, at most {self.max_steps} evaluations."
        return Table(COLUMNS, rows, f"{limits} {runs.note(runs.flat(trained))}")

    def over_training(self, run: Run) -> dict[int, Solved]:
        """By step, as far as there are checkpoints."""
        config, every = run.config, run.config.evaluation.every
        model: Any = config.model
        adjoint = replace(model.adjoint, rtol=self.rtol, max_steps=self.max_steps)
        data = Beginning(config.data, self.batches)
        config = replace(config, model=replace(model, adjoint=adjoint), data=data)
        solve = lambda step: measure.solved(config, training.load(config, step), self.rtol, self.max_steps)
        return {step: solve(step) for step in training.saved(config) if step % every == 0}

    def panels(self, model: cases.Name, found: dict) -> list[Panel]:
        config = cases.quick(model).config if self.quick else cases.full(model).config
        return [
            Panel(
                f"{model}, {way}",
                "step of training (count)",
                f"evaluations to {self.rtol:g} (count)",
                [
                    Curve(
                        runs.NAMES[form],
                        figures.COLOURS[form],
                        list(seed),
                        [getattr(one, way) for one in seed.values()],
                    )
                    for form in DEQ
                    for seed in found[model, form]
                ],
                marks=(config.pretrain,),
            )
            for way in ("forward", "backward")
        ]
