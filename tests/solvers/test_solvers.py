"""Every solver against every problem, and what holds for all of them."""

from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdeq import Status, adjoints, fixed_point, solvers
from tests.problems import PROBLEMS


@dataclass(frozen=True)
class Row:
    """A solver, and what to expect of it. A new solver is one row more."""

    solver: Any
    small: Any  # with a short memory, for it compiles faster
    quasi_newton: bool = True  # converges on maps that do not contract


ROWS = [
    Row(solvers.Picard(), solvers.Picard(0.9), quasi_newton=False),
    Row(solvers.Anderson(), solvers.Anderson(history=2)),
    Row(solvers.Broyden(), solvers.Broyden(history=2)),
    Row(solvers.Broyden(history=6, line_search=True), solvers.Broyden(history=2, line_search=True)),
    Row(solvers.NewtonKrylov(krylov=8), solvers.NewtonKrylov(krylov=2)),
    Row(solvers.Reversible(), solvers.Reversible(0.9), quasi_newton=False),
]
EVERY = pytest.mark.parametrize("solver", [row.solver for row in ROWS], ids=str)
EVERY_SMALL = pytest.mark.parametrize("solver", [row.small for row in ROWS], ids=str)


def test_every_solver_has_a_row():
    assert {type(row.solver).__name__ for row in ROWS} == set(solvers.__all__)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.solver))
def test_finds_the_equilibrium(row, name):
    p = PROBLEMS[name]
    limits = {"rtol": p.rtol, "max_steps": p.max_steps}
    z, stats = fixed_point(p.f, p.z0, *p.args, solver=row.solver, batched=p.batched, **limits)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(z))
    assert np.all(stats.steps <= p.max_steps)
    if p.picard or row.quasi_newton:
        assert np.all(stats.status == Status.CONVERGED)
        assert np.all(stats.residual <= p.rtol)
        assert p.distance(z) <= p.error
    else:
        assert np.all(stats.status != Status.CONVERGED)


@EVERY
def test_repr_is_the_call_that_makes_it(solver):
    again = eval(repr(solver), vars(solvers))
    assert again == solver
    assert again is not solver
    assert hash(again) == hash(solver)
    assert type(solver)() == type(solver)(**{f.name: f.default for f in fields(solver)})


@EVERY_SMALL
def test_equal_settings_compile_once(solver):
    traces = []

    @jax.jit
    def f(z):
        traces.append(z)
        return jnp.cos(z) / 2

    solve = jax.jit(lambda z, solver: fixed_point(f, z, solver=solver).z, static_argnums=1)
    for equal in (solver, replace(solver)):
        solve(jnp.ones(2), equal)
    assert solve._cache_size() == 1
    assert len(traces) == 1


@EVERY_SMALL
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_budget(solver, dtype):
    """Never exceeded, spent to the end, and no worse for being larger."""
    rate, x = jnp.array([0.9, -0.8, 0.3], dtype), jnp.ones(3, dtype)
    solve = jax.jit(lambda n: fixed_point(lambda z: rate * z + x, x, solver=solver, rtol=0.0, max_steps=n).stats)
    residual = np.inf
    for n in (1, 2, 3, 5, 9):
        stats = solve(n)
        assert 1 <= stats.steps <= n
        assert stats.residual <= residual
        residual = stats.residual
        if stats.status == Status.MAX_STEPS and dtype == jnp.float32:
            assert stats.steps == n


@EVERY_SMALL
def test_the_first_step_is_z0(solver):
    z0 = jnp.array([0.3, -2.0])
    z, stats = fixed_point(jnp.cos, z0, solver=solver, max_steps=1, trace=1)
    np.testing.assert_array_equal(z, z0)
    residual = np.linalg.norm(np.cos(z0) - z0) / np.linalg.norm(np.cos(z0))
    np.testing.assert_allclose([stats.residual, stats.trace[0]], residual, rtol=1e-6)


def plane(z, along, keep, shift):
    """One program for many degenerate maps of two unknowns, which it cannot tell apart."""
    return along * jnp.sum(z) + keep * z + shift


MAPS = {
    "identity": (0.0, 1.0, 0.0),
    "constant": (0.0, 0.0, 1.0),
    "zero": (0.0, 0.0, 0.0),
    "parallel steps": (0.0, 0.5, 1.0),
    "rank one": (-1.5, 0.0, 1.0),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.solver))
def test_degenerate_maps(row):
    """0 divided by 0, in a history that is singular and larger than the state."""
    for name, numbers in MAPS.items():
        z, stats = fixed_point(plane, jnp.full(2, 0.25), *numbers, solver=row.solver, atol=1e-6)
        assert np.all(np.isfinite(z)), name
        if name != "rank one" or row.quasi_newton:  # its eigenvalue is -3
            assert stats.status == Status.CONVERGED, name
            np.testing.assert_allclose(plane(z, *numbers), z, rtol=2e-4, atol=1e-6, err_msg=name)


@EVERY
def test_no_equilibrium_is_never_reported(solver):
    for z0 in (0.0, 0.1, -7.3):
        z, stats = fixed_point(plane, jnp.full(2, z0), 0.0, 1.0, 1.0, solver=solver, max_steps=100)
        assert stats.status == Status.MAX_STEPS
        assert np.all(np.isfinite(z))


@EVERY
def test_starts_at_the_equilibrium(solver):
    p = PROBLEMS["rotating"]
    z = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p.z)
    again, stats = fixed_point(p.f, z, *p.args, solver=solver)
    assert stats.converged
    assert stats.steps <= 9
    assert p.distance(again) < 1e-5
    # And when it cannot stop: a residual of exactly 0, step after step.
    zero, stats = fixed_point(lambda z: z / 2, jnp.zeros(3), solver=solver, rtol=0.0, max_steps=9)
    np.testing.assert_array_equal(zero, 0)


@EVERY_SMALL
def test_gradients_through_the_steps(solver):
    """The steps themselves can be differentiated: no 0 divided by 0 hides in a branch not taken."""
    unrolled = adjoints.Unrolled(length=40, segment=40)
    f = lambda z, a: jnp.cos(a * z)
    find = lambda a: fixed_point(f, jnp.ones(()), a, solver=solver, adjoint=unrolled, rtol=1e-6).z
    z, gradient = jax.value_and_grad(find)(0.8)
    np.testing.assert_allclose(gradient, -z * np.sin(0.8 * z) / (1 + 0.8 * np.sin(0.8 * z)), rtol=1e-4)


def rows(z, x):
    return jnp.tanh(jnp.array([0.1, 0.9, -0.7])[:, None] * jnp.roll(z, 1, axis=1)) + x


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.small))
def test_vmap_equals_separate_solves(row):
    x, rates = jnp.linspace(-1.0, 2.0, 12).reshape(3, 4), jnp.array([0.1, 0.9, -0.7])
    f = lambda z, x, rate: jnp.tanh(rate * jnp.roll(z, 1)) + x
    solve = lambda x, rate: fixed_point(f, x, x, rate, solver=row.small, rtol=1e-5)
    together = jax.jit(jax.vmap(solve))(x, rates)
    one = jax.jit(solve)
    for i in range(3):
        alone = one(x[i], rates[i])
        np.testing.assert_allclose(together.z[i], alone.z, rtol=1e-4, atol=1e-5)
        assert together.stats.steps[i] == alone.stats.steps


@EVERY_SMALL
def test_batch_mates_that_fail(solver):
    x = jnp.linspace(-1.0, 2.0, 12).reshape(3, 4)
    solve = jax.jit(lambda x: fixed_point(rows, jnp.zeros((3, 4)), x, solver=solver, batched=True, rtol=1e-6))
    good = solve(x)
    assert jnp.all(good.stats.converged)
    for bad in (jnp.nan, jnp.inf):
        z, stats = solve(x.at[1].set(bad))
        np.testing.assert_array_equal(stats.status, [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED])
        np.testing.assert_array_equal(z[::2], good.z[::2])


@EVERY
def test_double_precision(solver):
    with jax.enable_x64(True):
        rate = jnp.array([0.5, -0.9, 0.75, 0.1])
        x = jnp.ones(4)
        assert x.dtype == jnp.float64
        z, stats = fixed_point(lambda z: rate * z + x, x, solver=solver, rtol=1e-12, max_steps=500)
        assert stats.converged
        np.testing.assert_allclose(z, 1 / (1 - np.asarray(rate)), rtol=1e-10)


SHAPES = st.sampled_from([[()], [(2,), (1, 3)], [(), (2, 1, 2), (3,)]])  # few, for each compiles anew
CONVERGING = [row.solver for row in ROWS if row.quasi_newton]


@settings(max_examples=8)
@given(shapes=SHAPES, solver=st.sampled_from(CONVERGING), seed=st.integers(0, 99), radius=st.floats(0.0, 2.0))
def test_random_linear_trees(shapes, solver, seed, radius):
    """Any tree is one vector: the answer is that of the equation written as one matrix."""
    rng = np.random.default_rng(seed)
    sizes = [int(np.prod(shape)) for shape in shapes]
    n = sum(sizes)
    spread = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = np.float32(-radius * spread @ np.diag(rng.uniform(size=n)) @ spread.T)
    shift = np.float32(rng.normal(size=n))
    cuts = np.cumsum(sizes)[:-1]
    split = lambda v: [p.reshape(shape) for p, shape in zip(jnp.split(v, cuts), shapes, strict=True)]
    f = lambda z, m, s: split(jnp.dot(m, jnp.concatenate([x.ravel() for x in z]), precision="highest") + s)
    z, stats = fixed_point(f, split(jnp.zeros(n)), matrix, shift, solver=solver, rtol=1e-5, max_steps=200)
    exact = np.linalg.solve(np.eye(n) - np.float64(matrix), np.float64(shift))
    assert stats.converged
    np.testing.assert_allclose(np.concatenate([np.ravel(x) for x in z]), exact, atol=1e-4 * np.linalg.norm(exact))
