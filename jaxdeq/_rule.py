"""What the adjoints share: solves, and the custom derivative rule around them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdeq import _tree as tree
from jaxdeq._closure import Hoisted, hoist, spread_like
from jaxdeq._collectives import check_alone
from jaxdeq._loop import Progress, finish, iterate
from jaxdeq._split import split
from jaxdeq._types import BackwardStats, Limits, Map, Problem, Solution, Solver

Keep = Callable[[Progress, int], Any]  # (the loop's end, batch) -> arrays whose first axes count problems


def nothing(progress: Progress, batch: int) -> Any:
    return ()


def forward(problem: Problem, operands: Any, z0: Any, limits: Limits) -> Solution:
    """Solves without regard to gradients; see `forward_keeping`."""
    return forward_keeping(problem, operands, z0, limits, nothing)[0]


def forward_keeping(problem: Problem, operands: Any, z0: Any, limits: Limits, keep: Keep) -> tuple[Solution, Any]:
    """Solves without regard to gradients, and returns also what `keep` takes from the loop.

    Under `vmap` it solves one batched problem: a lane that has stopped then costs a comparison a
    step, where a mapped loop would copy all its history.
    """

    def iterated(f, z0, limits):
        progress = iterate(problem.solver, f, z0, limits, problem.trace)
        return finish(progress), keep(progress, f.batch)

    def run(operands, z0, limits):
        return iterated(Map(lambda z: problem.f(operands, z), problem.batch), z0, limits)

    check_alone(problem.f, z0, problem.batch)
    limits = Limits(*map(jnp.asarray, limits))
    if problem.batch:
        return run(operands, z0, limits)
    mappable = jax.custom_batching.custom_vmap(run)

    @mappable.def_vmap
    def run_lanes(lanes, mapped, operands, z0, limits):
        axes = jax.tree.map(lambda is_mapped: 0 if is_mapped else None, mapped)
        spread = lambda x, is_mapped: x if is_mapped else jnp.broadcast_to(x, (lanes, *x.shape))
        z0 = jax.tree.map(spread, z0, mapped[1])
        pairs = zip(jax.tree.leaves((operands, z0)), jax.tree.leaves(mapped[:2]), strict=True)
        z0 = _along(z0, [x for x, is_mapped in pairs if is_mapped])
        f = Map(lambda z: jax.vmap(problem.f, (axes[0], 0))(operands, z), batch=1)
        results = iterated(f, z0, limits)
        return results, jax.tree.map(lambda _: True, results)

    return mappable(operands, z0, limits)


def _along(z: Any, mapped: list[Any]) -> Any:
    """`z` with its lanes over the mesh axis over which others lie, under Explicit axes: `vmap` has them all alike."""
    shardings = [jax.typeof(x).sharding for x in mapped]
    first = next((s for s in shardings if not s.mesh.empty and s.spec and s.spec[0] is not None), None)
    if first is None:
        return z
    spec = lambda x: jax.sharding.PartitionSpec(first.spec[0], *jax.typeof(x).sharding.spec[1:])
    return jax.tree.map(lambda x: jax.sharding.reshard(x, jax.NamedSharding(first.mesh, spec(x))), z)


def with_pullback(
    problem: Problem,
    operands: Any,
    z0: Any,
    limits: Limits,
    tap: BackwardStats | None,
    pullback: Callable,
    keep: Keep | None = None,
) -> Solution:
    """Solves; in reverse mode, the cotangent `g` of the returned `z` goes through `pullback`.

    `pullback(apply, params, z, g, limits)`, where `apply(params, z)` is the map and `params` are
    those operands that can carry a gradient, returns the cotangent of `params` and the gradient
    of `tap`. It may solve equations by an adjoint itself: then second derivatives are right too.
    With `keep`, it gets `(z, kept)` in place of `z`; no derivative goes through what was kept.
    """

    @jax.custom_vjp
    def run(operands, z0, limits, tap):
        return forward_keeping(problem, operands, z0, limits, keep or nothing)

    def run_forward(operands, z0, limits, tap):
        solution, kept = run(operands, z0, limits, tap)
        return (solution, kept), (operands, (solution.z, kept) if keep else solution.z, limits)

    def run_backward(saved, cotangent):
        operands, z, limits = saved
        pick, merge = parameters(operands)
        apply = lambda params, z: problem.f(merge(params), z)
        grads, report = pullback(apply, pick(operands), z, cotangent[0].z, limits)
        return merge(grads, [None] * len(operands)), None, None, report

    run.defvjp(run_forward, run_backward)
    if tap is not None:
        tap = spread_like(tap, jax.tree.map(lambda x: jax.typeof(tree.full(z0, problem.batch, 0, x.dtype)), tap))
    return run(operands, z0, limits, tap)[0]


def parameters(operands: list[Any]) -> tuple[Callable, Callable]:
    """Which operands can carry a gradient, as two functions.

    `pick(values)` takes what belongs to those from a list like the operands; `merge(params, others)` puts it back
    in its places among others, by default the operands.
    """
    inexact = [jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact) for x in operands]

    def merge(params, others=operands):
        values = iter(params)
        return [next(values) if is_param else x for x, is_param in zip(others, inexact, strict=True)]

    return lambda values: [x for x, is_param in zip(values, inexact, strict=True) if is_param], merge


def solve(how: Callable, solver: Solver, f: Callable, z0: Any, limits: Limits, batch: int) -> Solution:
    """Solves `z = f(z)` inside a trace, by `how(problem, operands, z0, limits)`; `f` may close over anything."""
    jaxpr, operands, _ = hoist(f, z0)
    rest, operands = split(Hoisted(jaxpr, jax.tree.structure(z0)), operands)
    return how(Problem(rest, solver, batch, trace=0), operands, z0, limits)
