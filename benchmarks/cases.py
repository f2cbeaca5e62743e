"""What is measured. Each case yields rows; a target is an upper bound."""

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxdeq
from benchmarks import contenders, peers, problems
from benchmarks.problems import Problem
from benchmarks.timing import Ratio, exactly, interleave, ratio

RTOL = 1e-5


class Row(NamedTuple):
    """One line of the results: a contender on a problem, in the case's unit."""

    case: str
    problem: str
    contender: str
    ratio: Ratio | None  # None: refused, because the answer is wrong
    target: float | None
    steps: float | None = None
    residual: float | None = None
    gradient_error: float | None = None
    more: bool = False  # whether more of it is better


class Plan(NamedTuple):
    repetitions: int
    sizes: str  # "tiny", which only show that everything runs, "laptop" or "gpu"

    @property
    def tiny(self) -> bool:
        return self.sizes == "tiny"


def step(plan: Plan) -> Iterator[Row]:
    """Time of a step of a solve to residual 1e-5, in bare evaluations of `f`."""
    for width, target in [(16, None)] if plan.tiny else [(1024, 1.1), (4096, 1.1)]:
        problem = problems.dense(64, width)
        solves = contenders.DEFAULT | {"Broyden(10)": contenders.SOLVERS["Broyden(10)"]}
        runs = {name: contenders.forward(solve, problem, RTOL) for name, solve in solves.items()}
        times = interleave({"f": contenders.bare(problem), **runs}, plan.repetitions)
        for name, run in runs.items():
            answer = run()
            each = checked(problem, answer, ratio(times[name] / float(answer.steps), times["f"]))
            yield Row("step", problem.name, name, each, target, *facts(problem, answer))


def compile(plan: Plan) -> Iterator[Row]:
    """Time to trace and compile a solve and its gradient, in that of `f` and of its vjp."""
    # With a function of its own each time, which no library has traced before.
    value = lambda apply: lambda problem: lambda params, z0: jnp.sum(apply(lambda z, p: problem.f(z, p), z0, params))
    gradient = lambda apply, by: lambda problem: jax.value_and_grad(value(apply)(problem), by)
    bare = lambda f, z, p: f(z, p)

    def compiling(problem: Problem, *programs: Callable) -> Callable[[], object]:
        def run():
            jax.clear_caches()
            return [jax.jit(program(problem)).lower(problem.params, problem.z0).compile() for program in programs]

        return run

    ours = contenders.DEFAULT | {"Picard()": contenders.SOLVERS["Picard()"]}
    everyone = ours | peers.installed()
    solves = {name: lambda f, z, p, s=solve: s(f, z, p, RTOL).z for name, solve in everyone.items()}
    solves["two bare loops"] = contenders.two_loops
    cell = problems.CELL[plan.sizes]
    for make in (*problems.ALL[plan.sizes], cell):
        problem = make()
        runs = {name: compiling(problem, gradient(solve, 0)) for name, solve in solves.items()}
        units = {"": compiling(problem, value(bare), gradient(bare, (0, 1)))}
        if make is cell:
            units[", both in one program"] = compiling(problem, gradient(bare, (0, 1)))
        times = interleave({**units, **runs}, plan.repetitions, shortest=0.0)
        for unit in units:
            for name in runs:
                target = 1.5 if make is cell and name in ours else None
                yield Row("compile", f"{problem.name}{unit}", name, ratio(times[name], times[unit]), target)


def memory(plan: Plan) -> Iterator[Row]:
    """Temporary bytes of the gradient of `f` and of a solve, in those of one state; not a time."""
    solved = lambda n: lambda f, z, p: jaxdeq.fixed_point(f, z, p, max_steps=n).z
    applied = {"f": lambda f, z, p: f(z, p), **{f"Anderson(), max_steps={n}": solved(n) for n in (10, 1000)}}
    for name, solve in peers.installed().items():
        applied[name] = lambda f, z, p, s=solve: s(f, z, p, RTOL).z
    few, many = (f"Anderson(), max_steps={n}" for n in (10, 1000))
    for make in problems.ALL[plan.sizes]:
        problem = make()
        sizes = {name: temporaries(problem, apply) for name, apply in applied.items()}
        for name, size in sizes.items():
            yield Row("memory", problem.name, name, exactly(size), sizes[few] if name == many else None)


def temporaries(problem: Problem, apply: Callable) -> float:
    """Of the gradient of a sum of squares, in sizes of a state."""
    loss = lambda params, z0: jnp.sum(apply(problem.f, z0, params) ** 2)
    compiled = jax.jit(jax.grad(loss)).lower(problem.params, problem.z0).compile()
    return compiled.memory_analysis().temp_size_in_bytes / problem.z0.nbytes


def overhead(plan: Plan) -> Iterator[Row]:
    """Time of a step on a state of 100 numbers, in that of a loop that only carries as much."""
    problem, steps = problems.counter(100), 1000
    names = ("Picard()", "Anderson(5)", "Broyden(10)")
    solves = {name: contenders.SOLVERS[name] for name in names} | {"Picard, by hand": contenders.by_hand}
    runs = {name: contenders.forward(solve, problem, 0.0) for name, solve in solves.items()}
    room = jnp.zeros((2, 5, *problem.z0.shape))  # as much as Anderson(5) keeps
    count = lambda carry: (carry[0] + 1, carry[1] + 1.0, carry[2])
    empty = jax.jit(lambda carry: jax.lax.while_loop(lambda c: c[0] < steps, count, carry))
    start = (jnp.int32(0), problem.z0, room)
    times = interleave({"empty": lambda: empty(start), **runs}, plan.repetitions)
    for name, run in runs.items():
        made = float(run().steps)
        each = ratio(times[name] / made, times["empty"] / steps)
        yield Row("overhead", problem.name, name, each, 3.0 if name in names else None, made)


def bare_loop(plan: Plan) -> Iterator[Row]:
    """Time of a step of a solve, in that of an evaluation of `f` among 20 and nothing else, in a loop and without."""
    # Without a loop, XLA's defaults for a GPU should record them as one CUDA graph (command buffers), to be replayed.
    loop = lambda f, z, p: jax.lax.fori_loop(0, 20, lambda _, z: f(z, p), z)
    straight = lambda f, z, p: functools.reduce(lambda z, _: f(z, p), range(20), z)
    sizes = {"tiny": [(4, 16)], "laptop": [(64, 1024)], "gpu": [(64, 1024), (1024, 1024), (1024, 4096)]}
    for problem in (problems.dense(*size) for size in sizes[plan.sizes]):
        units = {
            unit: functools.partial(jax.jit(apply, static_argnums=0), problem.f, problem.z0, problem.params)
            for unit, apply in {"": loop, ", without a loop": straight}.items()
        }
        names = ("Picard()", "Anderson(5)", "Broyden(10)")
        runs = {name: contenders.forward(contenders.SOLVERS[name], problem, RTOL) for name in names}
        times = interleave({**units, **runs}, plan.repetitions)
        for unit in units:
            for name, run in runs.items():
                answer = run()
                each = checked(problem, answer, ratio(times[name] / float(answer.steps), times[unit] / 20))
                yield Row("bare_loop", f"{problem.name}{unit}", name, each, 1.1, *facts(problem, answer))


def imports(plan: Plan) -> Iterator[Row]:
    """Time to import jaxdeq, in that of jax; each in a process of its own."""
    code = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
    seconds = lambda name: float(subprocess.run(
        [sys.executable, "-c", code.format(name)], capture_output=True, check=True, text=True
    ).stdout)  # fmt: skip
    rounds = [(seconds("jaxdeq"), seconds("jax")) for _ in range(2 if plan.tiny else max(7, plan.repetitions))]
    ours, unit = np.array(rounds[1:]).T  # the first finds files that no cache has
    yield Row("imports", "import", "jaxdeq", ratio(ours, unit), 1.15)


def facts(problem: Problem, answer: contenders.Answer) -> tuple[float, float]:
    return float(answer.steps), problems.residual(problem, answer.z)


def checked(problem: Problem, answer: contenders.Answer, time: Ratio) -> Ratio | None:
    """The time, if the answer is one."""
    return time if problems.residual(problem, answer.z) <= 1.05 * RTOL else None


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {
    case.__name__: case for case in (step, bare_loop, overhead, compile, memory, imports)
}
