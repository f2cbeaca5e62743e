"""Anderson acceleration."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
        gram = lax.dynamic_update_index_in_dim(state.gram, row, slot, 0)
        gram = lax.dynamic_update_index_in_dim(gram, row, slot, 1)
        return AndersonState(z, fz, tree.put(state.moves, slot, move), residuals, gram, (slot + 1) % self.history)

    def _weights(self, state: AndersonState) -> jax.Array:
        """The minimiser, `[history, *batch]`; the newest iterate alone where it does not exist."""
        weights = solve_ones(state.gram, self.ridge)
        total = jnp.sum(weights, axis=0)
        good = (total > 0) & jnp.isfinite(total)
        index = jnp.arange(1, self.history + 1, dtype=jnp.uint32) % self.history
        newest = (index == state.slot).astype(total.dtype).reshape(-1, *(1,) * total.ndim)
        return jnp.where(good, weights / jnp.where(good, total, 1), newest)


def solve_ones(gram: jax.Array, ridge: float) -> jax.Array:
    """Solves `(gram + (ridge + round-off) diag(gram)) x = 1` for a semidefinite matrix.

    The ridge in units of each diagonal entry makes the conditioning, and so the ridge's meaning,
    independent of how far the residuals have fallen. Entries of `x` whose diagonal entry is 0 or
    not finite are 0. Gauss-Jordan elimination, which needs no pivoting here: the matrix is tiny,
    one a problem, and a library call would cost a kernel launch (on a GPU, dozens) for a few dozen
    multiplications. Shapes: gram `[n, n, *batch]`, result `[n, *batch]`.
    """
    n, dtype = len(gram), gram.dtype
    floor = ridge + 4 * n * float(jnp.finfo(dtype).eps)
    here = jnp.eye(n, dtype=bool).reshape(n, n, *(1,) * (gram.ndim - 2))
    diagonal = jnp.stack([gram[i, i] for i in range(n)])
    usable = (diagonal > 0) & jnp.isfinite(diagonal)
    matrix = jnp.where(here, (1 + floor) * gram, gram)
    matrix = jnp.where(usable[:, None] & usable, matrix, here.astype(dtype))
    lowest = floor * jnp.where(usable, diagonal, 1)  # what a pivot is at least, round-off apart
    table = jnp.concatenate([matrix, usable[:, None].astype(dtype)], axis=1)

    def eliminate(i, table):
        row = table[i] / jnp.maximum(table[i, i], lowest[i])
        return jnp.where(here[:, i, None], row, table - table[:, i, None] * row)

    return lax.fori_loop(0, n, eliminate, table)[:, -1]
