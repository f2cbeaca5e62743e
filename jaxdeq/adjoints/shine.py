"""The gradient by Broyden's estimate from the forward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._eliminate import eliminate
from jaxdeq._loop import Progress, relative
from jaxdeq._rule import with_pullback
from jaxdeq._types import BackwardStats, Limits, Map, Problem, Solution, Status
from jaxdeq.solvers import Broyden
from jaxdeq.solvers.broyden import BroydenState, pivot


@dataclass(frozen=True)
class Shine:
    """Shares the inverse estimate: takes what Broyden's method has learnt in place of a backward solve.

    At the end of a solve by `Broyden` there is an estimate `P` of `(I - df/dz)^{-1}`; the unknown `u`
    of `Implicit` is taken to be `P^T g`. One transposed evaluation of `f`, no backward solve. How
    good that is depends on how many directions the solve has been through: a longer `history` and
    a tighter `rtol` help (not down to round-off, where differences are noise), and so does `refine`:
    corrections `u <- u + length P^T r`, with `r = g + (df/dz)^T u - u` and the length that makes `r`
    smallest. The residual of `u` goes to `tap`, and as steps the transposed evaluations.

    Holds the `2 * history` copies of `z` of the solver until the backward pass. In second
    derivatives the estimate counts as constant.

    Args:
      refine: corrections, each a transposed product; the first takes one more.
      fallback: where the norm of `u` is larger than this times that of `g`, `u` is `g`, as with
        `OneStep`; None: only where `u` is not finite. Each problem of a batch by itself.

    Raises:
      ValueError: `refine < 0`, or `fallback < 0`.
      TypeError: `refine` is not an int; in a solve, a solver other than `Broyden`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdeq
      >>> def z(x):  # 2 x
      ...     return jaxdeq.fixed_point(
      ...         lambda z: 0.5 * z + x, jnp.zeros(()), solver=jaxdeq.solvers.Broyden(), adjoint=jaxdeq.adjoints.Shine()
      ...     ).z
      >>> print(f"{jax.grad(z)(1.0):.3f}")
      2.000

    References:
      Ramzi, Mannel, Bai, Starck, Ciuciu & Moreau, "SHINE: SHaring the INverse Estimate from the
      forward pass for bi-level optimization and implicit models", 2022.
    """

    refine: int = 0
    fallback: float | None = None

    def __post_init__(self):
        check.count("refine", self.refine, least=0)
        if self.fallback is not None:
            check.nonnegative("fallback", self.fallback)

    def solve(self, problem: Problem, operands: Any, z0: Any, limits: Limits, tap: BackwardStats | None) -> Solution:
        solver, batch = problem.solver, problem.batch
        if not isinstance(solver, Broyden):
            raise TypeError(f"Shine takes its estimate from solver=Broyden(...), and got {solver!r}")

        def pullback(apply, params, z, g, limits):
            z, inverse = z
            _, vjp = jax.vjp(apply, params, z)
            unit, size = tree.unit(g, batch)
            u = inverse.transposed(unit, batch)
            length, plain = tree.norms((u, unit), batch)
            trusted = jnp.isfinite(length)
            if self.fallback is not None:
                trusted &= length <= self.fallback * plain
            u = tree.where(trusted, u, unit)

            if self.refine:
                u = self._refined(lambda u: vjp(u)[1], inverse, unit, u, batch)
            u = tree.scale(size, u)
            grads, product = vjp(u)
            return grads, None if tap is None else self._report(u, tree.axpy(1.0, product, g), limits, batch)

        problem = Problem(problem.f, _Frozen(solver), batch, problem.trace)
        return with_pullback(problem, operands, z0, limits, tap, pullback, _inverse)

    def _refined(self, product: Callable, inverse: "_Inverse", g: Any, u: Any, batch: int) -> Any:
        """Corrections along `P^T r`, with `r` the residual, each as long as lowers its norm most."""

        def correct(carry, _):
            u, r = carry
            along = inverse.transposed(r, batch)
            change = tree.sub(along, product(along))
            size = tree.dot(change, change, batch)
            length = jnp.where(size > 0, tree.dot(change, r, batch) / jnp.where(size > 0, size, 1), 0)
            return (tree.axpy(length, along, u), tree.axpy(-length, change, r)), None

        r = tree.sub(tree.axpy(1.0, product(u), g), u)
        return lax.scan(correct, (u, r), length=self.refine)[0][0]

    def _report(self, u: Any, following: Any, limits: Limits, batch: int) -> BackwardStats:
        """How far `u` is from `g + (df/dz)^T u`, which costs no further product."""
        error, size = tree.norms((tree.sub(following, u), following), batch)
        residual = relative(error, size)
        status = jnp.where(residual <= limits.rtol, Status.CONVERGED, Status.MAX_STEPS)
        status = jnp.where(jnp.isnan(residual), Status.NONFINITE, status)
        steps = self.refine + 2 if self.refine else 1
        return BackwardStats(jnp.full_like(residual, steps), residual, status.astype(jnp.float32))


class _FrozenState(NamedTuple):
    z: Any
    fz: Any
    inner: BroydenState
    active: jax.Array  # [*batch]: whether the problem goes on; the loop writes it


@dataclass(frozen=True)
class _Frozen:
    """The solver, with what a problem has learnt left as it was when it stopped."""

    solver: Broyden

    def init(self, f: Map, z0: Any) -> _FrozenState:
        return _FrozenState(z0, z0, self.solver.init(f, z0), tree.full(z0, f.batch, True, bool))

    def step(self, f: Map, state: _FrozenState) -> _FrozenState:
        old, new = state.inner, self.solver.step(f, state.inner)
        slot = old.done % self.solver.history
        still = lambda a, b: tree.put(a, slot, tree.where(state.active, tree.get(a, slot), tree.get(b, slot)))
        matrix = jnp.where(state.active, new.matrix, old.matrix)
        inner = new._replace(dz=still(new.dz, old.dz), df=still(new.df, old.df), matrix=matrix)
        return _FrozenState(inner.z, inner.fz, inner, state.active)


class _Inverse(NamedTuple):
    """An estimate of `(I - df/dz)^{-1}`: `I + sum_ij w_i (K^{-1})_ij s_j^T`, see `Broyden`; axes of a batch first."""

    dz: Any  # [*batch, history] of s
    df: Any  # [*batch, history] of w
    matrix: jax.Array  # [*batch, history, history]: K, oldest pair first
    oldest: jax.Array  # [*batch]: where among the pairs the oldest is

    def transposed(self, g: Any, batch: int) -> Any:
        """The transpose of the estimate, times `g`."""
        dz, df = (jax.tree.map(lambda x: jnp.moveaxis(x, batch, 0), pairs) for pairs in (self.dz, self.df))
        matrix = jnp.moveaxis(self.matrix, (-1, -2), (0, 1))  # the transpose
        along = tree.dot(df, g, batch + 1)
        places = np.arange(len(along), dtype=np.int32).reshape(-1, *(1,) * batch)
        in_order = jnp.take_along_axis(along, (places + self.oldest) % len(along), axis=0)
        weights = eliminate(matrix, in_order, pivot(matrix, g))
        weights = jnp.take_along_axis(weights, (places - self.oldest) % len(along), axis=0)
        return tree.axpy(1.0, tree.mix(weights, dz), g)


def _inverse(progress: Progress, batch: int) -> _Inverse:
    """What the steps have taught, up to the best iterate: later ones moved within round-off."""
    inner = progress.state.inner
    history = len(inner.matrix)
    first = lambda x: jnp.moveaxis(x, 0, batch)
    dz, df = (jax.tree.map(first, pairs) for pairs in (inner.dz, inner.df))
    late = progress.since - (progress.done - progress.steps)
    kept = np.arange(history, dtype=np.int32) < history - late[..., None]
    matrix = jnp.moveaxis(inner.matrix, (0, 1), (-2, -1))
    return _Inverse(dz, df, jnp.where(kept[..., None] & kept[..., None, :], matrix, 0), progress.steps % history)
