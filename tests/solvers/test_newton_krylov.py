"""Newton's method with GMRES: its budget, its linear solver, and where it must not break."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdeq
from jaxdeq import Status, fixed_point
from jaxdeq.solvers import NewtonKrylov
from tests.problems import PROBLEMS, draw

RATE = jnp.array([-3.0, -5.0, 0.9, 0.5])


def test_every_evaluation_and_every_product_is_counted():
    evaluations, products = [], []

    @jax.custom_jvp
    def f(z):
        jax.debug.callback(evaluations.append, z)
        return jnp.cos(z) * jnp.array([0.9, -0.5, 2.0])

    @f.defjvp
    def product(primals, tangents):
        jax.debug.callback(products.append, tangents[0])
        return f(*primals), -jnp.sin(primals[0]) * jnp.array([0.9, -0.5, 2.0]) * tangents[0]

    for max_steps in (1, 2, 4, 7, 30):
        evaluations.clear()
        products.clear()
        solver = NewtonKrylov(krylov=3)
        stats = fixed_point(f, jnp.ones(3), solver=solver, rtol=1e-6, max_steps=max_steps).stats
        jax.effects_barrier()
        assert stats.steps <= max_steps
        assert len(evaluations) + len(products) == stats.steps
        assert len(products) <= 3 * len(evaluations)
    assert stats.converged


def test_a_linear_map_takes_one_newton_step():
    solver = NewtonKrylov(krylov=4, forcing=1e-4)
    z, stats = fixed_point(lambda z: RATE * z + 1, jnp.zeros(4), solver=solver, rtol=1e-4, trace=3)
    assert stats.converged
    assert np.sum(~np.isnan(stats.trace)) == 2  # z0, and the answer
    assert stats.steps <= 2 + 2 * 4
    np.testing.assert_allclose(z, 1 / (1 - RATE), rtol=1e-3)


def test_scale_of_the_equation_does_not_matter():
    """Up to where squares of the residual over- and underflow, and beyond."""
    f = lambda z, x: RATE * z + x
    solve = lambda scale: fixed_point(f, jnp.zeros(4), jnp.full(4, scale), solver=NewtonKrylov(), rtol=1e-5)
    _, plain = solve(1.0)
    for scale in (2.0**-100, 2.0**100):
        z, stats = solve(scale)
        assert stats.converged
        assert stats.steps == plain.steps
        np.testing.assert_allclose(z / scale, 1 / (1 - RATE), rtol=1e-4)


def test_converges_faster_and_faster():
    with jax.enable_x64(True):
        matrix = jnp.asarray(draw(8, 8, seed=12, size=0.6))
        solver = NewtonKrylov(krylov=8, forcing=1e-8)
        f = lambda z: jnp.tanh(matrix @ z + 0.5)
        trace = fixed_point(f, jnp.zeros(8), solver=solver, rtol=1e-14, max_steps=200, trace=10).stats.trace
        trace = trace[(trace > 1e-13) & (trace < 0.1)]
        assert len(trace) >= 2
        assert np.all(trace[1:] < 10 * trace[:-1] ** 1.8)


@pytest.mark.parametrize("forcing", [0.5, 0.1, 1e-3])
def test_the_step_is_as_accurate_as_asked(forcing):
    p = PROBLEMS["below -1"]
    solver = NewtonKrylov(krylov=17, forcing=forcing)
    stats = fixed_point(p.f, p.z0, *p.args, solver=solver, rtol=1e-5, max_steps=300, trace=20).stats
    assert stats.converged
    norms = [trace for trace in stats.trace if not np.isnan(trace)]
    # On a linear map the residual after the step is that of the linear system; relative to `f(z)`, hence the factor.
    assert all(b <= 4 * forcing * a + 1e-6 for a, b in pairwise(norms))


def test_few_products_are_better_than_none():
    p = PROBLEMS["linear 0.95"]
    assert fixed_point(p.f, p.z0, *p.args, solver=NewtonKrylov(krylov=2), max_steps=400).stats.converged


def test_singular_systems():
    """Where `I - J` is singular there may be no Newton step; the one taken is finite."""
    rate = jnp.array([1.0, 0.5])
    # Consistent: any first component is an equilibrium.
    z, stats = fixed_point(lambda z: rate * z + jnp.array([0.0, 1.0]), jnp.ones(2), solver=NewtonKrylov())
    assert stats.converged
    np.testing.assert_allclose(z, [1.0, 2.0], rtol=1e-3)
    # Not: there is none.
    z, stats = fixed_point(lambda z: rate * z + 1, jnp.ones(2), solver=NewtonKrylov(), max_steps=200)
    assert stats.status == Status.MAX_STEPS
    assert np.all(np.isfinite(z))
    # A double root, where the Jacobian becomes singular on the way.
    z, stats = fixed_point(lambda z: z + z**2, jnp.ones(()), solver=NewtonKrylov(), rtol=0.0, atol=1e-8)
    assert stats.converged
    assert abs(z) < 1e-3


def test_backs_away_from_where_f_is_not_finite():
    """A problem that searches along its step makes no products; one that does not goes on beside it."""
    f = lambda z: z + 1 - 5 * jnp.log(z)
    z, stats = fixed_point(f, jnp.array([[0.1], [9.0], [2.0]]), solver=NewtonKrylov(krylov=2), batched=True)
    assert np.all(stats.converged)
    np.testing.assert_allclose(z, np.exp(0.2), rtol=1e-3)
    z, stats = fixed_point(f, jnp.array([-1.0]), solver=NewtonKrylov(krylov=2))
    assert stats.status == Status.NONFINITE
    np.testing.assert_array_equal(z, -1.0)


def test_a_batch_mate_spends_no_budget():
    """Nor does one with a larger budget lend any."""
    rates = jnp.array([0.5, -3.0])
    easy, hard = (rates[i] * jnp.ones((1, 4)) * jnp.array([1.0, 0.9, 0.7, 0.2]) for i in range(2))

    def steps(rate, max_steps):
        solve = lambda rate, n: fixed_point(lambda z: rate * z + 1, jnp.zeros(4), solver=NewtonKrylov(), max_steps=n)
        return jax.vmap(solve)(rate, max_steps)

    alone = steps(easy, jnp.array([12]))
    beside = steps(jnp.concatenate([easy, hard]), jnp.array([12, 60]))
    np.testing.assert_array_equal(beside.z[0], alone.z[0])
    assert beside.stats.steps[0] == alone.stats.steps[0]
    short = steps(jnp.concatenate([hard, hard]), jnp.array([3, 60]))
    assert short.stats.steps[0] <= 3 < short.stats.steps[1]


def test_needs_forward_mode():
    """A map with a reverse rule only is refused by jax, in words that name it."""
    f = jax.custom_vjp(jnp.cos)
    f.defvjp(lambda z: (jnp.cos(z), z), lambda z, g: (-g * jnp.sin(z),))
    with pytest.raises(TypeError, match="forward-mode"):
        fixed_point(f, jnp.ones(()), solver=NewtonKrylov())


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"krylov": 0}, ValueError, "krylov must be at least 1; got 0"),
        ({"krylov": 2.5}, TypeError, "krylov must be an int of at least 1; got 2.5"),
        ({"forcing": 0}, ValueError, "forcing must be a number in"),
        ({"forcing": 2.0}, ValueError, "forcing must be a number in"),
        ({"restart": 5}, TypeError, "restart"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings(settings, error, text):
    with pytest.raises(error, match=text):
        jaxdeq.solvers.NewtonKrylov(**settings)
