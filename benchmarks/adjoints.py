"""Every adjoint on the same problems: what its gradient takes, how far off it is, and what it keeps."""

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks import contenders, problems
from benchmarks.against import gradient_of
from benchmarks.cases import RTOL, Plan, Row, checked, facts, temporaries
from benchmarks.contenders import ours
from benchmarks.problems import Problem
from benchmarks.timing import exactly, interleave, ratio
from jaxdeq import solvers
from jaxdeq.adjoints import Implicit, ImplicitJVP, Neumann, OneStep, Phantom, Reversible, Shine, Unrolled

STIFF = partial(problems.stiff, 64, 512)
LONGEST = 64  # steps that may be differentiated
MIXING = {
    "Implicit()": Implicit(),
    "Implicit(rtol=1e-2)": Implicit(rtol=1e-2),
    "ImplicitJVP()": ImplicitJVP(),
    "OneStep()": OneStep(),
    "Neumann()": Neumann(),
    "Phantom()": Phantom(),
    f"Unrolled({LONGEST})": Unrolled(LONGEST),
}
SOLVES = {f"Anderson(10, every=3), {name}": ours(solvers.Anderson(10, every=3), a) for name, a in MIXING.items()} | {
    "Broyden(10), Shine()": ours(solvers.Broyden(10), Shine()),
    "Broyden(10), Shine(refine=5)": ours(solvers.Broyden(10), Shine(refine=5)),
    f"Picard(), Unrolled({LONGEST})": ours(solvers.Picard(), Unrolled(LONGEST)),
    f"Reversible(), Reversible({LONGEST})": ours(solvers.Reversible(), Reversible(LONGEST)),
}


def problems_of(plan: Plan) -> list[Problem]:
    """Two that contract fast, and one that hardly does: there, a few terms are no gradient."""
    sizes = {
        "tiny": [partial(problems.dense, 4, 16)],
        "laptop": [partial(problems.dense, 64, 1024), partial(problems.attention, 8, 64, 128), STIFF],
        "gpu": [partial(problems.dense, 1024, 4096), partial(problems.attention, 32, 256, 512), STIFF],
    }
    return [make() for make in sizes[plan.sizes]]


def adjoints(plan: Plan) -> Iterator[Row]:
    """Time of a solve to residual 1e-5 and each adjoint's gradient of it, in bare evaluations of `f`."""
    for problem in problems_of(plan):
        g, exact = gradient_of(problem)
        runs = {name: contenders.with_gradient(solve, problem, g, RTOL) for name, solve in SOLVES.items()}
        times = interleave({"f": contenders.bare(problem), **runs}, plan.repetitions)
        for name, run in runs.items():
            answer, found = run()
            each = checked(problem, answer, ratio(times[name], times["f"]))
            error = problems.distance(found, exact)
            yield Row("adjoints", problem.name, name, each, None, *facts(problem, answer), error)


def adjoints_memory(plan: Plan) -> Iterator[Row]:
    """Temporary bytes of a solve and each adjoint's gradient of it, in those of one state; not a time."""
    for problem in problems_of(plan):
        for name, solve in SOLVES.items():
            applied = lambda f, z, p, s=solve: s(f, z, p, RTOL).z
            yield Row("adjoints_memory", problem.name, name, exactly(temporaries(problem, applied)), None)


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {case.__name__: case for case in (adjoints, adjoints_memory)}
