"""Anderson acceleration."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._types import Map


class AndersonState(NamedTuple):
    z: Any
    fz: Any
    moves: Any  # [history] of (1 - damping) z + damping f(z)
    residuals: Any  # [history] of f(z) - z
    gram: jax.Array  # [history, history, *batch]: inner products of the residuals
    slot: jax.Array  # which entry of the history comes next


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
        return AndersonState(z0, z0, moves, room, gram, jnp.uint32(0))

    def step(self, f: Map, state: AndersonState) -> AndersonState:
        slot = state.slot
        z = tree.mix(self._weights(state), state.moves)
        fz = f(z)
        residual = tree.sub(fz, z)
        move = fz if self.damping == 1 else tree.axpy(self.damping, residual, z)
        residuals = tree.put(state.residuals, slot, residual)
        row = tree.dot(residuals, residual, f.batch + 1)
        here = self._slots(row.ndim) == slot
        gram = jnp.where(here, row[:, None], jnp.where(here[:, None], row, state.gram))
        return AndersonState(z, fz, tree.put(state.moves, slot, move), residuals, gram, (slot + 1) % self.history)

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
    0. Gauss-Jordan elimination, which needs no pivoting here: the matrix is tiny, one a problem,
    and a library call would cost a kernel launch (on a GPU, dozens) for a few dozen
    multiplications. Shapes: gram `[n, n, *batch]`, result `[n, *batch]`.
    """
    n, ones = len(gram), (1,) * (gram.ndim - 2)
    here = np.eye(n, dtype=bool).reshape(n, n, *ones)
    growth = 1 + ridge + 4 * n * float(jnp.finfo(gram.dtype).eps)
    matrix = jnp.where(here, growth * gram, gram)
    table = jnp.concatenate([matrix, jnp.ones_like(matrix[:, :1])], axis=1)

    def eliminate(i, table):
        pivot = table[i, i]
        row = table[i] / jnp.where(pivot > 0, pivot, jnp.inf)
        return jnp.where(jnp.asarray(here)[:, i, None], row, table - table[:, i, None] * row)

    return lax.fori_loop(0, n, eliminate, table)[:, -1]
