"""The phantom gradient as a truncated Neumann series."""

from dataclasses import dataclass
from typing import Any

import jax
from jax import lax

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._rule import with_pullback
from jaxdeq._types import BackwardStats, Limits, Problem, Solution


@dataclass(frozen=True)
class Neumann:
    """The first terms of the series of the exact gradient.

    Takes `damping * sum_{k < terms} (damping J^T + (1 - damping) I)^k g` for the unknown `u` of
    `Implicit`, with `J` the Jacobian at the equilibrium. One linearisation of `f` and
    `terms - 1` transposed products; memory is that of one evaluation. `Neumann(1, 1.0)` is
    `OneStep()`; the series converges to the exact gradient where damped iteration converges.

    Args:
      terms: terms of the series.
      damping: the weight of the new iterate; 1 is the plain series `sum_k (J^T)^k g`.

    Raises:
      ValueError: `terms < 1`, or `damping` outside (0, 1].
      TypeError: `terms` is not an int.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdeq
      >>> def z(x):  # 2 x; 1 + 1/2 + 1/4 + 1/8
      ...     return jaxdeq.fixed_point(
      ...         lambda z: 0.5 * z + x, jnp.zeros(()), adjoint=jaxdeq.adjoints.Neumann(terms=4, damping=1.0)
      ...     ).z
      >>> print(f"{jax.grad(z)(1.0):.3f}")
      1.875

    References:
      Geng, Zhang, Bai, Wang & Lin, "On Training Implicit Models", 2021.
    """

    terms: int = 5
    damping: float = 0.5

    def __post_init__(self):
        check.count("terms", self.terms)
        check.fraction("damping", self.damping)

    def solve(self, problem: Problem, operands: Any, z0: Any, limits: Limits, tap: BackwardStats | None) -> Solution:
        def pullback(apply, params, z, g, limits):
            _, vjp = jax.vjp(apply, params, z)
            start = jax.tree.map(lambda x: self.damping * x, g)

            # Horner's scheme: u <- damping g + (damping J^T + (1 - damping) I) u.
            def step(u, _):
                return tree.axpy(1.0, start, tree.axpy(self.damping, tree.sub(vjp(u)[1], u), u)), None

            u, _ = lax.scan(step, start, length=self.terms - 1)
            return vjp(u)[0], None

        return with_pullback(problem, operands, z0, limits, tap, pullback)
