"""The one forward loop: it owns tolerances, budget, best iterate, NaN stop and trace."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdeq import _tree as tree
from jaxdeq._types import Limits, Map, Solution, Solver, Stats, Status

RUNNING = -1  # the status of a problem that has not stopped
NOISE = 64  # machine epsilons: below this, a residual that stops falling is round-off ...
COARSE = 1 / 16  # ... unless it is above this: half of `f(z)` is no round-off, in bfloat16 neither
PATIENCE = 8  # steps without a new lowest residual there, before giving up; an eighth of all, if that is more


class Progress(NamedTuple):
    """The loop's carry: the solver's state, and per problem what was found so far.

    Integers share an array: each kernel of the loop costs time to compile and to launch. (With both norms in one
    vector that saved a quarter of a step's overhead.)
    """

    state: Any
    z: Any  # the best iterate
    residual: jax.Array  # relative, of `z`
    counts: jax.Array  # [3, *batch]: status, `steps`, `since`
    done: jax.Array  # steps made
    trace: jax.Array  # [trace, *batch]

    @property
    def steps(self) -> jax.Array:
        """Evaluations up to the problem's stop."""
        return self.counts[1]

    @property
    def since(self) -> jax.Array:
        """Steps made since the best iterate, after the problem's stop too."""
        return self.counts[2]


def iterate(solver: Solver, f: Map, z0: Any, limits: Limits, trace: int) -> Progress:
    """Runs the solver until every problem has converged, failed, or spent the budget.

    A problem that has stopped keeps its answer whatever the others do. Memory does not depend on
    `limits.max_steps`. `finish` makes a `Solution` of the result.
    """
    progress = start(solver, f, z0, limits, trace)
    advance = lambda p: step(solver, f, limits, p)
    return lax.while_loop(running, advance, progress)


def start(solver: Solver, f: Map, z0: Any, limits: Limits, trace: int) -> Progress:
    full = partial(tree.full, z0, f.batch)
    budget = jnp.asarray(limits.max_steps, jnp.int32)
    state = solver.init(f, z0)
    if hasattr(state, "left"):  # added, so that it is spread over the mesh as the solver's count will be
        state = state._replace(left=state.left + budget)
    zero = full(0, jnp.int32)
    return Progress(
        state=state,
        z=z0,
        residual=full(jnp.inf, jnp.float32),
        counts=jnp.stack([jnp.where(budget > 0, full(RUNNING, jnp.int32), jnp.int32(Status.MAX_STEPS)), zero, zero]),
        done=jnp.int32(0),
        trace=full(jnp.nan, jnp.float32, (trace,)),
    )


def running(p: Progress) -> jax.Array:
    return jnp.any(p.counts[0] == RUNNING)


def step(solver: Solver, f: Map, limits: Limits, p: Progress) -> Progress:
    """One step of the solver, measured."""
    state = solver.step(f, p.state)
    made = p.state.left - state.left if hasattr(state, "left") else 1
    z, fz = lax.stop_gradient((state.z, state.fz))
    error, size = tree.norms((_difference(fz, z), fz), f.batch)
    residual = relative(error, size)
    finite = ~jnp.isnan(residual)

    eps = tree.resolution(z)
    rtol = jnp.maximum(jnp.asarray(limits.rtol, size.dtype), 2 * eps)
    converged = finite & (error <= jnp.asarray(limits.atol, size.dtype) + rtol * size)
    before, steps, since = p.counts
    active = before == RUNNING
    better = active & finite & (converged | (residual < p.residual))
    since = jnp.where(better, 0, since + 1)
    lowest = jnp.where(better, residual, p.residual)
    steps = jnp.where(active, steps + made, steps)
    at_noise = (lowest <= min(NOISE * eps, COARSE)) & (since >= jnp.maximum(PATIENCE, steps // 8))
    given_up = at_noise | (steps >= jnp.asarray(limits.max_steps, jnp.int32))
    status = jnp.where(given_up, jnp.int32(Status.MAX_STEPS), jnp.int32(RUNNING))
    status = jnp.where(finite, status, jnp.int32(Status.NONFINITE))
    status = jnp.where(active, jnp.where(converged, jnp.int32(Status.CONVERGED), status), before)
    if hasattr(state, "active"):
        state = state._replace(active=status == RUNNING)
    return Progress(
        state=state,
        z=tree.where(better, state.z, p.z),
        residual=lowest,
        counts=jnp.stack([status, steps, since]),
        done=p.done + 1,
        trace=record(p.trace, p.done, jnp.where(active, residual, jnp.nan)),
    )


def record(trace: jax.Array, index: jax.Array, residual: jax.Array) -> jax.Array:
    """The trace with this step's residual, if there is still room."""
    if not trace.shape[0]:
        return trace
    written = lax.dynamic_update_index_in_dim(trace, residual, index, 0)
    return jnp.where(index < trace.shape[0], written, trace)


def relative(error: jax.Array, size: jax.Array) -> jax.Array:
    """`error / size` as a finite float32, 0 where both are; NaN where one of them is not finite."""
    ratio = error / jnp.where(size > 0, size, jnp.finfo(size.dtype).tiny)
    ratio = jnp.minimum(ratio, float(jnp.finfo(jnp.float32).max)).astype(jnp.float32)
    return jnp.where(jnp.isfinite(error) & jnp.isfinite(size), ratio, jnp.nan)


def finish(p: Progress) -> Solution:
    status, steps, _ = p.counts
    status = jnp.where(status == RUNNING, jnp.int32(Status.MAX_STEPS), status)
    return Solution(p.z, Stats(steps, p.residual, status, jnp.moveaxis(p.trace, 0, -1)))


def _difference(fz, z):
    """`fz - z` in float32 or better, so that half precision neither rounds nor overflows it."""
    return jax.tree.map(lambda a, b: tree.wide(a) - tree.wide(b), fz, z)
