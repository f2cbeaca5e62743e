"""The solvers against other libraries': the same problem, to the same residual, in the same run."""

from collections.abc import Callable, Iterator
from functools import cache
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
TARGETS = {("gradient", "stiff 64 x 512", "jaxdeq Anderson(10, every=3)"): 150.0}


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
    for make in problems.ALL[plan.sizes]:
        problem, found = prepare(make)
        runs = {name: getattr(c, what) for name, c in found.items() if c}
        times = interleave({"f": contenders.bare(problem), **runs}, plan.repetitions)
        for name, c in found.items():
            if c is None:
                yield Row(what, problem.name, name, None, None)
            else:
                each = ratio(times[name], times["f"])
                target = TARGETS.get((what, problem.name, name))
                yield Row(what, problem.name, name, each, target, *facts(problem, c.answer), c.error)


@cache
def prepare(make: Callable[[], Problem]) -> tuple[Problem, dict[str, Contender | None]]:
    """A problem and all contenders, compiled once for both cases; None where one does not find the answer."""
    problem = make()
    g, exact = gradient_of(problem)
    solvers = contenders.SOLVERS | (contenders.HARD if problem.name.startswith(("stiff", "mixed")) else {})
    found: dict[str, Contender | None] = {
        f"jaxdeq {name}": compiled(solve, problem, g, exact, (1.0,)) for name, solve in solvers.items()
    }
    found |= {name: compiled(solve, problem, g, exact, LOOSER) for name, solve in peers.installed().items()}
    if problem.kind and peers.torch_python():
        worker = peers.TorchDEQ(problem, g)
        found |= {f"torchdeq {name}": in_torch(worker, name, problem, exact) for name in worker.SOLVERS}
    return problem, found


def gradient_of(problem: Problem) -> tuple[jax.Array, Any]:
    """A cotangent, and the exact gradient for it."""
    g = jnp.asarray(np.random.default_rng(1).standard_normal(problem.z0.shape), jnp.float32)
    return g, problems.exact_gradient(problem, g)


def compiled(solve: Solve, problem: Problem, g: jax.Array, exact: Any, looser: tuple[float, ...]) -> Contender | None:
    """With the loosest tolerance whose answer has the residual that is wanted, and whose gradient is right."""

    def attempt(factor: float) -> Contender | None:
        run = contenders.with_gradient(solve, problem, g, factor * RTOL)
        try:
            answer, by_params = run()
        except (RuntimeError, ValueError, TypeError, FloatingPointError):  # their way to say that it did not converge
            return None
        error = right(problem, answer, by_params, exact)
        return (
            None if error is None else Contender(run, contenders.forward(solve, problem, factor * RTOL), answer, error)
        )

    return loosest(attempt, looser)


def in_torch(worker: peers.TorchDEQ, solver: str, problem: Problem, exact: Any) -> Contender | None:
    """As `compiled`, for torchdeq."""

    def attempt(factor: float) -> Contender | None:
        answer, by_params = worker.prepare(solver, factor * RTOL)
        error = right(problem, answer, by_params, exact)
        run = lambda what: lambda: worker.ask(f"{what} {solver} {factor * RTOL}")
        return None if error is None else Contender(run("gradient"), run("forward"), answer, error)

    return loosest(attempt, LOOSER)


def loosest(attempt: Callable[[float], Contender | None], factors: tuple[float, ...]) -> Contender | None:
    """The first that is right. One by one: some libraries fail with tighter tolerances than they can reach."""
    return next(filter(None, map(attempt, factors)), None)


def right(problem: Problem, answer: Answer, by_params: Any, exact: Any) -> float | None:
    """The gradient's error; None if it or the residual is too large, or not a number."""
    error = problems.distance(by_params, exact)
    return error if problems.residual(problem, answer.z) <= 1.05 * RTOL and error <= GRADIENT else None


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {case.__name__: case for case in (forward, gradient)}
