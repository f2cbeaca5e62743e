"""Anderson acceleration against its textbook form, with and without plain steps in between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdeq import Status, fixed_point
from jaxdeq._types import Map
from jaxdeq.solvers import Anderson
from tests.problems import draw, orthogonal

SIZE = 24
SHIFT = draw(SIZE, seed=3)
Q = orthogonal(SIZE, seed=2)
MATRIX = Q @ np.diag(np.linspace(-0.9, 0.985, SIZE)) @ Q.T  # of a slow contraction


def slow(z, shift):
    return jnp.asarray(MATRIX, z.dtype) @ z + shift


def textbook(f, z, steps, solver):
    """What `f` is evaluated at: weights of sum one by least squares over differences."""
    visited, moves, residuals = [], [], []
    for step in range(1, steps + 1):
        visited.append(z)
        residual = f(z) - z
        moves, residuals = (
            [*past, x][-solver.history :] for past, x in ((moves, z + solver.damping * residual), (residuals, residual))
        )
        z = moves[-1]
        if step % solver.every == 0:
            against = lambda past: np.array([past[-1] - x for x in past[:-1]]).reshape(-1, SIZE).T
            weights = np.linalg.lstsq(against(residuals), residual, rcond=None)[0]
            z = z - against(moves) @ weights
    return visited


@given(
    history=st.integers(1, 4),
    every=st.integers(1, 4),
    damping=st.sampled_from([1.0, 0.6]),
    seed=st.integers(0, 99),
)
def test_textbook(history, every, damping, seed):
    solver = Anderson(history, damping, ridge=0.0, every=every)
    z0 = draw(SIZE, seed=seed)
    with jax.enable_x64(True):
        f = jax.jit(lambda z: jnp.tanh(slow(z, 0.0)) + SHIFT)
        step = jax.jit(lambda state: solver.step(Map(f), state))
        state = solver.init(Map(f), jnp.asarray(z0, jnp.float64))
        for z in textbook(lambda z: np.asarray(f(z)), np.asarray(z0, np.float64), 9, solver):
            state = step(state)
            np.testing.assert_allclose(state.z, z, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("history", "share"), [(5, 0.7), (10, 0.9)])
def test_plain_steps_in_between_save_evaluations(history, share):
    shift = jnp.asarray(SHIFT, jnp.float32)
    solve = lambda solver: fixed_point(slow, jnp.zeros(SIZE), shift, solver=solver, max_steps=500).stats
    each, third = solve(Anderson(history)), solve(Anderson(history, every=3))
    assert each.status == third.status == Status.CONVERGED
    assert int(third.steps) < share * int(each.steps)


def test_gradient_with_plain_steps_in_between():
    """Backward too: the exact gradient of a linear map's equilibrium."""
    options = {"solver": Anderson(5, every=3), "rtol": 1e-6, "max_steps": 500}
    first = lambda shift: fixed_point(slow, jnp.zeros(SIZE), shift, **options).z[0]
    found = jax.grad(first)(jnp.asarray(SHIFT, jnp.float32))
    exact = np.linalg.solve((np.eye(SIZE) - MATRIX).T, np.eye(SIZE)[0])
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-4 * np.max(np.abs(exact)))


def test_many_problems_mix_together():
    """In a batch and under vmap each problem goes its own way, as it does alone."""
    solver = Anderson(3, every=2)
    rates = jnp.asarray([[0.3, -0.5], [0.9, 0.95], [-0.9, 0.97]], jnp.float32)
    f = lambda z, rate: rate * jnp.tanh(z) + 0.5
    options = {"solver": solver, "rtol": 1e-5, "max_steps": 200}
    alone = [fixed_point(f, jnp.zeros(2), rate, **options) for rate in rates]
    steps = [int(found.stats.steps) for found in alone]
    assert len(set(steps)) > 1
    batch = fixed_point(f, jnp.zeros((3, 2)), rates, batched=True, **options)
    mapped = jax.vmap(lambda rate: fixed_point(f, jnp.zeros(2), rate, **options))(rates)
    for together in (batch, mapped):
        assert list(together.stats.steps) == steps
        np.testing.assert_allclose(together.z, jnp.stack([found.z for found in alone]), rtol=1e-5)
