"""What a hard stop costs: the score after 2, 3, 4 ... evaluations, with and without the penalty."""

from dataclasses import dataclass
from pathlib import Path

from experiments.claims import cases, runs
from experiments.claims import figure as figures
from experiments.claims.figure import Curve, Panel
from experiments.claims.runs import DEQ, Run
from experiments.claims.table import Spread, Table
from jaxdeq import training


@dataclass(frozen=True)
class Stop:
    """Test scores of trained models whose solves are stopped early.

    Evaluations count as everywhere here, with the one that measures the residual of the answer: the answer after n
    of them is the layer applied n - 1 times, as far as plain iteration goes. Solves that reach the tolerance of
    training stop before.

    References:
      Bai, Koltun & Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", 2021, table 3.
    """

    models: tuple[cases.Name, ...] = cases.NAMES
    seeds: tuple[int, ...] = (0, 1, 2)
    stops: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 9, 12, 16, 31)  # evaluations
    quick: bool = False  # a smoke test: small models, a few steps, two stops

    def run(self, figure: Path) -> Table:
        """Trains what is not trained yet, tries it, and draws the figure."""
        stops = self.stops[:2] if self.quick else self.stops
        trained = runs.trained(self.models, DEQ, self.seeds, figure.parent / "runs", self.quick)
        found = {
            (model, form): [scores(run, cases.full(model).score, stops) for run in seeds]
            for (model, form), seeds in trained.items()
        }
        titles = [f"{model}, {cases.full(model).score}, {runs.NAMES[form]}" for model, form in found]
        rows = []
        for i, stop in enumerate(stops):
            cells = [Spread(None if one is None else one[i] for one in seeds) for seeds in found.values()]
            rows.append((stop, *cells))
        figures.draw(figure, [[self.panel(model, stops, found) for model in self.models]])
        return Table(("evaluations", *titles), rows, runs.note(runs.flat(trained)))

    def panel(self, model: cases.Name, stops: tuple[int, ...], found: dict) -> Panel:
        curves = [
            Curve(runs.NAMES[form], figures.COLOURS[form], stops, seed)
            for form in DEQ
            for seed in found[model, form]
            if seed is not None
        ]
        score = cases.full(model).score
        return Panel(model, "evaluations (count)", figures.label(score), curves, log=score == "perplexity")


def scores(run: Run, score: str, stops: tuple[int, ...]) -> list[float] | None:
    """After each of the stops; None where training diverged."""
    if run.diverged:
        return None
    model = training.load(run.config)
    return [training.evaluate(run.config, model, max_steps=stop)[score] for stop in stops]
