"""The Jacobian-free gradient."""

from dataclasses import dataclass
from typing import Any

import jax

from jaxdeq._rule import with_pullback
from jaxdeq._types import BackwardStats, Limits, Problem, Solution


@dataclass(frozen=True)
class OneStep:
    """The gradient of one application of `f` at the equilibrium.

    Takes the cotangent `g` of `z` for the unknown `u` of `Implicit`: no backward solve, one
    transposed evaluation of `f`. The error is of the order of `||df/dz||`: good where `f`
    contracts strongly, a descent direction where it contracts at all.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdeq
      >>> def z(x):  # 2 x, in one step x
      ...     return jaxdeq.fixed_point(lambda z: 0.5 * z + x, jnp.zeros(()), adjoint=jaxdeq.adjoints.OneStep()).z
      >>> print(f"{jax.grad(z)(1.0):.3f}")
      1.000

    References:
      Fung et al., "JFB: Jacobian-Free Backpropagation for Implicit Networks", 2022.
      Bolte, Pauwels & Vaiter, "One-step differentiation of iterative algorithms", 2023.
    """

    def solve(self, problem: Problem, operands: Any, z0: Any, limits: Limits, tap: BackwardStats | None) -> Solution:
        def pullback(apply, params, z, g, limits):
            _, vjp = jax.vjp(lambda params: apply(params, z), params)
            return vjp(g)[0], None

        return with_pullback(problem, operands, z0, limits, tap, pullback)
