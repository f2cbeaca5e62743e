"""The linear equation of an implicit derivative, solved as a fixed point."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._rule import solve
from jaxdeq._types import Limits, Problem, Solver, Stats


@dataclass(frozen=True)
class Equation:
    """Settings of a solve for `u = g + J u`; None: as in the forward call."""

    solver: Solver | None = None
    rtol: float | None = None
    max_steps: int | None = None

    def __post_init__(self):
        if self.solver is not None:
            check.solver(self.solver)
        if self.rtol is not None:
            check.nonnegative("rtol", self.rtol)
        if self.max_steps is not None:
            check.count("max_steps", self.max_steps)

    def solve_linear(
        self, how: Callable, product: Callable, g: Any, problem: Problem, limits: Limits
    ) -> tuple[Any, Stats]:
        """Solves `u = g + product(u)` by `how`, as in `_rule.solve`, to a tolerance relative to the size of `u`."""
        budget = Limits(
            rtol=limits.rtol if self.rtol is None else self.rtol,
            atol=0.0,
            max_steps=limits.max_steps if self.max_steps is None else self.max_steps,
        )
        unit, size = tree.unit(g, problem.batch)
        step = lambda u: tree.axpy(1.0, product(u), unit)
        u, stats = solve(how, self.solver or problem.solver, step, unit, budget, problem.batch)
        return tree.scale(size, u), stats
