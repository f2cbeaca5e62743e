"""`batched=True` and `vmap`: independent problems side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeq import Status, fixed_point, solvers

SOLVERS = [solvers.Picard(), solvers.Anderson()]
RATES = jnp.array([0.1, 0.9, 0.5, 0.0])  # easy and hard side by side
SHIFTS = jnp.linspace(-1.0, 2.0, 12).reshape(4, 3)


def rows(z, x=SHIFTS, rate=RATES):
    """One problem a row, of a difficulty of its own."""
    return jnp.tanh(rate[:, None] * jnp.roll(z, 1, axis=1)) + x


def newton(x, rate):
    """The equilibrium of each row in float64."""
    z, shift, eye = np.zeros((4, 3)), np.roll(np.eye(3), 1, axis=0), np.eye(3)
    for _ in range(50):
        inner = rate[:, None] * np.roll(z, 1, axis=1)
        slope = (1 - np.tanh(inner) ** 2) * rate[:, None]
        jacobian = slope[:, :, None] * shift
        z = z + np.linalg.solve(eye - jacobian, (np.tanh(inner) + x - z)[..., None])[..., 0]
    return z


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_problem_has_its_own_stats(solver):
    z, stats = fixed_point(rows, jnp.zeros((4, 3)), batched=True, solver=solver, rtol=1e-6, max_steps=200, trace=9)
    assert [x.shape for x in stats] == [(4,), (4,), (4,), (4, 9)]
    assert stats.converged.shape == (4,)
    assert jnp.all(stats.converged)
    np.testing.assert_allclose(z, newton(np.asarray(SHIFTS, float), np.asarray(RATES, float)), rtol=1e-4)
    assert stats.steps[3] < stats.steps[0] < stats.steps[2] < stats.steps[1]
    for steps, trace in zip(stats.steps, stats.trace, strict=True):
        assert jnp.sum(~jnp.isnan(trace)) == min(int(steps), 9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_same_as_alone(solver):
    z, stats = fixed_point(rows, jnp.zeros((4, 3)), batched=True, solver=solver)
    alone = jax.jit(lambda x, rate: fixed_point(lambda z: rows(z, x, rate), jnp.zeros((1, 3)), solver=solver))
    for i in range(4):
        one = alone(SHIFTS[i : i + 1], RATES[i : i + 1])
        assert stats.steps[i] == one.stats.steps
        np.testing.assert_allclose(z[i], one.z[0], rtol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30, 1e-30])
def test_mates_change_nothing_not_even_rounding(bad, solver):
    solve = jax.jit(lambda x: fixed_point(lambda z, x: rows(z, x), jnp.zeros((4, 3)), x, batched=True, solver=solver))
    good, spoiled = solve(SHIFTS), solve(SHIFTS.at[1].set(bad))
    others = jnp.array([0, 2, 3])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[others], b[others]), good, spoiled)
    if not np.isfinite(bad):
        assert spoiled.stats.status[1] == Status.NONFINITE
        np.testing.assert_array_equal(spoiled.z[1], 0)  # f(z0) was not finite: all there is is z0


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_finished_problem_stays_put(solver):
    solve = jax.jit(lambda n: fixed_point(rows, jnp.zeros((4, 3)), batched=True, solver=solver, max_steps=n))
    short, long = solve(9), solve(60)
    done = np.flatnonzero(short.stats.converged)
    assert 2 <= len(done) < 4
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[done], b[done]), short, long)


def test_every_leaf_has_the_batch_axis():
    z0 = {"a": jnp.zeros(4), "b": jnp.zeros((4, 2, 3), jnp.bfloat16)}
    rates = RATES / 2
    f = lambda z: {"a": rates * z["a"] + 1, "b": z["b"] / 2 + z["a"].astype(jnp.bfloat16)[:, None, None]}
    z, stats = fixed_point(f, z0, batched=True, solver=solvers.Picard(), max_steps=200)
    assert jnp.all(stats.converged)
    np.testing.assert_allclose(z["a"], 1 / (1 - rates), rtol=0.1)
    np.testing.assert_allclose(z["b"][:, 1, 2].astype(jnp.float32), 2 / (1 - rates), rtol=0.1)


def test_gradients_do_not_mix():
    def loss(x, mask):
        return jnp.sum(mask * fixed_point(rows, jnp.zeros((4, 3)), x, batched=True, rtol=1e-6, max_steps=200).z)

    grad = jax.jit(jax.grad(loss))
    every = grad(SHIFTS, jnp.ones((4, 1)))
    for i in range(4):
        only = grad(SHIFTS, jnp.zeros((4, 1)).at[i].set(1.0))
        np.testing.assert_allclose(only[i], every[i], rtol=1e-4)
        np.testing.assert_array_equal(jnp.delete(only, i, axis=0), 0)


def test_an_empty_batch():
    z, stats = fixed_point(lambda z: z / 2, jnp.zeros((0, 3)), batched=True)
    assert z.shape == (0, 3)
    assert stats.steps.shape == (0,)


@pytest.mark.parametrize("axis", [0, 1])
def test_vmap_equals_batched(axis):
    """Over arguments and closures alike, and with `z0` the same for all."""
    solve = lambda x, rate: fixed_point(lambda z: rows(z[None], x, rate[None])[0], jnp.zeros(3))
    z, stats = jax.jit(jax.vmap(solve, in_axes=(axis, 0)))(jnp.moveaxis(SHIFTS, 0, axis), RATES)
    want, want_stats = fixed_point(rows, jnp.zeros((4, 3)), batched=True)
    np.testing.assert_allclose(z, want, rtol=1e-5)
    np.testing.assert_array_equal(stats.steps, want_stats.steps)
    np.testing.assert_array_equal(stats.status, want_stats.status)


def test_vmap_of_vmap_and_of_batched():
    grid = lambda r: fixed_point(lambda z: jnp.tanh(r * z) + 1, 0.5, rtol=1e-6)
    twice = jax.vmap(jax.vmap(grid))(RATES.reshape(2, 2))
    batched = lambda r: fixed_point(lambda z: jnp.tanh(r * z) + 1, jnp.full(2, 0.5), batched=True, rtol=1e-6)
    once = jax.vmap(batched)(RATES.reshape(2, 2))
    for solution in (twice, once):
        assert jnp.all(solution.stats.converged)
        np.testing.assert_allclose(jnp.tanh(RATES.reshape(2, 2) * solution.z) + 1, solution.z, rtol=1e-5)
    np.testing.assert_array_equal(once.stats.steps, twice.stats.steps)


def test_vmap_over_limits():
    stats = jax.vmap(lambda n, t: fixed_point(jnp.cos, 1.0, max_steps=n, rtol=t, solver=SOLVERS[0]).stats)(
        jnp.array([3, 50, 50]), jnp.array([1e-6, 1e-1, 1e-5])
    )
    alone = [fixed_point(jnp.cos, 1.0, rtol=t, solver=SOLVERS[0], max_steps=50).stats.steps for t in (1e-1, 1e-5)]
    np.testing.assert_array_equal(stats.steps, [3, *alone])
    np.testing.assert_array_equal(stats.status, [Status.MAX_STEPS, Status.CONVERGED, Status.CONVERGED])
