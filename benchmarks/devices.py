"""What a step of a solve sends between devices, read from the compiled program: python -m benchmarks.devices.

The devices are simulated, in a process of their own, so that no other case runs on parts of a processor.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import contenders, problems
from benchmarks.cases import RTOL, Plan, Row
from benchmarks.timing import exactly

LAYOUTS = {"batch": (P("d", None), P(None, None)), "features": (P(None, "d"), P(None, "d"))}  # of z and x, and of w
COLLECTIVE = re.compile(r"= (\([^)]*\)|\S+) (?:all-|reduce-scatter|collective-)[a-z-]*?(?:-start)?\(")
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")


class Found(NamedTuple):
    """In one step, of one device."""

    problem: str
    contender: str
    collectives: int
    bytes: int  # of their results


def collectives(plan: Plan) -> Iterator[Row]:
    """Collectives in one step, of `f` alone and of solves; counted in compiled programs, not a time."""
    alone = {each.problem: each.collectives for each in found(plan.tiny) if each.contender == "f"}
    for each in found(plan.tiny):
        target = None if each.contender == "f" else alone[each.problem] + 1.0  # one small all-reduce more
        yield Row("collectives", each.problem, each.contender, exactly(float(each.collectives)), target)


def traffic(plan: Plan) -> Iterator[Row]:
    """Bytes that a device gets by collectives in one step; counted in compiled programs, not a time."""
    for each in found(plan.tiny):
        yield Row("traffic", each.problem, each.contender, exactly(float(each.bytes)), None)


@cache
def found(tiny: bool) -> list[Found]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={2 if tiny else 8}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.devices", *(["tiny"] if tiny else [])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return [Found(*each) for each in json.loads(done.stdout)]


def main(tiny: bool) -> list[Found]:
    problem = problems.dense(8, 16) if tiny else problems.dense(64, 1024)
    names = ("Anderson(5)",) if tiny else ("Picard()", "Anderson(5)", "Broyden(10)")
    return [
        Found(f"{problem.name}, {layout} over {count}", name, *step(problem, name, layout, count))
        for layout in LAYOUTS
        for count in ((2,) if tiny else (1, 2, 4, 8))
        for name in ("f", *names)
    ]


def step(problem: problems.Problem, name: str, layout: str, count: int) -> tuple[int, int]:
    """Collectives and bytes in a step; of `f` alone, in a loop that does nothing else."""
    mesh = jax.make_mesh((count,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
    rows, weights = (NamedSharding(mesh, spec) for spec in LAYOUTS[layout])
    w, x = problem.params
    params, z0 = (jax.device_put(w, weights), jax.device_put(x, rows)), jax.device_put(problem.z0, rows)
    if name == "f":
        run = lambda z, p, n: jax.lax.fori_loop(0, n, lambda _, z: problem.f(z, p), z)
    else:
        run = lambda z, p, _: contenders.SOLVERS[name](problem.f, z, p, RTOL)
    return in_loops(jax.jit(run).lower(z0, params, 10).compile().as_text())


def in_loops(text: str) -> tuple[int, int]:
    """Collectives in the loops' bodies of a program, and bytes of their results."""
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE))
    bodies = re.findall(r"body=%?([\w.-]+)", text)
    seen: set[str] = set()
    while bodies:
        name = bodies.pop()
        if name not in seen:
            seen.add(name)
            bodies += CALLED.findall(computations[name])
    plain = re.sub(r"/\*.*?\*/", "", "\n".join(computations[name] for name in sorted(seen)))
    results = COLLECTIVE.findall(re.sub(r"\{[^}]*\}", "", plain))
    return len(results), sum(size(result) for result in results)


def size(shapes: str) -> int:
    """Bytes of a result as HLO prints it: `f32[64,128]`, or several in parentheses."""
    total = 0
    for dtype, shape in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shapes):
        bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
        elements = 1
        for n in filter(None, shape.split(",")):
            elements *= int(n)
        total += elements * bits // 8
    return total


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {case.__name__: case for case in (collectives, traffic)}

if __name__ == "__main__":
    print(json.dumps(main("tiny" in sys.argv[1:])))
