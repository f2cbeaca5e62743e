"""Every adjoint's gradient against its formula, written out with an explicit Jacobian in float64."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdeq
from jaxdeq import adjoints, solvers
from tests.adjoints import exact
from tests.pairs import solver_for


class Row(NamedTuple):
    """An adjoint, and the formula of the unknown that it computes."""

    adjoint: Any
    unknown: Callable


ADJOINTS = {
    "implicit": Row(adjoints.Implicit(solvers.Anderson(3)), exact.implicit),
    "implicit_jvp": Row(adjoints.ImplicitJVP(solvers.Anderson(3)), exact.implicit),
    "unrolled": Row(adjoints.Unrolled(length=100, segment=10), exact.implicit),
    "reversible": Row(adjoints.Reversible(length=100), exact.implicit),
    "shine": Row(adjoints.Shine(refine=60), exact.implicit),
    "one_step": Row(adjoints.OneStep(), exact.series(1, 1.0)),
    "phantom": Row(adjoints.Phantom(), exact.series(5, 0.5)),
    "neumann": Row(adjoints.Neumann(3, 0.9), exact.series(3, 0.9)),
}
SHORT = {
    "Anderson": {"history": 3},
    "Broyden": {"history": 3},
    "NewtonKrylov": {"krylov": 3},
}  # short memories compile fast
SOLVERS = [getattr(solvers, name)(**SHORT.get(name, {})) for name in solvers.__all__]


class Problem(NamedTuple):
    f: Callable  # f(z, params)
    params: Any
    z0: Any
    batched: bool = False


def tanh(z, p):
    return jnp.tanh(z @ p["w"] + p["x"])


def tree(z, p):
    return {"a": jnp.tanh(p["w"] @ z["b"] + p["x"]), "b": 0.4 * jnp.sin(z["a"] * p["x"])}


def spiral(z, p):
    size = jnp.sum(jnp.abs(z))  # not holomorphic
    return p["w"] @ z * jax.lax.complex(jnp.cos(size), jnp.sin(size)) + p["x"]


def problems():
    draw = np.random.default_rng(0).normal
    w, x = 0.25 * draw(size=(5, 5)), draw(size=(3, 5))
    complex_w = 0.1 * (draw(size=(4, 4)) + 1j * draw(size=(4, 4)))
    index, key = jnp.array([2, 0, 1]), jax.random.key(0)

    def closing_over(z, p):
        return jnp.tanh(p * z[index] + 0.1 * jax.random.normal(key, (3,), z.dtype))

    return {
        "tanh": Problem(tanh, {"w": w, "x": x}, np.zeros((3, 5))),
        "batched": Problem(tanh, {"w": w, "x": x}, np.zeros((3, 5)), batched=True),
        "tree": Problem(tree, {"w": w, "x": x[0]}, {"a": np.ones(5), "b": np.zeros(5)}),
        "complex": Problem(spiral, {"w": complex_w, "x": draw(size=4) + 0.5j}, np.zeros(4, complex)),
        "integers_and_keys": Problem(closing_over, np.array(0.4), np.zeros(3)),
    }


PROBLEMS = problems()


def loss(z):
    """Real, and of every part of `z` at its own weight."""
    leaves = jax.tree.leaves(z)
    weigh = lambda i, x: jnp.sum(jnp.abs(x.ravel() - (0.3 + i)) ** 2 / jnp.arange(1.0, x.size + 1))
    return sum(weigh(i, x) for i, x in enumerate(leaves))


@cache
def linearised(name):
    p = PROBLEMS[name]
    z, by_z, by_params = exact.linearise(p.f, p.params, p.z0)
    return jax.grad(loss)(z), by_z, by_params


def gradient(problem, **settings):
    """By the parameters; also checks that the guess gets none."""
    settings = {"rtol": 1e-12, "max_steps": 100, "batched": problem.batched, **settings}
    run = lambda params, z0: loss(jaxdeq.fixed_point(problem.f, z0, params, **settings).z)
    by_params, by_guess = jax.jit(jax.grad(run, (0, 1)))(problem.params, problem.z0)
    assert not any(np.any(g) for g in jax.tree.leaves(by_guess))
    return by_params


def check(name, unknown, **settings):
    problem = PROBLEMS[name]
    g, by_z, by_params = linearised(name)
    want = exact.gradient(by_z, by_params, g, problem.params, unknown)
    chex.assert_trees_all_close(gradient(problem, **settings), want, rtol=1e-7, atol=1e-9)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("row", ADJOINTS.values(), ids=ADJOINTS)
def test_the_formula_on_every_problem(row, name):
    check(name, row.unknown, adjoint=row.adjoint, solver=solver_for(row.adjoint, solvers.Picard()))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("row", [ADJOINTS["implicit"], ADJOINTS["unrolled"]], ids=["implicit", "unrolled"])
def test_exact_with_every_solver(row, solver):
    check("tree", row.unknown, adjoint=row.adjoint, solver=solver)


@pytest.mark.parametrize("backward", SOLVERS, ids=str)
def test_implicit_with_another_backward_solver(backward):
    adjoint = adjoints.Implicit(solver=backward, rtol=1e-11, max_steps=90)
    check("batched", exact.implicit, adjoint=adjoint, solver=solvers.Picard())


def test_one_term_is_one_step():
    rows = [adjoints.OneStep(), adjoints.Phantom(1, 1.0), adjoints.Neumann(1, 1.0)]
    first, *rest = (gradient(PROBLEMS["tanh"], adjoint=a, solver=solvers.Picard()) for a in rows)
    for other in rest:
        chex.assert_trees_all_close(other, first, rtol=1e-12)


@pytest.mark.parametrize("adjoint", [adjoints.Phantom(80, 0.8), adjoints.Neumann(80, 0.8)], ids=str)
def test_many_terms_are_exact(adjoint):
    check("tanh", exact.implicit, adjoint=adjoint, solver=solvers.Picard())


def test_implicit_keeps_its_own_tolerance_and_budget():
    """Looser in the backward pass than forward, as the error shows that is left."""
    by = lambda adjoint: gradient(PROBLEMS["tanh"], adjoint=adjoint, solver=solvers.Picard())["w"]
    right = by(adjoints.Implicit())
    loose = by(adjoints.Implicit(rtol=1e-2))
    assert 1e-6 < np.linalg.norm(loose - right) / np.linalg.norm(right) < 3e-2
    # The best of one iterate is the first, `g`.
    chex.assert_trees_all_close(by(adjoints.Implicit(max_steps=1)), by(adjoints.OneStep()), rtol=1e-9)
