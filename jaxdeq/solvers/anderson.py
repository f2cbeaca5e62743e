"""Anderson acceleration."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._eliminate import eliminate
from jaxdeq._types import Map


class AndersonState(NamedTuple):
    z: Any
    fz: Any
    moves: Any  # [history] of (1 - damping) z + damping f(z)
    residuals: Any  # [history] of f(z) - z
    gram: jax.Array  # [history, history, *batch]: inner products of the residuals
    slot: jax.Array  # which entry of the history comes next
    next: Any  # where to evaluate `f` next


@dataclass(frozen=True)
class Anderson:
    """Mixes the last iterates so that their residuals cancel.

    Picks weights `a`, summing to one, that minimise `||sum_i a_i (f(z_i) - z_i)||`, and moves to
    `sum_i a_i ((1 - damping) z_i + damping f(z_i))`. On linear maps it is as fast as restarted
    GMRES, and it needs no contraction. One evaluation of `f` a step; holds `2 * history` copies
    of `z`. Each step updates one row of the Gram matrix of residuals.

    Args:
      history: iterates mixed, the newest included; 1 is `Picard(damping)`.
      damping: the weight of the new iterate; 1 is a full step.
      ridge: Tikhonov term, relative to the size of each residual. Larger values are more robust
        far from the solution, smaller ones faster near it.

    Raises:
      ValueError: `history < 1`, `damping` outside (0, 1], or `ridge < 0`.
      TypeError: `history` is not an int.

    Example:
      >>> import jax.numpy as jnp, jaxdeq
      >>> z, stats = jaxdeq.fixed_point(jnp.cos, jnp.ones(()), solver=jaxdeq.solvers.Anderson(history=2))
      >>> print(f"{z:.3f} after {stats.steps} evaluations")
      0.739 after 5 evaluations

    References:
      Anderson, "Iterative Procedures for Nonlinear Integral Equations", 1965.
      Walker & Ni, "Anderson Acceleration for Fixed-Point Iterations", 2011.
    """

    history: int = 5
    damping: float = 1.0
    ridge: float = 1e-5

    def __post_init__(self):
        check.count("history", self.history)
        check.fraction("damping", self.damping)
        check.nonnegative("ridge", self.ridge)

    def init(self, f: Map, z0: Any) -> AndersonState:
        room = tree.zeros(z0, self.history)
        moves = jax.tree.map(lambda r, z: r + z, room, z0)  # the newest one at first: `z0` itself
        dtype = tree.real_dtype(*(x.dtype for x in jax.tree.leaves(z0)))
        gram = tree.full(z0, f.batch, 0, dtype, (self.history, self.history))
        return AndersonState(z0, z0, moves, room, gram, jnp.uint32(0), z0)

    def step(self, f: Map, state: AndersonState) -> AndersonState:
        slot = state.slot
        z = state.next
        fz = f(z)
        residual = tree.sub(fz, z)
        move = fz if self.damping == 1 else tree.axpy(self.damping, residual, z)
        # With the residuals before their update. That waits for the products, since it leaves out what they
        # cannot hold; XLA thus updates in place, where it copied each history up to four times a step. (A step
        # at 64 x 512 with 10 iterates takes 1.6 evaluations of a tanh layer, and 2.3 the other way round.)
        row = tree.dot(state.residuals, residual, f.batch + 1)
        here = self._slots(row.ndim) == slot
        row = jnp.where(here, tree.dot(residual, residual, f.batch), row)
        usable = jnp.isfinite(jnp.sum(row, axis=0))
        row = jnp.where(usable, row, 0)
        residuals = tree.put(state.residuals, slot, tree.keep(usable, residual))
        gram = jnp.where(here, row[:, None], jnp.where(here[:, None], row, state.gram))
        moves = tree.put(state.moves, slot, move)
        state = AndersonState(z, fz, moves, residuals, gram, (slot + 1) % self.history, z)
        return state._replace(next=tree.mix(self._weights(state), moves))

    def _weights(self, state: AndersonState) -> jax.Array:
        """The minimiser, `[history, *batch]`; the newest iterate alone where it does not exist."""
        weights = solve_ones(state.gram, self.ridge)
        total = jnp.sum(weights, axis=0)
        good = (total > 0) & jnp.isfinite(total)
        newest = (self._slots(weights.ndim) + 1) % self.history == state.slot
        return jnp.where(good, weights / jnp.where(good, total, 1), newest.astype(weights.dtype))

    def _slots(self, ndim: int) -> np.ndarray:
        """The slots' numbers, `[history, 1, ...]`."""
        return np.arange(self.history, dtype=np.uint32).reshape(-1, *(1,) * (ndim - 1))


def solve_ones(gram: jax.Array, ridge: float) -> jax.Array:
    """Solves `(gram + (ridge + round-off) diag(gram)) x = 1` for a semidefinite matrix.

    The ridge in units of each diagonal entry makes the conditioning, and so the ridge's meaning,
    independent of how far the residuals have fallen. Entries of `x` whose diagonal entry is 0 are
    0. Such a matrix needs no pivoting. Shapes: gram `[n, n, *batch]`, result `[n, *batch]`.
    """
    n = len(gram)
    here = np.eye(n, dtype=bool).reshape(n, n, *(1,) * (gram.ndim - 2))
    growth = 1 + ridge + 4 * n * float(jnp.finfo(gram.dtype).eps)
    return eliminate(jnp.where(here, growth * gram, gram), jnp.ones_like(gram[0]), floor=0.0)
