"""Gradients by the implicit function theorem."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdeq._rule import with_pullback
from jaxdeq._types import BackwardStats, Limits, Problem, Solution
from jaxdeq.adjoints._equation import Equation


@dataclass(frozen=True)
class Implicit(Equation):
    """The exact gradient of the equilibrium, by one more fixed-point solve.

    At `z = f(z, a)` the cotangent `g` of `z` becomes the cotangent `(df/da)^T u` of `a`, where
    `u = g + (df/dz)^T u`. The backward pass linearises `f` once, at the returned `z`, and costs one
    transposed product a step; memory is that of one evaluation of `f`, however many steps the
    solve took. Gradients of gradients are right too; for forward mode see
    `ImplicitJVP`.

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

    def solve(self, problem: Problem, operands: Any, z0: Any, limits: Limits, tap: BackwardStats | None) -> Solution:
        def pullback(apply, params, z, g, limits):
            _, vjp = jax.vjp(apply, params, z)
            again = partial(self.solve, tap=None)  # so that the backward solve has a derivative too
            u, stats = self.solve_linear(again, lambda u: vjp(u)[1], g, problem, limits)
            report = None if tap is None else BackwardStats(*(jnp.float32(s) for s in stats[:3]))
            return vjp(u)[0], report

        return with_pullback(problem, operands, z0, limits, tap, pullback)
