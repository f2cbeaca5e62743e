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
    done: jax.Array  # steps made


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
        dtype = tree.real_dtype(*(x.dtype for x in jax.tree.leaves(z0)))
        gram = tree.full(z0, f.batch, 0, dtype, (self.history, self.history))
        return AndersonState(z0, z0, room, room, gram, jnp.int32(0))

    def step(self, f: Map, state: AndersonState) -> AndersonState:
        weights = self._weights(state)
        z = tree.where(state.done > 0, tree.mix(weights, state.moves), state.z)
        fz = f(z)
        residual = tree.sub(fz, z)
        move = fz if self.damping == 1 else tree.axpy(self.damping, residual, z)
        slot = state.done % self.history
        residuals = tree.put(state.residuals, slot, residual)
        row = tree.dot(residuals, residual, f.batch + 1)
        gram = lax.dynamic_update_index_in_dim(state.gram, row, slot, 0)
        gram = lax.dynamic_update_index_in_dim(gram, row, slot, 1)
        return AndersonState(z, fz, tree.put(state.moves, slot, move), residuals, gram, state.done + 1)

    def _weights(self, state: AndersonState) -> jax.Array:
        """The minimiser, `[history, *batch]`; the newest iterate alone where it does not exist."""
        index = jnp.arange(self.history, dtype=jnp.int32).reshape(-1, *(1,) * (state.gram.ndim - 2))
        filled = index < state.done
        newest = (index == (state.done - 1) % self.history).astype(state.gram.dtype)
        # In units of each residual's own norm, the matrix has a unit diagonal: its conditioning,
        # and so the ridge's meaning, no longer depends on how far the residuals have fallen.
        square = jnp.diagonal(state.gram, axis1=0, axis2=1)
        square = jnp.moveaxis(square, -1, 0)
        usable = filled & (square > 0) & jnp.isfinite(square)
        scale = jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, square, 1)), 0)
        matrix = state.gram * scale[:, None] * scale[None, :]
        y = solve_positive(matrix, self.ridge, scale)
        weights = y * scale
        total = jnp.sum(weights, axis=0)
        weights = weights / jnp.where(total != 0, total, 1)
        good = jnp.all(jnp.isfinite(weights), axis=0) & (total > 0)
        return jnp.where(good, weights, newest)


def solve_positive(matrix: jax.Array, ridge: float, rhs: jax.Array) -> jax.Array:
    """Solves `(matrix + (ridge + round-off) I) x = rhs` for a unit-diagonal semidefinite matrix.

    A Cholesky factorisation written out: the matrix is tiny, one a problem, and a library call
    would cost a kernel launch (on a GPU, dozens) for what is a few dozen multiplications.
    Shapes: matrix `[n, n, *batch]`, rhs `[n, *batch]`.
    """
    n = matrix.shape[0]
    floor = ridge + 4 * n * float(jnp.finfo(matrix.dtype).eps)
    lower: dict[tuple[int, int], jax.Array] = {}
    for j in range(n):
        pivot = 1 + floor - sum((lower[j, k] ** 2 for k in range(j)), start=jnp.zeros_like(rhs[j]))
        lower[j, j] = jnp.sqrt(jnp.maximum(pivot, floor))
        for i in range(j + 1, n):
            inner = matrix[i, j] - sum((lower[i, k] * lower[j, k] for k in range(j)), start=jnp.zeros_like(rhs[j]))
            lower[i, j] = inner / lower[j, j]
    x = [rhs[i] for i in range(n)]
    for i in range(n):
        x[i] = (x[i] - sum((lower[i, k] * x[k] for k in range(i)), start=jnp.zeros_like(rhs[i]))) / lower[i, i]
    for i in reversed(range(n)):
        x[i] = (x[i] - sum((lower[k, i] * x[k] for k in range(i + 1, n)), start=jnp.zeros_like(rhs[i]))) / lower[i, i]
    return jnp.stack(x)
