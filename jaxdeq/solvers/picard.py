"""Plain fixed-point iteration."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._types import Map


class PicardState(NamedTuple):
    z: Any
    fz: Any


@dataclass(frozen=True)
class Picard:
    """Repeats `z <- (1 - damping) z + damping f(z)`.

    Converges where `f` contracts: each step multiplies the error by about the spectral radius of the
    Jacobian. One evaluation of `f` a step; holds one copy of `z` and one of `f(z)`.

    Args:
      damping: the weight of the new iterate; 1 is a full step. Smaller values help where the
        Jacobian has eigenvalues below -1.

    Raises:
      ValueError: `damping` outside (0, 1].

    Example:
      >>> import jax.numpy as jnp, jaxdeq
      >>> z, stats = jaxdeq.fixed_point(jnp.cos, jnp.ones(()), solver=jaxdeq.solvers.Picard())
      >>> print(f"{z:.3f} after {stats.steps} evaluations")
      0.739 after 24 evaluations

    References:
      Picard, "Mémoire sur la théorie des équations aux dérivées partielles", 1890.
    """

    damping: float = 1.0

    def __post_init__(self):
        check.fraction("damping", self.damping)

    def init(self, f: Map, z0: Any) -> PicardState:
        return PicardState(z0, z0)

    def step(self, f: Map, state: PicardState) -> PicardState:
        # With both fields equal to `z0`, the first step evaluates `f` at `z0` itself.
        z = tree.axpy(self.damping, tree.sub(state.fz, state.z), state.z) if self.damping != 1 else state.fz
        return PicardState(z, f(z))
