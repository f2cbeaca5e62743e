"""The solvers against other libraries': the same problem, to the same residual, in the same run."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import contenders, peers, problems
from benchmarks.cases import RTOL, Plan, Row, facts
from benchmarks.contenders import Answer, Solve
from benchmarks.problems import Problem
from benchmarks.timing import interleave, ratio

LOOSER = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.001)  # what a peer may be asked for, in units of what is wanted
GRADIENT = 2e-3  # relative error allowed: the worst conditioned problem multiplies residuals by a hundred
TARGETS = {("gradient", "stiff 64 x 512", "jaxdeq Anderson(10)"): 150.0}


class Contender(NamedTuple):
    """A library on a problem, as functions without arguments."""

    gradient: Callable[[], Any]
    forward: Callable[[], Any]
    answer: Answer
    error: float  # of the gradient


def forward(plan: Plan) -> Iterator[Row]:
    """Time of a solve to residual 1e-5, in bare evaluations of `f`."""
    yield from race(plan, "forward")


def gradient(plan: Plan) -> Iterator[Row]:
    """Time of a solve and its gradient, both to residual 1e-5, in bare evaluations of `f`."""
    yield from race(plan, "gradient")


def race(plan: Plan, what: str) -> Iterator[Row]:
    for problem in all_problems(plan):
        found = prepare(problem)
        runs = {name: getattr(c, what) for name, c in found.items() if c}
        times = interleave({"f": contenders.bare(problem), **runs}, plan.repetitions)
        for name, c in found.items():
            if c is None:
                yield Row(what, problem.name, name, None, None)
            else:
                each = ratio(times[name], times["f"])
                target = TARGETS.get((what, problem.name, name))
                yield Row(what, problem.name, name, each, target, *facts(problem, c.answer), c.error)


def all_problems(plan: Plan) -> list[Problem]:
    if plan.tiny:
        return [problems.dense(4, 16), problems.mixed(4, 8)]
    return [
        problems.dense(64, 256),
        problems.dense(64, 1024),
        problems.dense(64, 4096),
        problems.attention(8, 64, 128),
        problems.images(8, 32, 24),
        problems.dense(1024, 1024)._replace(name="a million unknowns"),
        problems.stiff(64, 512),
        problems.mixed(64, 256),
    ]


def prepare(problem: Problem) -> dict[str, Contender | None]:
    """All contenders, compiled; None where one does not find the answer."""
    draw = np.random.default_rng(1).standard_normal
    g = jnp.asarray(draw(problem.z0.shape), jnp.float32)
    exact = problems.exact_gradient(problem, g)
    found: dict[str, Contender | None] = {
        f"jaxdeq {name}": compiled(solve, problem, g, exact, (1.0,)) for name, solve in contenders.SOLVERS.items()
    }
    found |= {name: compiled(solve, problem, g, exact, LOOSER) for name, solve in peers.installed().items()}
    if problem.kind and "TORCH_PYTHON" in os.environ:
        found |= {f"torchdeq {name}": in_torch(name, problem, g, exact) for name in peers.TorchDEQ.SOLVERS}
    return found


def compiled(solve: Solve, problem: Problem, g: jax.Array, exact: Any, looser: tuple[float, ...]) -> Contender | None:
    """With the loosest tolerance whose answer has the residual that is wanted, and whose gradient is right."""
    for factor in looser:
        run = contenders.with_gradient(solve, problem, g, factor * RTOL)
        try:
            answer, by_params = run()
        except (RuntimeError, ValueError, TypeError, FloatingPointError):  # their way to say that it did not converge
            continue
        error = right(problem, answer, by_params, exact)
        if error is not None:
            return Contender(run, contenders.forward(solve, problem, factor * RTOL), answer, error)
    return None


def in_torch(solver: str, problem: Problem, g: jax.Array, exact: Any) -> Contender | None:
    """As `compiled`, for torchdeq."""
    worker = peers.TorchDEQ(problem, g)
    for factor in LOOSER:
        answer, by_params = worker.prepare(solver, factor * RTOL)
        error = right(problem, answer, by_params, exact)
        if error is not None:
            return Contender(lambda: worker.ask("gradient"), lambda: worker.ask("forward"), answer, error)
    worker.close()
    return None


def right(problem: Problem, answer: Answer, by_params: Any, exact: Any) -> float | None:
    """The gradient's error; None if it or the residual is too large."""
    error = problems.distance(by_params, exact)
    return error if problems.residual(problem, answer.z) <= 1.05 * RTOL and error <= GRADIENT else None


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {case.__name__: case for case in (forward, gradient)}
