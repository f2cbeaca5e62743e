"""Back-propagation through reversible steps, which are computed backwards instead of stored."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq import solvers
from jaxdeq._loop import Progress
from jaxdeq._rule import with_pullback
from jaxdeq._types import BackwardStats, Limits, Map, Problem, Solution


@dataclass(frozen=True)
class Reversible:
    """The exact gradient of the computation itself, as `Unrolled`, with most iterates rebuilt.

    The steps of `solvers.Reversible` can be undone, so that the backward pass walks from the last
    iterates back to the first. Undoing divides by `1 - damping` and so magnifies round-off: by 5 a
    step for 0.8, so that all digits of float32 are lost after ten steps. So pairs of iterates are
    kept, as many steps apart as leave half of the digits: 6 steps for 0.8 in float32, 13 for 0.5.

    Backward, each step costs one evaluation of `f` and one transposed one. Memory is that of the
    pairs: for 0.8, `length / 3` copies of `z`. Reverse mode only; a second derivative raises.

    Args:
      length: the most steps that can be made; a larger `max_steps` of the call is cut to it.

    Raises:
      ValueError: `length < 1`.
      TypeError: `length` is not an int; in a solve, a solver other than `solvers.Reversible`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdeq
      >>> def z(x):  # 2 x
      ...     solver, adjoint = jaxdeq.solvers.Reversible(), jaxdeq.adjoints.Reversible()
      ...     return jaxdeq.fixed_point(lambda z: 0.5 * z + x, jnp.zeros(()), solver=solver, adjoint=adjoint).z
      >>> print(f"{jax.grad(z)(1.0):.3f}")
      2.000

    References:
      McCallum, Arora & Foster, "Reversible Deep Equilibrium Models", 2025.
    """

    length: int = 64

    def __post_init__(self):
        check.count("length", self.length)

    def solve(self, problem: Problem, operands: Any, z0: Any, limits: Limits, tap: BackwardStats | None) -> Solution:
        if not isinstance(problem.solver, solvers.Reversible):
            raise TypeError(
                f"adjoints.Reversible undoes the steps of solver=solvers.Reversible(...), and got {problem.solver!r}"
            )
        limits = limits._replace(max_steps=jnp.minimum(jnp.asarray(limits.max_steps, jnp.int32), self.length))
        apart = _apart(problem.solver.damping, tree.resolution(z0))
        recording = _Recording(problem.solver, apart, -(-self.length // apart))

        def pullback(apply, params, z, g, limits):
            z, kept = z
            return recording.back(apply, params, z, kept, g, problem.batch), None

        recorded = Problem(problem.f, recording, problem.batch, problem.trace)
        return with_pullback(recorded, operands, z0, limits, tap, pullback, _keep)


def _apart(damping: float, eps: float) -> int:
    """Steps between the pairs that are kept: round-off grows to the square root of `eps` in the rebuilt ones."""
    return 2 + int(math.log(eps) / 2 / math.log(1 - damping))


class _Recorded(NamedTuple):
    z: Any
    fz: Any
    inner: Any
    pairs: Any  # [slots] of (z_k, z_{k-1}), the last of each `apart` steps
    last: jax.Array  # [*batch]: the step of the newest pair
    done: jax.Array


class _Kept(NamedTuple):
    """What the backward pass needs, the axes of a batch first."""

    pairs: Any  # [*batch, slots]
    last: jax.Array  # [*batch]: the step of the newest pair
    best: jax.Array  # [*batch]: the step that made the returned `z`


def _keep(progress: Progress, batch: int) -> _Kept:
    pairs = jax.tree.map(lambda p: jnp.moveaxis(p, 0, batch), progress.state.pairs)
    return _Kept(pairs, progress.state.last, progress.done - 1 - progress.since)


class _Step(NamedTuple):
    """Where the walk back is: before step `k`."""

    k: jax.Array
    z: Any  # z_k, rebuilt
    after: Any  # z_{k+1}
    u: Any  # the cotangent of z_{k+1}
    u_after: Any  # and of z_{k+2}
    grads: Any  # of the parameters, in float32 or better


@dataclass(frozen=True)
class _Recording:
    """The solver, which also writes down pairs of iterates; of each problem until it is no longer finite."""

    solver: solvers.Reversible
    apart: int
    slots: int

    def init(self, f: Map, z0: Any) -> _Recorded:
        inner = self.solver.init(f, z0)
        pairs = tree.zeros((z0, z0), self.slots)
        return _Recorded(z0, z0, inner, pairs, tree.full(z0, f.batch, -1, jnp.int32), jnp.int32(0))

    def step(self, f: Map, state: _Recorded) -> _Recorded:
        inner = self.solver.step(f, state.inner)
        finite = jnp.isfinite(tree.peak((inner.z, inner.fz), f.batch)) & (state.last == state.done - 1)
        slot = state.done // self.apart
        pair = tree.where(finite, (inner.z, inner.before), tree.get(state.pairs, slot))
        last = jnp.where(finite, state.done, state.last)
        return _Recorded(inner.z, inner.fz, inner, tree.put(state.pairs, slot, pair), last, state.done + 1)

    def back(self, apply: Callable, params: Any, z: Any, kept: _Kept, g: Any, batch: int) -> Any:
        """The cotangent of `params`.

        Undoes `z_{k+1} = (1 - damping) z_{k-1} + damping f(z_k)`, step by step. Its cotangents follow
        `u_k = damping J_k^T u_{k+1} + (1 - damping) u_{k+2}`, and `g` enters at the step that made the
        returned `z`.
        """
        damping = self.solver.damping
        pairs = jax.tree.map(lambda p: jnp.moveaxis(p, batch, 0), kept.pairs)

        def step(s: _Step) -> _Step:
            pair = tree.get(pairs, s.k // self.apart)
            known = (s.k % self.apart == self.apart - 1) | (s.k == kept.last)
            here = tree.where(known, pair[0], s.z)
            # After the last finite step nothing flows back yet, but 0 times infinity is not 0: at a finite point.
            fz, vjp = jax.vjp(apply, params, tree.where(s.k <= kept.last, here, z))
            by_params, by_z = vjp(tree.scale(damping, s.u))
            undone = tree.scale(1 / (1 - damping), tree.axpy(-damping, fz, s.after))
            before = tree.where(known, pair[1], undone)
            u = tree.axpy(1 - damping, s.u_after, tree.axpy(1.0, tree.keep(s.k == kept.best, g), by_z))
            grads = jax.tree.map(lambda total, x: total + x.astype(total.dtype), s.grads, by_params)
            return _Step(s.k - 1, before, here, u, s.u, grads)

        none = jax.tree.map(jnp.zeros_like, g)
        grads = jax.tree.map(lambda p: jnp.zeros_like(tree.wide(p)), params)
        end = lax.while_loop(lambda s: s.k >= 0, step, _Step(jnp.max(kept.last), z, z, none, none, grads))
        return jax.tree.map(lambda total, p: total.astype(p.dtype), end.grads, params)
