"""Gradients by the implicit function theorem."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._rule import solve, with_pullback
from jaxdeq._types import BackwardStats, Limits, Problem, Solution, Solver


@dataclass(frozen=True)
class Implicit:
    """The exact gradient of the equilibrium, by one more fixed-point solve.

    At `z = f(z, a)` the cotangent `g` of `z` becomes the cotangent `(df/da)^T u` of `a`, where
    `u = g + (df/dz)^T u`. The backward pass linearises `f` once, at the returned `z`, and costs one
    transposed product a step; memory is that of one evaluation of `f`, however many steps the
    solve took. Gradients of gradients are right too; for forward mode see `Unrolled`.

    The backward solve has no absolute tolerance, so that scaling the loss scales the gradient.
    If it does not converge, the best `u` it found is used; `tap` of `fixed_point` tells.

    Args:
      solver: for the equation of `u`; None: as in the forward call.
      rtol: relative tolerance of that solve; None: as in the forward call.
      max_steps: its budget; None: as in the forward call.

    Raises:
      ValueError: `rtol < 0` or `max_steps < 1`.
      TypeError: `max_steps` is not an int, or `solver` is not a solver.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdeq
      >>> def z(x):  # 2 x
      ...     return jaxdeq.fixed_point(lambda z: 0.5 * z + x, jnp.zeros(()), adjoint=jaxdeq.adjoints.Implicit()).z
      >>> print(f"{jax.grad(z)(1.0):.3f}")
      2.000

    References:
      Bai, Kolter & Koltun, "Deep Equilibrium Models", 2019.
    """

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

    def solve(self, problem: Problem, operands: Any, z0: Any, limits: Limits, tap: BackwardStats | None) -> Solution:
        solver = problem.solver if self.solver is None else self.solver

        def pullback(apply, params, z, g, limits):
            budget = Limits(
                rtol=limits.rtol if self.rtol is None else self.rtol,
                atol=0.0,
                max_steps=limits.max_steps if self.max_steps is None else self.max_steps,
            )
            _, vjp = jax.vjp(apply, params, z)
            # For a cotangent of size one, so that squares of it neither under- nor overflow.
            size = jax.lax.stop_gradient(tree.peak(g, problem.batch))
            tiny = float(jnp.finfo(size.dtype).tiny)
            size = jnp.clip(size, tiny, 1 / (4 * tiny))  # its reciprocal is a normal number
            unit = tree.scale(1 / size, g)
            u, stats = solve(self, solver, lambda u: tree.axpy(1.0, vjp(u)[1], unit), unit, budget, problem.batch)
            u = tree.scale(size, u)
            report = None if tap is None else BackwardStats(*(jnp.float32(s) for s in stats[:3]))
            return vjp(u)[0], report

        return with_pullback(problem, operands, z0, limits, tap, pullback)
