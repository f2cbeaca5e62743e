"""Fixed-point iteration whose steps can be undone."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._types import Map


class ReversibleState(NamedTuple):
    z: Any
    fz: Any
    before: Any  # the iterate before


@dataclass(frozen=True)
class Reversible:
    """Repeats `z_{k+1} = (1 - damping) z_{k-1} + damping f(z_k)`, which determines `z_{k-1}` too.

    Written for pairs of states, `y <- (1 - damping) y + damping f(z)` and then `z <- (1 - damping) z
    + damping f(y)`: one sequence, of which `y` and `z` are every other element. Converges where
    the spectral radius of the Jacobian is below one, slower than `Picard`: each evaluation multiplies
    an error by `sqrt(1 - damping)` at best. What it is for is `adjoints.Reversible`, which
    differentiates the steps themselves without storing most of them.

    One evaluation of `f` a step; holds two copies of `z` and one of `f(z)`.

    Args:
      damping: the weight of the new iterate; below 1, where a step would forget what was before.

    Raises:
      ValueError: `damping` outside (0, 1).

    Example:
      >>> import jax.numpy as jnp, jaxdeq
      >>> z, stats = jaxdeq.fixed_point(jnp.cos, jnp.ones(()), solver=jaxdeq.solvers.Reversible())
      >>> print(f"{z:.3f} after {stats.steps} evaluations")
      0.739 after 37 evaluations

    References:
      McCallum, Arora & Foster, "Reversible Deep Equilibrium Models", 2025.
    """

    damping: float = 0.8

    def __post_init__(self):
        check.fraction("damping", self.damping)
        if self.damping == 1:
            raise ValueError("damping must be below 1, where steps cannot be undone; got 1. Picard() has no such limit")

    def init(self, f: Map, z0: Any) -> ReversibleState:
        return ReversibleState(z0, z0, z0)

    def step(self, f: Map, state: ReversibleState) -> ReversibleState:
        # With all fields equal to `z0`, the first step evaluates `f` at `z0` itself.
        z = tree.axpy(self.damping, tree.sub(state.fz, state.before), state.before)
        return ReversibleState(z, f(z), state.z)
