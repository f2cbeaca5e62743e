"""The phantom gradient, unrolled."""

from dataclasses import dataclass
from typing import Any

import jax
from jax import lax

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._rule import with_pullback
from jaxdeq._types import BackwardStats, Limits, Problem, Solution


@dataclass(frozen=True)
class Phantom:
    """The gradient of a few damped steps that start at the equilibrium.

    Back-propagates through `steps` repetitions of `z <- (1 - damping) z + damping f(z)`: as many
    evaluations of `f` and as many transposed ones, no backward solve. `Phantom(1, 1.0)` is
    `OneStep()`; with more steps it approaches the exact gradient if `f` contracts. The steps
    run in the backward pass; the returned `z` is the solver's. Memory grows with `steps`.

    Args:
      steps: applications of `f`.
      damping: the weight of the new iterate; 1 is a full step.

    Raises:
      ValueError: `steps < 1`, or `damping` outside (0, 1].
      TypeError: `steps` is not an int.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdeq
      >>> def z(x):  # 2 x; 1 + 1/2 + 1/4 + 1/8
      ...     return jaxdeq.fixed_point(
      ...         lambda z: 0.5 * z + x, jnp.zeros(()), adjoint=jaxdeq.adjoints.Phantom(steps=4, damping=1.0)
      ...     ).z
      >>> print(f"{jax.grad(z)(1.0):.3f}")
      1.875

    References:
      Geng, Zhang, Bai, Wang & Lin, "On Training Implicit Models", 2021.
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self):
        check.count("steps", self.steps)
        check.fraction("damping", self.damping)

    def solve(self, problem: Problem, operands: Any, z0: Any, limits: Limits, tap: BackwardStats | None) -> Solution:
        def pullback(apply, params, z, g, limits):
            def unrolled(params):
                def step(z, _):
                    return tree.axpy(self.damping, tree.sub(apply(params, z), z), z), None

                return lax.scan(step, z, length=self.steps)[0]

            _, vjp = jax.vjp(unrolled, params)
            return vjp(g)[0], None

        return with_pullback(problem, operands, z0, limits, tap, pullback)
