"""Who solves it: ours, a line each in `SOLVERS`; those of other libraries are in `peers.py`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxdeq
from benchmarks.problems import Problem
from jaxdeq import adjoints, solvers


class Answer(NamedTuple):
    z: Any
    steps: Any  # evaluations of `f`


MOST = 1000  # evaluations, if nothing else is said
Solve = Callable[[Callable, Any, Any, float], Answer]  # (f, z0, params, rtol), differentiable by params


def ours(solver: Any, adjoint: Any = adjoints.Implicit()) -> Solve:
    def solve(f, z0, params, rtol):
        z, stats = jaxdeq.fixed_point(f, z0, params, solver=solver, adjoint=adjoint, rtol=rtol, max_steps=MOST)
        return Answer(z, stats.steps)

    return solve


def by_rows(solver: Any, max_steps: int = MOST) -> Solve:
    """Each row a problem with a stop of its own; `steps` has a number for each."""

    def solve(f, z0, params, rtol):
        z, stats = jaxdeq.fixed_point(f, z0, params, solver=solver, rtol=rtol, max_steps=max_steps, batched=True)
        return Answer(z, stats.steps)

    return solve


DEFAULT: dict[str, Solve] = {"Anderson()": ours(solvers.Anderson())}
SOLVERS: dict[str, Solve] = {
    "Picard()": ours(solvers.Picard()),
    "Anderson(5)": ours(solvers.Anderson(5)),
    "Anderson(10)": ours(solvers.Anderson(10)),
    "Broyden(10)": ours(solvers.Broyden(10)),
}
HARD: dict[str, Solve] = {  # more where many steps are needed
    "Anderson(20)": ours(solvers.Anderson(20)),
    "Anderson(10, every=3)": ours(solvers.Anderson(10, every=3)),
}


def forward(solve: Solve, problem: Problem, rtol: float) -> Callable[[], Answer]:
    """Runs the compiled solve."""
    run = jax.jit(lambda z0, params: solve(problem.f, z0, params, rtol))
    return lambda: run(problem.z0, problem.params)


def with_gradient(solve: Solve, problem: Problem, g: jax.Array, rtol: float) -> Callable[[], tuple[Answer, Any]]:
    """Runs the compiled solve and the gradient of `sum(g * z)` by the parameters."""

    def loss(params, z0):
        answer = solve(problem.f, z0, params, rtol)
        return (g * answer.z).sum(), answer

    gradient = jax.jit(jax.grad(loss, has_aux=True))

    def run():
        by_params, answer = gradient(problem.params, problem.z0)
        return answer, by_params

    return run


def bare(problem: Problem) -> Callable[[], Any]:
    """Runs one compiled evaluation of `f`: the unit of time."""
    f = jax.jit(problem.f)
    z = f(problem.z0, problem.params)
    return lambda: f(z, problem.params)


def by_hand(f, z0, params, rtol):
    """Plain steps, their relative residual and the best iterate, and nothing else."""

    def step(carry):
        steps, z, best, lowest = carry
        fz = f(z, params)
        residual = jnp.linalg.norm(fz - z) / jnp.linalg.norm(fz)
        return steps + 1, fz, jnp.where(residual < lowest, z, best), jnp.minimum(residual, lowest)

    start = (jnp.int32(0), z0, z0, jnp.float32(jnp.inf))
    steps, _, best, _ = jax.lax.while_loop(lambda c: (c[0] < MOST) & (c[3] > rtol), step, start)
    return Answer(best, steps)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def two_loops(f, z, params):
    """What no solver can compile faster than: ten plain steps, and ten of the adjoint equation; no stop test."""
    return jax.lax.fori_loop(0, 10, lambda _, z: f(z, params), z)


def _two_loops_forward(f, z, params):
    z = two_loops(f, z, params)
    return z, (z, params)


def _two_loops_backward(f, saved, g):
    _, pull = jax.vjp(f, *saved)
    u = jax.lax.fori_loop(0, 10, lambda _, u: g + pull(u)[0], g)
    return jnp.zeros_like(g), pull(u)[1]


two_loops.defvjp(_two_loops_forward, _two_loops_backward)
