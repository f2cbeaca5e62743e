"""What else gradients have to be: scale with the loss, differentiable again, and open about how they went."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdeq
from jaxdeq import BackwardStats, Status, adjoints, solvers
from tests.pairs import solver_for

W = 0.3 * jax.random.normal(jax.random.key(0), (4, 4))
X = jax.random.normal(jax.random.key(1), (3, 4))
ADJOINTS = [getattr(adjoints, name)() for name in adjoints.__all__]


def f(z, w, x):
    return jnp.tanh(z @ w + x)


def solve(w, x=X, **settings):
    settings = {"solver": solver_for(settings.get("adjoint"), solvers.Picard()), **settings}
    return jaxdeq.fixed_point(f, jnp.zeros(x.shape, x.dtype), w, x, **settings)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_gradients_scale_with_the_loss(scale):
    """Far below and above any absolute tolerance, and to the same digits."""
    gradient = jax.jit(jax.grad(lambda w, c: c * solve(w, solver=solvers.Anderson(3)).z.sum()))
    chex.assert_trees_all_close(gradient(W, scale) / scale, gradient(W, 1.0), rtol=1e-4)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_no_cotangent_no_gradient(adjoint):
    gradient = jax.jit(jax.grad(lambda w: 0.0 * solve(w, adjoint=adjoint).z.sum()))(W)
    chex.assert_trees_all_equal(gradient, jnp.zeros_like(W))


@pytest.mark.parametrize("solver", [solvers.Picard(), solvers.Anderson(3)], ids=str)
def test_second_derivatives_of_implicit(solver):
    """Of a quantity that is itself a gradient, by finite differences."""
    with jax.enable_x64(True):
        w, x = np.asarray(W, np.float64), np.asarray(X, np.float64)
        energy = lambda w: jnp.sum(solve(w, x, rtol=1e-13, max_steps=200, solver=solver).z ** 2)
        slope = lambda w: jnp.sum(jnp.sin(jax.grad(energy)(w)))
        got = jax.jit(jax.grad(slope))(w)
        slope, h = jax.jit(jax.vmap(slope)), 1e-5
        moves = h * np.eye(w.size).reshape(-1, *w.shape)
        want = (slope(w + moves) - slope(w - moves)) / (2 * h)
        chex.assert_trees_all_close(got.ravel(), want, rtol=1e-6)


@pytest.mark.parametrize("adjoint", [adjoints.Unrolled(length=30, segment=6), adjoints.ImplicitJVP()], ids=str)
def test_forward_mode(adjoint):
    """Against reverse mode: `x . (J t) = (J^T x) . t`."""
    run = lambda w: solve(w, rtol=1e-6, adjoint=adjoint).z
    tangent = jnp.ones_like(W)
    forward = jax.jit(lambda w: jax.jvp(run, (w,), (tangent,))[1])(W)
    back = jax.jit(lambda w: jax.vjp(run, w)[1](X)[0])(W)
    np.testing.assert_allclose(jnp.vdot(X, forward), jnp.vdot(back, tangent), rtol=1e-4)


def tapped(w, tap, **settings):
    """The statistics of the backward solve."""
    return jax.grad(lambda tap: solve(w, tap=tap, **settings).z.sum())(tap)


def test_the_tap_tells_how_the_backward_solve_went():
    taps = jax.jit(lambda w: tapped(w, BackwardStats.empty()))(W)
    assert 2 < taps.steps < 64
    assert 0 < taps.residual < 1e-4
    assert taps.status == Status.CONVERGED
    short = jax.jit(lambda w: tapped(w, BackwardStats.empty(), adjoint=adjoints.Implicit(max_steps=2)))(W)
    assert short.steps == 2
    assert short.residual > 1e-4
    assert short.status == Status.MAX_STEPS


def test_the_tap_of_a_batch():
    """A sample whose Jacobian is zero needs one step; its neighbours more."""
    x = X.at[0].set(30.0)
    taps = jax.jit(lambda w: tapped(w, BackwardStats.empty(3), x=x, batched=True))(W)
    assert taps.steps[0] == 1
    assert (taps.steps[1:] > 2).all()
    chex.assert_trees_all_equal(taps.status, jnp.zeros(3))


def test_the_tap_under_vmap_and_scan():
    """One tap each under `vmap`; in a scan they add up."""
    several = jnp.stack([W, 0.5 * W])
    alone = [jax.jit(tapped)(w, BackwardStats.empty()) for w in several]
    mapped = jax.jit(jax.vmap(tapped))(several, BackwardStats.empty(2))
    chex.assert_trees_all_close(mapped, jax.tree.map(lambda *xs: jnp.stack(xs), *alone), rtol=1e-3)

    def scanned(tap):
        return jax.lax.scan(lambda total, w: (total + solve(w, tap=tap).z.sum(), None), 0.0, several)[0]

    added = jax.jit(jax.grad(scanned))(BackwardStats.empty())
    assert added.steps == alone[0].steps + alone[1].steps


def test_a_singular_backward_equation_is_finite_and_flagged():
    """At `z = z` any point is an equilibrium, and `I - J` is zero."""
    run = lambda a, tap: jaxdeq.fixed_point(lambda z: z + 0.0 * a, jnp.ones(3), tap=tap).z.sum()
    gradient, tap = jax.jit(jax.grad(run, (0, 1)))(2.0, BackwardStats.empty())
    assert jnp.isfinite(gradient)
    assert tap.status != Status.CONVERGED


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_under_vmap(adjoint):
    with jax.enable_x64(True):  # round-off is magnified by what Shine does
        w, x = np.asarray(W, np.float64), np.asarray(X, np.float64)
        gradient = jax.grad(lambda w: solve(w, x, rtol=1e-6, adjoint=adjoint).z.sum())
        several = jnp.stack([w, 0.5 * w])
        mapped, alone = jax.jit(jax.vmap(gradient))(several), jax.jit(gradient)(several[1])
        chex.assert_trees_all_close(mapped[1], alone, rtol=1e-6)
