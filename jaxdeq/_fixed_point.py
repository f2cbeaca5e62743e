"""The main function: check, trace, hand to the adjoint."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jaxdeq import _checks as check
from jaxdeq import adjoints, solvers
from jaxdeq._closure import trace_map
from jaxdeq._split import split
from jaxdeq._types import Adjoint, BackwardStats, Limits, Problem, Solution, Solver, Z


def fixed_point(
    f: Callable[..., Z],
    z0: Z,
    *args: Any,
    solver: Solver = solvers.Anderson(),
    adjoint: Adjoint = adjoints.Implicit(),
    rtol: jax.typing.ArrayLike = 1e-4,
    atol: jax.typing.ArrayLike = 0.0,
    max_steps: jax.typing.ArrayLike = 64,
    batched: bool = False,
    trace: int = 0,
    tap: BackwardStats | None = None,
) -> Solution:
    """Solves `z = f(z, *args)` and lets gradients flow through the solution.

    Stops when `norm(f(z) - z) <= atol + rtol * norm(f(z))`, norms taken over all leaves together
    in float32 or better. A relative tolerance below twice the machine epsilon of `z` (of its
    coarsest leaf) counts as that. Not converging is an answer, not an exception: see `Stats.status`.

    Gradients flow to `args` and to every array that `f` closes over; `z0` gets a zero gradient.
    Parts of `f` that do not depend on `z` are evaluated once.

    Args:
      f: the map; returns what `z0` is: the same structure, shapes and dtypes.
      z0: where to start; a pytree of floating or complex arrays.
      *args: further arguments of `f`. Arrays and floats are traced, all else is passed as it is.
      solver: proposes the iterates; see `jaxdeq.solvers`.
      adjoint: decides how gradients flow; see `jaxdeq.adjoints`.
      rtol: relative tolerance. May be traced, as may `atol` and `max_steps`.
      atol: absolute tolerance.
      max_steps: the budget, in evaluations of `f`.
      batched: whether the leading axis of every leaf counts independent problems. Each then has
        its own stop, and its answer does not depend on the others. `f` still gets the whole batch.
      trace: how many residuals to record, from the first step on.
      tap: `BackwardStats.empty()`, to see how the backward solve went; see there.

    Returns:
      `Solution(z, stats)`: the iterate with the lowest residual seen, and its `Stats`.

    Raises:
      TypeError: a leaf of `z0` that is not floating or complex; a result of another structure or
        dtype than `z0`; a setting of the wrong type.
      ValueError: an empty `z0`; a result of another shape; a setting out of range; leaves
        without the common leading axis that `batched` needs; a collective in `f`, under `shard_map`
        with a state that differs from device to device, or under `vmap`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdeq
      >>> z, stats = jaxdeq.fixed_point(jnp.cos, jnp.ones(()))
      >>> print(f"{z:.4f}", stats.converged)
      0.7391 True

    References:
      Bai, Koltun & Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", 2021.
    """
    check.function(f)
    check.solver(solver)
    check.adjoint(adjoint)
    check.count("trace", trace, least=0)
    check.limits(rtol, atol, max_steps)
    check.flag("batched", batched)
    z0 = jax.lax.stop_gradient(check.state(z0, batched))
    check.tap(tap, z0, batched)
    z0, hoisted, operands = trace_map(f, z0, args)
    problem = Problem(hoisted, solver, batch=int(batched), trace=trace)
    return _solve(adjoint, problem, operands, z0, Limits(rtol, atol, max_steps), tap)


@partial(jax.jit, static_argnums=(0, 1))
def _solve(adjoint, problem, operands, z0, limits, tap):
    """One compilation for all eager calls that do the same; inside a trace, a no-op."""
    f, operands = split(problem.f, operands)
    return adjoint.solve(Problem(f, problem.solver, problem.batch, problem.trace), operands, z0, limits, tap)
