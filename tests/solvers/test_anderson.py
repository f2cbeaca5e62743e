"""Anderson acceleration against its textbook form, with and without plain steps in between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdeq import Status, adjoints, fixed_point
from jaxdeq._types import Map
from jaxdeq.solvers import Anderson
from tests.problems import draw, orthogonal

SIZE = 24
SHIFT = draw(SIZE, seed=3)
SPECTRUM = np.linspace(-0.9, 0.985, SIZE)  # of a slow contraction
MATRIX = orthogonal(SIZE, seed=2) @ np.diag(SPECTRUM) @ orthogonal(SIZE, seed=2).T
SLOW = jax.jit(lambda z: jnp.asarray(MATRIX, z.dtype) @ z + jnp.asarray(SHIFT, z.dtype))


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
    f = lambda z: np.tanh(MATRIX @ z) + SHIFT
    z0 = draw(SIZE, seed=seed)
    with jax.enable_x64(True):
        step = jax.jit(lambda state: solver.step(Map(lambda z: jnp.tanh(jnp.asarray(MATRIX) @ z) + SHIFT), state))
        state = solver.init(Map(f), jnp.asarray(z0, jnp.float64))
        for z in textbook(f, np.asarray(z0, np.float64), 9, solver):
            state = step(state)
            np.testing.assert_allclose(state.z, z, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("history", "share"), [(5, 0.7), (10, 0.9)])
def test_plain_steps_in_between_save_evaluations(history, share):
    solve = lambda **every: fixed_point(SLOW, jnp.zeros(SIZE), solver=Anderson(history, **every), max_steps=500).stats
    each, third = solve(), solve(every=3)
    assert each.status == third.status == Status.CONVERGED
    assert int(third.steps) < share * int(each.steps)


def test_gradient_with_plain_steps_in_between():
    """Backward too: the exact gradient of a linear map's equilibrium."""
    found = jax.grad(
        lambda shift: fixed_point(
            lambda z: jnp.asarray(MATRIX, z.dtype) @ z + shift, jnp.zeros(SIZE), solver=Anderson(5, every=3),
            adjoint=adjoints.Implicit(), rtol=1e-6, max_steps=500,
        ).z[0]
    )(jnp.asarray(SHIFT, jnp.float32))  # fmt: skip
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
