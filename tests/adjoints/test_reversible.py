"""Rebuilt iterates against stored ones: the gradient of the same steps by `Unrolled`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeq import Status, adjoints, fixed_point, solvers

W = 0.3 * jax.random.normal(jax.random.key(0), (4, 4))
X = jax.random.normal(jax.random.key(1), (3, 4))
LENGTH = 60
REBUILT, STORED = adjoints.Reversible(LENGTH), adjoints.Unrolled(LENGTH, segment=10)


def f(z, w, x):
    return jnp.tanh(z @ w + x)


def solve(w, x, rtol=1e-4, max_steps=LENGTH, *, adjoint=REBUILT, damping=0.8, **settings):
    solver = solvers.Reversible(damping)
    settings = {"solver": solver, "adjoint": adjoint, "rtol": rtol, "max_steps": max_steps, **settings}
    return fixed_point(f, jnp.zeros_like(x), w, x, **settings)


@partial(jax.jit, static_argnames=("adjoint", "damping", "batched"))
def gradient(w, x, *limits, **settings):
    return jax.grad(lambda w: jnp.sum(jnp.sin(solve(w, x, *limits, **settings).z)))(w)


@pytest.mark.parametrize(("damping", "batched"), [(0.5, True), (0.8, False), (0.95, True)])
def test_round_off_does_not_win(damping, batched):
    """After 60 steps, where rebuilding all of them would multiply it by up to 20^60. All steps count: rtol is 0."""
    by = lambda adjoint: gradient(W, X, 0.0, adjoint=adjoint, damping=damping, batched=batched)
    np.testing.assert_allclose(by(REBUILT), by(STORED), rtol=1e-3, atol=1e-4)


def test_every_sample_from_its_own_stop():
    """Far from the equilibrium, where the exact gradient of the steps is not that of the equilibrium."""
    by = lambda rtol, adjoint: gradient(W, X, rtol, adjoint=adjoint, damping=0.5, batched=True)
    for rtol in (1e-1, 1e-2, 1e-4):
        steps = solve(W, X, rtol, damping=0.5, batched=True).stats.steps
        assert len(set(steps.tolist())) > 1
        np.testing.assert_allclose(by(rtol, REBUILT), by(rtol, STORED), rtol=1e-4, atol=1e-5)
    alone = jax.vmap(lambda x: gradient(W, x, 1e-2, damping=0.5))(X)
    np.testing.assert_allclose(by(1e-2, REBUILT), jnp.sum(alone, axis=0), rtol=1e-4, atol=1e-5)


def test_the_best_iterate_need_not_be_the_last():
    """A turn by a right angle, scaled up: residuals grow."""
    turn, x = jnp.array([[0.0, -1.5], [1.5, 0.0]]), jnp.array([[0.1, 0.3]])
    stats = solve(turn, x, 1e-4, 9, trace=9).stats
    assert stats.status == Status.MAX_STEPS
    assert jnp.argmin(stats.trace) < 8
    got, want = (gradient(turn, x, 1e-4, 9, adjoint=a) for a in (REBUILT, STORED))
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_a_sample_that_fails_later():
    """It has a gradient up to its best iterate, and leaves that of the others alone."""

    def growing(z, x):  # the second sample overflows after a few steps
        return jnp.where(x > 0, x * z**2 + 1, 0.5 * z + x)

    def run(x, adjoint):
        solver = solvers.Reversible()
        settings = {"batched": True, "max_steps": LENGTH, "rtol": 1e-6}
        return fixed_point(growing, jnp.full((2, 1), 3.0), x, solver=solver, adjoint=adjoint, **settings)

    x = jnp.array([[-1.0], [2.0]])
    np.testing.assert_array_equal(run(x, REBUILT).stats.status, [Status.CONVERGED, Status.NONFINITE])
    gradient = lambda adjoint: jax.grad(lambda x: jnp.sum(run(x, adjoint).z))(x)
    got, want = gradient(REBUILT), gradient(STORED)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[0], 2.0, rtol=1e-3)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4)


def test_half_precision():
    """Sums over the steps are made in float32."""
    got = gradient(W.astype(jnp.bfloat16), X.astype(jnp.bfloat16), 1e-4, 20, damping=0.5, batched=True)
    assert got.dtype == jnp.bfloat16
    want = gradient(W, X, 1e-4, 20, adjoint=STORED, damping=0.5, batched=True)
    assert jnp.linalg.norm(got.astype(jnp.float32) - want) < 0.1 * jnp.linalg.norm(want)


def test_holds_fewer_states_than_stored_steps():
    x, w = jnp.ones((64, 128)), jnp.eye(128) / 2

    def held(adjoint):
        memory = gradient.lower(w, x, adjoint=adjoint, damping=0.5).compile().memory_analysis()
        return memory.temp_size_in_bytes / x.nbytes

    assert held(REBUILT) < LENGTH / 2
    assert held(adjoints.Unrolled(LENGTH, segment=LENGTH)) > 2 * LENGTH


def test_a_second_derivative_raises():
    with pytest.raises(ValueError, match="while_loop"):
        jax.grad(lambda w: jnp.sum(jax.grad(lambda w: jnp.sum(solve(w, X).z))(w)))(W)
