"""Other libraries as contenders, as far as they are installed: with the settings that users start from, and a longer
history for Anderson acceleration, as ours have.

Their stop rules differ. What each is asked for is therefore chosen by measurement: the loosest tolerance
whose answer and gradient are as good as ours are asked to be (see `against.compiled`).
"""

import atexit
import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.contenders import Answer, Solve
from benchmarks.problems import Problem

STEPS = 1000


def jaxopt(name: str, **settings: Any) -> Solve:
    """Its implicit gradient; `rtol` becomes absolute, in units of the answer's size."""
    import jaxopt

    def solve(f, z0, params, rtol):
        size = z0.size**0.5  # states here are of order one
        solver = getattr(jaxopt, name)(f, maxiter=STEPS, tol=rtol * size, **settings)
        z, state = solver.run(z0, params)
        return Answer(z, state.iter_num)

    return solve


def optimistix(name: str, **settings: Any) -> Solve:
    """Its default adjoint builds the Jacobian, too large here; this one solves by GMRES."""
    import lineax
    import optimistix

    def solve(f, z0, params, rtol):
        solver = getattr(optimistix, name)(rtol=rtol, atol=rtol, **settings)
        adjoint = optimistix.ImplicitAdjoint(lineax.GMRES(rtol=rtol, atol=rtol, restart=20, max_steps=STEPS))
        found = optimistix.fixed_point(f, solver, z0, params, max_steps=STEPS, throw=False, adjoint=adjoint)
        return Answer(found.value, found.stats["num_steps"])

    return solve


def banax(name: str, **settings: Any) -> Solve:
    import banax

    def solve(f, z0, params, rtol):
        solver = lambda: getattr(banax.solver, name)(rtol=rtol, max_steps=STEPS, **settings)
        found = banax.adjoint.Implicit(solver(), solver())((f, (params,)), z0)
        return Answer(found.value, found.stats.steps)

    return solve


ALL: dict[str, Callable[[], Solve]] = {
    "jaxopt FixedPointIteration": lambda: jaxopt("FixedPointIteration"),
    "jaxopt AndersonAcceleration": lambda: jaxopt("AndersonAcceleration"),
    "jaxopt AndersonAcceleration(10)": lambda: jaxopt("AndersonAcceleration", history_size=10),
    "optimistix FixedPointIteration": lambda: optimistix("FixedPointIteration"),
    "banax Picard": lambda: banax("Picard"),
    "banax Anderson": lambda: banax("Anderson"),
    "banax Anderson(10)": lambda: banax("Anderson", depth=10),
    "banax Broyden": lambda: banax("Broyden"),
}


def installed() -> dict[str, Solve]:
    """By name, those whose library can be imported."""
    return {name: make() for name, make in ALL.items() if importlib.util.find_spec(name.split()[0])}


def torch_python() -> str | None:
    """The interpreter of an environment that has torchdeq, if there is one."""
    return os.environ.get("TORCH_PYTHON") or None


class TorchDEQ:
    """torchdeq on one problem, in another process, whose interpreter `TORCH_PYTHON` names.

    A request costs some 50 microseconds on top, which only the smallest problem could notice. The
    process ends with this one.
    """

    SOLVERS = ("fixed_point_iter", "anderson", "broyden")

    def __init__(self, problem: Problem, g: jax.Array):
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name)
        self.answer = path / "answer.npz"
        leaves = {f"p{i}": np.asarray(p) for i, p in enumerate(jax.tree.leaves(problem.params))}
        np.savez(path / "problem.npz", kind=problem.kind, z0=problem.z0, g=g, **leaves)
        worker = Path(__file__).parent / "torch_worker.py"
        command = [str(torch_python()), str(worker), str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(self.close)

    def ask(self, request: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "done\n":
            raise RuntimeError(f"the torchdeq worker failed on {request!r}")

    def prepare(self, solver: str, tolerance: float) -> tuple[Answer, list[np.ndarray]]:
        """Solves once; `gradient` and `forward` with the same words repeat that."""
        self.ask(f"prepare {solver} {tolerance}")
        with np.load(self.answer) as file:
            count = sum(name[0] == "p" for name in file.files)
            return Answer(file["z"], file["steps"]), [file[f"p{i}"] for i in range(count)]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()
