"""Anderson acceleration."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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
    done: jax.Array  # steps made
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
      every: mixes in each `every`-th step; the others go to `(1 - damping) z + damping f(z)`, and
        are cheaper. On slow contractions 3 takes fewer steps than 1 does, with a short history half
        as many. Where `f` does not contract, steps in between lead away from the solution.

    Raises:
      ValueError: `history < 1`, `damping` outside (0, 1], `ridge < 0`, or `every < 1`.
      TypeError: `history` or `every` is not an int.

    Example:
      >>> import jax.numpy as jnp, jaxdeq
      >>> z, stats = jaxdeq.fixed_point(jnp.cos, jnp.ones(()), solver=jaxdeq.solvers.Anderson(history=2))
      >>> print(f"{z:.3f} after {stats.steps} evaluations")
      0.739 after 5 evaluations

    References:
      Anderson, "Iterative Procedures for Nonlinear Integral Equations", 1965.
      Walker & Ni, "Anderson Acceleration for Fixed-Point Iterations", 2011.
      Pratapa, Suryanarayana & Pask, "Anderson Acceleration of the Jacobi Iterative Method", 2016,
      on plain steps in between.
    """

    history: int = 5
    damping: float = 1.0
    ridge: float = 1e-5
    every: int = 1

    def __post_init__(self):
        check.count("history", self.history)
        check.fraction("damping", self.damping)
        check.nonnegative("ridge", self.ridge)
        check.count("every", self.every)

    def init(self, f: Map, z0: Any) -> AndersonState:
        room = tree.zeros(z0, self.history)
        moves = jax.tree.map(lambda r, z: r + z, room, z0)  # the newest one at first: `z0` itself
        dtype = tree.real_dtype(*(x.dtype for x in jax.tree.leaves(z0)))
        gram = tree.full(z0, f.batch, 0, dtype, (self.history, self.history))
        return AndersonState(z0, z0, moves, room, gram, jnp.uint32(0), z0)

    def step(self, f: Map, state: AndersonState) -> AndersonState:
        slot = state.done % self.history
        z = state.next
        fz = f(z)
        residual = tree.sub(fz, z)
        move = fz if self.damping == 1 else tree.axpy(self.damping, residual, z)
        # With the residuals before their update. That waits for the products, since it leaves out what they
        # cannot hold; XLA thus updates in place, where it copied each history up to four times a step. (A step
        # at 64 x 512 with 10 iterates takes 1.6 evaluations of a tanh layer, and 2.3 the other way round.)
        row = tree.dot(state.residuals, residual, f.batch + 1)
        here = np.arange(self.history, dtype=np.uint32).reshape(-1, *(1,) * (row.ndim - 1)) == slot
        row = jnp.where(here, tree.dot(residual, residual, f.batch), row)
        usable = jnp.isfinite(jnp.sum(row, axis=0))
        row = jnp.where(usable, row, 0)
        residuals = tree.put(state.residuals, slot, tree.keep(usable, residual))
        gram = jnp.where(here, row[:, None], jnp.where(here[:, None], row, state.gram))
        moves = tree.put(state.moves, slot, move)
        done = state.done + 1
        mixed = lambda: tree.mix(self._weights(gram, here), moves)
        # A branch: steps in between read one history less. (With 10 iterates and `every=3`, gradients took 0.7 of
        # the time at 64 x 256, 0.96 at 64 x 512.)
        following = mixed() if self.every == 1 else lax.cond(done % self.every == 0, mixed, lambda: move)
        return AndersonState(z, fz, moves, residuals, gram, done, following)

    def _weights(self, gram: jax.Array, newest: jax.Array) -> jax.Array:
        """The minimiser, `[history, *batch]`; the newest iterate alone where it does not exist."""
        weights = solve_ones(gram, self.ridge)
        total = jnp.sum(weights, axis=0)
        good = (total > 0) & jnp.isfinite(total)
        return jnp.where(good, weights / jnp.where(good, total, 1), newest.astype(weights.dtype))


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
