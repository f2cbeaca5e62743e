"""Batches of independent problems, and how the cost of a step grows."""

from collections.abc import Callable, Iterator
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import against, contenders, peers, problems
from benchmarks.cases import RTOL, Plan, Row, checked, facts
from benchmarks.contenders import Answer, Solve
from benchmarks.problems import Problem
from benchmarks.timing import Ratio, exactly, interleave, ratio
from jaxdeq import solvers

BUDGET = 20  # steps that the looser solve of a mixed batch may take
PARTS = 4  # smaller batches
HARDEST, LOOSER = "hardest alone", f"one batch, at most {BUDGET} steps"


def vmap(plan: Plan) -> Iterator[Row]:
    """Time of a solve and its gradient for 64 small problems under `vmap`, in that of the native batch."""
    problem = problems.dense(4, 8) if plan.tiny else problems.dense(64, 64)
    g, exact = against.gradient_of(problem)
    native = against.compiled(longest(contenders.by_rows(solvers.Anderson())), problem, g, exact, (1.0,))
    assert native, "the native batch does not find the answer"
    default = {"jaxdeq Anderson()": contenders.DEFAULT["Anderson()"]}
    everyone = default | ({} if plan.tiny else {"jaxdeq Picard()": contenders.SOLVERS["Picard()"], **peers.installed()})
    found = {name: against.compiled(vmapped(s), problem, g, exact, against.LOOSER) for name, s in everyone.items()}
    runs = {name: c.gradient for name, c in found.items() if c}
    times = interleave({"native": native.gradient, **runs}, plan.repetitions)
    for name, c in found.items():
        target = 1.3 if name in default else None
        if c is None:
            yield Row("vmap", problem.name, name, None, target)
        else:
            each = ratio(times[name], times["native"])
            yield Row("vmap", problem.name, name, each, target, *facts(problem, c.answer), c.error)


def vmapped(solve: Solve) -> Solve:
    """Every row by itself, with the same weights."""

    def apply(f, z0, params, rtol):
        w, x = params
        return jax.vmap(lambda z, x: solve(f, z, (w, x), rtol))(z0, x)

    return longest(apply)


def longest(solve: Solve) -> Solve:
    """With the steps of the slowest row."""

    def apply(f, z0, params, rtol):
        answer = solve(f, z0, params, rtol)
        return Answer(answer.z, jnp.max(answer.steps))

    return apply


def mixed(plan: Plan) -> Iterator[Row]:
    """Time to solve a batch of easy and hard problems, in that of a batch as large of the hardest one alone."""
    ways = mixtures(plan.tiny)
    times = interleave({name: run for name, (_, run) in ways.items()}, plan.repetitions)
    for name, (problem, run) in list(ways.items())[1:]:
        answers = run()
        whole = Answer(jnp.concatenate([a.z for a in answers]), max(a.steps.max() for a in answers))
        each: Ratio | None = ratio(times[name], times[HARDEST])
        if name != LOOSER:  # whose answer is not meant to be as good
            each = checked(problem, whole, each)
        yield Row("mixed", problem.name, name, each, 1.1 if name == "one batch" else None, *facts(problem, whole))


def waste(plan: Plan) -> Iterator[Row]:
    """Share of the evaluations of rows that were spent on rows already finished; not a time."""
    for name, (problem, run) in list(mixtures(plan.tiny).items())[1:]:
        steps = [np.asarray(answer.steps) for answer in run()]
        share = 1 - sum(s.sum() for s in steps) / sum(s.max() * s.size for s in steps)
        most = float(max(s.max() for s in steps))
        yield Row("waste", problem.name, name, exactly(float(share)), None, most)


@cache
def mixtures(tiny: bool) -> dict[str, tuple[Problem, Callable[[], list[Answer]]]]:
    """Ways to solve a batch, the hardest problem alone first; each gives an answer for each of its parts."""
    problem = problems.mixed(8, 8) if tiny else problems.mixed(64, 512, hardest=0.95)
    rows = len(problem.z0)
    w, x, rate = problem.params
    order = np.random.default_rng(0).permutation(rows)
    shuffled = problem._replace(params=(w, x[order], rate[order]))
    full, short = (
        jax.jit(lambda z0, p, s=contenders.by_rows(solvers.Anderson(), n): s(problem.f, z0, p, RTOL))
        for n in (1000, BUDGET)
    )

    def solve(run, each: Problem, parts: int) -> tuple[Problem, Callable[[], list[Answer]]]:
        w, x, rate = each.params
        pieces = [(z, (w, *p)) for z, *p in zip(*(jnp.split(a, parts) for a in (each.z0, x, rate)), strict=True)]
        return each, lambda: [run(*piece) for piece in pieces]

    hardest = problem._replace(params=(w, jnp.repeat(x[-1:], rows, 0), jnp.repeat(rate[-1:], rows, 0)))
    return {
        HARDEST: solve(full, hardest, 1),
        "one batch": solve(full, shuffled, 1),
        f"{PARTS} batches": solve(full, shuffled, PARTS),
        f"{PARTS} batches, sorted by difficulty": solve(full, problem, PARTS),
        LOOSER: solve(short, shuffled, 1),
    }


def scaling(plan: Plan) -> Iterator[Row]:
    """Time of a step, in bare evaluations of `f`, by the batch, the width of the state and the history."""
    batches, widths, histories = ((4,), (8,), (2,)) if plan.tiny else ((16, 64, 256), (256, 512, 2048), (2, 5, 10, 20))
    points = [(batch, 512, 5) for batch in batches]
    points += [(64, width, 5) for width in widths]
    points += [(64, 512, history) for history in histories]
    if plan.tiny:
        points = [(4, 8, 2)]
    for batch, width, history in dict.fromkeys(points):
        problem = problems.dense(batch, width)
        run = contenders.forward(contenders.ours(solvers.Anderson(history)), problem, RTOL)
        times = interleave({"f": contenders.bare(problem), "solve": run}, plan.repetitions)
        answer = run()
        each: Ratio | None = ratio(times["solve"] / float(answer.steps), times["f"])
        each = checked(problem, answer, each)
        yield Row("scaling", problem.name, f"Anderson({history})", each, None, *facts(problem, answer))


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {case.__name__: case for case in (vmap, mixed, waste, scaling)}
