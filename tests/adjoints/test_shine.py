"""Shine's estimate against Broyden's method as textbooks have it, with dense matrices in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeq import BackwardStats, Status, adjoints, fixed_point, solvers

DRAW = np.random.default_rng(3)
A = DRAW.normal(size=(3, 6, 6)) / 6  # a map for each of three problems, of spectral radii below 0.6
B = DRAW.normal(size=(3, 6))
G = DRAW.normal(size=(3, 6))
RTOL = 1e-5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64():
        yield


def textbook(a, b, g):
    """`(I - estimate of a)^{-T} g` by rank-one updates, and the steps it took."""
    z, jacobian = np.zeros(6), -np.eye(6)  # of a z + b - z
    residual, steps = a @ z + b - z, 1
    while np.linalg.norm(residual) > RTOL * np.linalg.norm(a @ z + b):
        s = -np.linalg.solve(jacobian, residual)
        z, before = z + s, residual
        residual, steps = a @ z + b - z, steps + 1
        jacobian += np.outer(residual - before - jacobian @ s, s) / (s @ s)
    return np.linalg.solve(-jacobian.T, g), steps


def solve(a, b, adjoint=adjoints.Shine(), tap=None, history=20, **settings):
    f = lambda z, a, b: jnp.einsum("...ij,...j->...i", a, z) + b
    solver = solvers.Broyden(history)
    return fixed_point(f, jnp.zeros(b.shape), a, b, solver=solver, adjoint=adjoint, rtol=RTOL, tap=tap, **settings)


@partial(jax.jit, static_argnames=("adjoint", "history", "batched"))
def unknown(a, b, g, **settings):
    """The gradient by `b` is `u` itself."""
    return jax.grad(lambda b: jnp.vdot(solve(a, b, **settings).z, g))(b)


@pytest.mark.parametrize("i", range(3))
def test_the_textbook_estimate(i):
    want, steps = textbook(A[i], B[i], G[i])
    assert solve(A[i], B[i]).stats.steps == steps
    np.testing.assert_allclose(unknown(A[i], B[i], G[i]), want, rtol=1e-6)
    np.testing.assert_allclose(unknown(A[i], B[i], 1e-30 * G[i]), 1e-30 * want, rtol=1e-6)


def test_batch_mates_do_not_matter():
    """The problems stop at different steps; each keeps what it had learnt by then. So under `vmap`."""
    want, steps = zip(*(textbook(a, b, g) for a, b, g in zip(A, B, G, strict=True)), strict=True)
    assert len(set(steps)) > 1
    np.testing.assert_array_equal(solve(A, B, batched=True).stats.steps, steps)
    np.testing.assert_allclose(unknown(A, B, G, batched=True), want, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(unknown)(A, B, G), want, rtol=1e-6)


def test_a_short_memory_that_has_wrapped_around():
    """Batched against alone: where the oldest pair lies differs from problem to problem."""
    alone = [unknown(a, b, g, history=3) for a, b, g in zip(A, B, G, strict=True)]
    np.testing.assert_allclose(unknown(A, B, G, history=3, batched=True), alone, rtol=1e-9)


def test_refined_it_is_exact_and_the_tap_says_how_exact():
    exact = np.linalg.solve(np.eye(6) - A[0].T, G[0])
    error, residual = [], []
    loss = lambda b, tap, adjoint: jnp.vdot(solve(A[0], b, adjoint=adjoint, tap=tap).z, G[0])
    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    for refine in (0, 2, 12):
        u, tap = gradient(B[0], BackwardStats.empty(), adjoints.Shine(refine))
        following = G[0] + A[0].T @ u
        np.testing.assert_allclose(
            tap.residual, np.linalg.norm(following - u) / np.linalg.norm(following), rtol=1e-4, atol=1e-12
        )
        assert tap.steps == (refine + 2 if refine else 1)
        assert (tap.status == Status.CONVERGED) == (tap.residual <= RTOL)
        error.append(np.linalg.norm(u - exact) / np.linalg.norm(exact))
        residual.append(tap.residual)
    assert sorted(error, reverse=True) == error
    assert error[-1] < 1e-8
    assert residual[0] > RTOL > residual[-1]


def test_fallback_is_one_step_where_the_estimate_is_long():
    own = unknown(A, B, G, batched=True)
    lengths = np.linalg.norm(own, axis=1) / np.linalg.norm(G, axis=1)
    between = float(np.sort(lengths)[:2].mean())
    u = unknown(A, B, G, batched=True, adjoint=adjoints.Shine(fallback=between))
    long = lengths > between
    np.testing.assert_allclose(u[long], G[long], rtol=1e-12)
    np.testing.assert_allclose(u[~long], own[~long], rtol=1e-9)
    assert 0 < long.sum() < 3
