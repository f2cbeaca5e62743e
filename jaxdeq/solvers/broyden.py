"""Broyden's method with limited memory."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._eliminate import eliminate
from jaxdeq._search import Search, judge
from jaxdeq._types import Map


class BroydenState(NamedTuple):
    z: Any
    fz: Any
    dz: Any  # [history] unit vectors: differences of iterates
    df: Any  # [history]: the differences of `f` that go with them, in the same unit
    matrix: jax.Array  # [history, history, *batch]: see `Broyden`; oldest pair first
    against: jax.Array  # [history, *batch]: inner products of `dz` and the residual; oldest first
    done: jax.Array  # steps made
    search: Search | None
    next: Any  # where to evaluate `f` next


@dataclass(frozen=True)
class Broyden:
    """Quasi-Newton: learns the Jacobian from the steps it makes.

    Starting from `-I`, each pair of differences `s_i = z_{i+1} - z_i` and `y_i`, of the residual
    `g(z) = f(z) - z`, changes the estimate `J` of the Jacobian of `g` by the least that makes
    `J s_i = y_i` ("good" Broyden). The step `-J^{-1} g` then is, with `w_i = s_i + y_i`,

        g + sum_i c_i w_i,  where K c = (s_i . g)_i,
        K_ij = -s_i . y_j if pair i is no newer than pair j, else -s_i . w_j,

    which is built from the last `history` pairs alone: a pair that leaves takes all that it
    contributed with it, so the method goes on as before once its memory is full. A pair without
    information (no move, or a move along which `J` would become singular) is left out.

    One evaluation of `f` a step; holds `2 * history` copies of `z`. Leaves of `z` are one vector.

    Args:
      history: pairs kept. More is faster on stiff and on rotating maps.
      line_search: whether a step must lower `||g||` (by Armijo's rule). A trial that does not, or
        is not finite, is discarded and followed by a shorter one; the pair that it gives is kept,
        so the direction improves too. Each trial is one step and one evaluation of `f`.

    Raises:
      ValueError: `history < 1`.
      TypeError: `history` is not an int, or `line_search` not a bool.

    Example:
      >>> import jax.numpy as jnp, jaxdeq
      >>> z, stats = jaxdeq.fixed_point(jnp.cos, jnp.ones(()), solver=jaxdeq.solvers.Broyden())
      >>> print(f"{z:.3f} after {stats.steps} evaluations")
      0.739 after 5 evaluations

    References:
      Broyden, "A Class of Methods for Solving Nonlinear Simultaneous Equations", 1965.
      Byrd, Nocedal & Schnabel, "Representations of Quasi-Newton Matrices and their Use in Limited
      Memory Methods", 1994, section 6.
    """

    history: int = 8
    line_search: bool = False

    def __post_init__(self):
        check.count("history", self.history)
        check.flag("line_search", self.line_search)

    def init(self, f: Map, z0: Any) -> BroydenState:
        room = tree.zeros(z0, self.history)
        dtype = tree.real_dtype(*(x.dtype for x in jax.tree.leaves(z0)))
        full = lambda value, *shape: tree.full(z0, f.batch, value, dtype, shape)
        matrix, against = full(0, self.history, self.history), full(0, self.history)
        search = Search(full(1), full(jnp.inf)) if self.line_search else None
        return BroydenState(z0, z0, room, room, matrix, against, jnp.int32(0), search, z0)

    def step(self, f: Map, state: BroydenState) -> BroydenState:
        z = state.next
        fz = f(z)
        slot, g = state.done % self.history, tree.sub(fz, z)
        s, w = tree.sub(z, state.z), tree.sub(fz, state.fz)
        y = tree.sub(w, s)
        # All inner products of a step, none waiting for another: one small all-reduce on a mesh. With the
        # history before its update, which then is made in place (see Anderson).
        across, ahead = tree.dot(state.dz, g, f.batch + 1), tree.dot(state.df, s, f.batch + 1)
        ss, sy, sg = (tree.dot(s, x, f.batch) for x in (s, y, g))

        # The first step has not moved yet, so that its pair is not usable.
        finite = jnp.isfinite(ss + sy + sg + jnp.sum(across, axis=0) + jnp.sum(ahead, axis=0))
        usable = finite & (ss > jnp.finfo(ss.dtype).tiny)
        inverse = jax.lax.rsqrt(jnp.where(usable, ss, 1))
        unit = lambda x: jnp.where(usable, x * inverse, 0)
        pair = (tree.keep(usable, tree.scale(inverse, x)) for x in (s, w))
        dz, df = (tree.put(past, slot, x) for past, x in zip((state.dz, state.df), pair, strict=True))

        # From the second oldest pair, for the oldest is the one replaced, to the newest.
        across, ahead = (jnp.roll(x, -slot - 1, axis=0)[:-1] for x in (across, ahead))
        column, row = unit(state.against[1:] - across), unit(-ahead)
        matrix = jnp.concatenate([state.matrix[1:, 1:], column[:, None]], axis=1)
        last = jnp.concatenate([row, unit(unit(-sy))[None]])
        matrix = jnp.concatenate([matrix, last[None]])
        against = jnp.concatenate([across, unit(sg)[None]])
        search = state.search
        if search is not None:
            accept, search = judge(search, tree.norm(g, f.batch))
            stay = jnp.concatenate([state.against[1:], unit(sg - sy)[None]])
            z, fz = tree.where(accept, z, state.z), tree.where(accept, fz, state.fz)
            against = jnp.where(accept, against, stay)
        state = BroydenState(z, fz, dz, df, matrix, against, state.done + 1, search, z)
        return state._replace(next=self._propose(state))

    def _propose(self, state: BroydenState) -> Any:
        """The next point at which to evaluate `f`."""
        weights = eliminate(state.matrix, state.against, pivot(state.matrix, state.z))
        weights = jnp.roll(weights, state.done % self.history, axis=0)
        z = tree.axpy(1.0, tree.mix(weights, state.df), state.fz)
        if state.search is None:
            return z
        return tree.axpy(state.search.length, tree.sub(z, state.z), state.z)


def pivot(matrix: jax.Array, z: Any) -> float:
    """A pivot of the matrix no larger than this is round-off."""
    return max(float(jnp.finfo(matrix.dtype).eps) ** 0.5, tree.resolution(z))
