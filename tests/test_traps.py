"""One test a trap that other libraries fell into; named after the trap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeq import BackwardStats, Status, adjoints, fixed_point, solvers

PICARD, ANDERSON = solvers.Picard(), solvers.Anderson()
both = pytest.mark.parametrize("solver", [PICARD, ANDERSON], ids=["picard", "anderson"])


def affine(seed=0, n=4, scale=0.6):
    draw = np.random.default_rng(seed)
    a = draw.normal(size=(n, n))
    a *= scale / np.linalg.norm(a, 2)
    return jnp.asarray(a, jnp.float32), jnp.asarray(draw.normal(size=n), jnp.float32)


A, B = affine()
ANSWER = np.linalg.solve(np.eye(4) - np.asarray(A, float), np.asarray(B, float))


# False convergence.


@both
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_nan_is_not_below_the_tolerance(bad, solver):
    z, stats = fixed_point(lambda z: z * 0 + bad, jnp.ones(2), solver=solver, rtol=0.9, atol=1e9)
    assert stats.status == Status.NONFINITE
    assert not stats.converged
    np.testing.assert_array_equal(z, 1)


@both
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e19, 1e25, 1e37])
def test_squared_norms_over_and_underflow(size, solver):
    """`z = size - z / 2`: its steps and residuals do not depend on the size."""
    z, stats = fixed_point(lambda z: size - z / 2, jnp.zeros(3), solver=solver, rtol=1e-5, trace=4)
    want = fixed_point(lambda z: 1 - z / 2, jnp.zeros(3), solver=solver, rtol=1e-5, trace=4).stats
    assert stats.converged
    np.testing.assert_allclose(z, size / 1.5, rtol=1e-4)
    np.testing.assert_allclose(stats.trace[:2], want.trace[:2], rtol=1e-5)


@both
def test_complex_norm_without_absolute_values(solver):
    """The residual at zero is `(1, i)`, whose squares sum to zero."""
    b = jnp.array([1, 1j], jnp.complex64)
    z, stats = fixed_point(lambda z: z / 2 + b, jnp.zeros(2, jnp.complex64), solver=solver)
    assert stats.steps > 1
    assert stats.converged
    np.testing.assert_allclose(z, 2 * b, rtol=1e-3)


@both
@pytest.mark.parametrize("z0", [jnp.zeros(()), jnp.array([0.0, 0.3, 1e3])])
def test_z_plus_one_has_no_fixed_point(z0, solver):
    stats = jax.jit(lambda n: fixed_point(lambda z: z + 1, z0, max_steps=n, solver=solver, rtol=1e-6).stats)
    for budget in (64, 1000):
        assert stats(budget).status == Status.MAX_STEPS


def test_divergence_is_not_convergence():
    z, stats = fixed_point(lambda z: 3 * z + 1, jnp.ones(2), solver=PICARD, max_steps=500)
    assert stats.status in (Status.MAX_STEPS, Status.NONFINITE)
    assert jnp.all(jnp.isfinite(z))
    assert stats.residual > 0.5


# The best iterate.


@both
def test_nan_late_in_the_run_never_destroys_what_was_found(solver):
    """The map breaks in a strip around its equilibrium, which a solver enters after some steps."""
    f = lambda z: jnp.where(jnp.abs(z - 2) < 1e-2, jnp.nan, z / 2 + 1)
    z, stats = fixed_point(f, jnp.array([0.0]), solver=solver, trace=20)
    assert stats.status == Status.NONFINITE
    assert stats.steps > 2
    assert jnp.all(jnp.isfinite(z))
    np.testing.assert_array_equal(stats.residual, jnp.nanmin(stats.trace))
    np.testing.assert_allclose(stats.residual, abs(f(z) - z)[0] / f(z)[0], rtol=1e-5)


@both
def test_the_best_iterate_is_returned_not_the_last(solver):
    """Rotation by a right angle, scaled up: residuals grow from the first step on."""
    turn = 1.5 * jnp.array([[0.0, -1.0], [1.0, 0.0]])
    z, stats = fixed_point(lambda z: jnp.sinh(turn @ z) + 1, jnp.zeros(2), solver=solver, max_steps=9, trace=9)
    f = jnp.sinh(turn @ z) + 1
    np.testing.assert_array_equal(stats.residual, jnp.nanmin(stats.trace))
    np.testing.assert_allclose(jnp.linalg.norm(f - z) / jnp.linalg.norm(f), stats.residual, rtol=1e-4)


# Wrong gradients without a word.


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-6, 1e12, 1e30])
def test_gradient_does_not_depend_on_the_scale_of_the_loss(scale):
    loss = lambda b: scale * jnp.sum(fixed_point(lambda z: A @ z + b, jnp.zeros(4), rtol=1e-6).z)
    want = np.linalg.solve((np.eye(4) - np.asarray(A, float)).T, np.ones(4))
    np.testing.assert_allclose(jax.grad(loss)(B) / scale, want, rtol=1e-4)


def solve_and_tap(f, a, adjoint, **settings):
    """The gradient with respect to `a`, and how the backward solve went."""
    loss = lambda a, tap: jnp.sum(fixed_point(lambda z: f(z, a), adjoint=adjoint, tap=tap, **settings).z)
    return jax.jit(jax.grad(loss, (0, 1)))(a, BackwardStats.empty())


def test_failed_backward_solve_is_seen_and_finite():
    f = lambda z, a: a * (A @ z) + B
    grad, stats = solve_and_tap(f, 1.0, adjoints.Implicit(PICARD, rtol=1e-6, max_steps=3), z0=jnp.zeros(4), rtol=1e-6)
    assert (stats.steps, stats.status) == (3, Status.MAX_STEPS)
    assert stats.residual > 1e-6
    assert jnp.isfinite(grad)
    assert grad != 0


@pytest.mark.parametrize("solver", [PICARD, ANDERSON])
def test_singular_backward_equation_is_seen_and_finite(solver):
    """Every `z` solves `z = z + a - a`, and `I - J` is zero."""
    grad, stats = solve_and_tap(lambda z, a: z + (a - jax.lax.stop_gradient(a)), 1.0, adjoints.Implicit(solver), z0=2.0)
    assert stats.status != Status.CONVERGED
    assert stats.residual > 1e-3
    assert jnp.isfinite(grad)


def test_nan_in_the_backward_solve_is_seen_and_finite():
    """`sqrt` has an infinite slope at the equilibrium zero."""
    f = lambda z, a: a * jnp.sqrt(jnp.abs(z)) * 0 + a * z / 2
    _, stats = solve_and_tap(f, 1.0, adjoints.Implicit(), z0=0.0)
    assert stats.status == Status.NONFINITE


def test_a_python_float_gets_its_gradient():
    """`z = a z + 1`: `dz/da = 1 / (1 - a)^2`."""
    grad = jax.grad(lambda a: fixed_point(lambda z, a: a * z + 1, 0.0, a, rtol=1e-6).z)(0.5)
    np.testing.assert_allclose(grad, 4.0, rtol=1e-4)


def test_starting_at_the_equilibrium_keeps_the_implicit_gradient():
    """The solve stops at once; its gradient is still `1 / (1 - a)`, not that of one step."""
    solve = lambda b: fixed_point(lambda z: 0.9 * z + b, 10.0, rtol=1e-5)
    assert solve(1.0).stats.steps == 1
    np.testing.assert_allclose(jax.grad(lambda b: solve(b).z)(1.0), 10.0, rtol=1e-3)


# Starts and ends.


@both
def test_zero_cotangent(solver):
    loss = lambda b: 0.0 * jnp.sum(fixed_point(lambda z: A @ z + b, jnp.zeros(4), solver=solver).z)
    np.testing.assert_array_equal(jax.grad(loss)(B), 0)


@both
def test_identity_map(solver):
    z0 = jnp.array([1.0, 0.0, -3.0])
    z, stats = fixed_point(lambda z: z, z0, solver=solver)
    np.testing.assert_array_equal(z, z0)
    assert (stats.steps, stats.residual, stats.status) == (1, 0, Status.CONVERGED)


@both
def test_equilibrium_at_zero_from_zero(solver):
    z, stats = fixed_point(lambda z: A @ jnp.sin(z), jnp.zeros(4), solver=solver)
    np.testing.assert_array_equal(z, 0)
    assert (stats.steps, stats.residual, stats.status) == (1, 0, Status.CONVERGED)


@both
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_a_tolerance_below_round_off_is_not_chased(dtype, solver):
    """Round-off of the product keeps the residual above zero; the budget is a thousand times what is needed."""
    with jax.enable_x64(dtype == jnp.float64):
        draw = np.random.default_rng(1)
        a = jnp.asarray(draw.normal(size=(64, 64)) / 16, dtype)
        b = jnp.asarray(draw.normal(size=64), dtype)
        f = lambda z: jnp.tanh(a @ z + b)
        stats = fixed_point(f, jnp.zeros(64, dtype), rtol=0.0, max_steps=100_000, solver=solver).stats
        assert stats.steps < 200
        assert stats.residual < 64 * float(jnp.finfo(dtype).eps)


# States.


def test_weak_scalars_end_up_strong():
    z, stats = fixed_point(lambda z: 0.5 * z + 1.0, 1.0)
    assert not z.weak_type
    assert not any(s.weak_type for s in stats)
    assert (z + jnp.ones((), jnp.float32)).dtype == jnp.float32


@both
def test_leaves_of_very_different_scales(solver):
    """One residual for all leaves together: the small leaf is as good as its coupling asks for."""
    scales = {"big": 1e6, "small": 1e-6}
    f = lambda z: {k: 0.3 * z[k] - 0.2 * jnp.roll(z[k], 1) + s for k, s in scales.items()}
    z, stats = fixed_point(f, {k: jnp.zeros(3) for k in scales}, solver=solver, rtol=1e-6)
    assert stats.converged
    for k, s in scales.items():
        np.testing.assert_allclose(z[k], s / 0.9, rtol=1e-3)


def test_coupling_between_leaves():
    """Each leaf alone contracts to nothing; their loop has spectral radius 1.2, so Picard diverges."""
    f = lambda z: {"a": -1.2 * z["b"] + 1, "b": 1.2 * z["a"] - 2}
    z, stats = fixed_point(f, {"a": 0.0, "b": 0.0}, rtol=1e-6)
    assert stats.converged
    want = np.linalg.solve([[1, 1.2], [-1.2, 1]], [1, -2])
    np.testing.assert_allclose([z["a"], z["b"]], want, rtol=1e-4)


def test_a_nan_sample_in_a_batch_leaves_the_gradient_of_the_others():
    x = jnp.array([[0.5, 0.1], [jnp.nan, 1.0], [-1.0, 0.3]])

    def loss(x):
        z, stats = fixed_point(lambda z: jnp.tanh(0.5 * z) + x, jnp.zeros((3, 2)), batched=True, rtol=1e-6)
        return jnp.sum(jnp.where(stats.converged[:, None], z, 0))

    grad = jax.grad(loss)(x)
    z = np.zeros((3, 2))
    for _ in range(100):
        z = np.tanh(0.5 * z) + x
    want = 1 / (1 - 0.5 * (1 - np.tanh(0.5 * z) ** 2))
    np.testing.assert_allclose(grad[::2], want[::2], rtol=1e-4)
