"""Gradients through `fixed_point`, and `fixed_point` inside other transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeq import BackwardStats, Status, adjoints, fixed_point, solvers
from tests.derivatives import central

A = 0.4 * np.random.default_rng(0).normal(size=(3, 3))
B = np.array([0.3, -0.2, 0.9])


def layer(z, a, b):
    return jnp.tanh(a @ z + b)


def equilibrium(a, b):
    """Newton's method in float64."""
    z = np.zeros(3)
    for _ in range(50):
        t = np.tanh(a @ z + b)
        z = z + np.linalg.solve(np.eye(3) - (1 - t**2)[:, None] * a, t - z)
    return z


def exact(g):
    """The gradients of `g . z` with respect to A and B, from explicit Jacobians."""
    z = equilibrium(A, B)
    slope = 1 - np.tanh(A @ z + B) ** 2
    u = slope * np.linalg.solve((np.eye(3) - slope[:, None] * A).T, g)
    return np.outer(u, z), u


def loss(a, b, **settings):
    z = fixed_point(layer, jnp.zeros(3), a, b, rtol=1e-6, **settings).z
    return jnp.sum(z * jnp.arange(1.0, 4.0))


F32 = tuple(jnp.asarray(x, jnp.float32) for x in (A, B))
GRADS = exact(np.arange(1.0, 4.0))


def same_grads(grads, rtol=1e-4):
    for have, want in zip(grads, GRADS, strict=True):
        np.testing.assert_allclose(have, want, rtol=rtol, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: jax.jit(jax.checkpoint(f))], ids=["plain", "checkpoint"])
def test_gradients_of_arguments(wrap):
    same_grads(jax.grad(wrap(loss), (0, 1))(*F32))


def test_gradients_of_closures():
    def closed(a, b):
        return jnp.sum(fixed_point(lambda z: layer(z, a, b), jnp.zeros(3), rtol=1e-6).z * jnp.arange(1.0, 4.0))

    same_grads(jax.jit(jax.grad(closed, (0, 1)))(*F32))


def test_gradients_of_pytree_arguments():
    params = {"a": F32[0], "inner": [F32[1], 7, None]}

    def tree_loss(weights):
        params["a"], params["inner"][0] = weights
        z = fixed_point(lambda z, p: layer(z, p["a"], p["inner"][0]), jnp.zeros(3), params, rtol=1e-6).z
        return jnp.sum(z * jnp.arange(1.0, 4.0))

    same_grads(jax.grad(tree_loss)(F32))


def test_z0_has_a_zero_gradient():
    grad = jax.grad(lambda z0: jnp.sum(fixed_point(layer, z0, *F32).z))(jnp.ones(3))
    np.testing.assert_array_equal(grad, 0)
    grad = jax.grad(lambda z0: jnp.sum(fixed_point(layer, z0, *F32, max_steps=1).z))(jnp.ones(3))
    np.testing.assert_array_equal(grad, 0)


def test_python_float_argument_has_a_gradient():
    """`z = cos(a z)` gives `dz/da = -z s / (1 + a s)` with `s = sin(a z)`."""
    solve = lambda a: fixed_point(lambda z, a: jnp.cos(a * z), 1.0, a, rtol=1e-6).z
    z = 0.7390851332151607
    want = -z * np.sin(z) / (1 + np.sin(z))
    np.testing.assert_allclose(jax.grad(solve)(1.0), want, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(jax.grad(solve))(1.0), want, rtol=1e-4)


def test_complex_gradient():
    """Of `|z|^2` with `z = c z + 1` for real and complex `c`; against central differences."""
    c = 0.3 + 0.4j
    with jax.enable_x64():
        size = lambda re, im: jnp.abs(fixed_point(lambda z: jax.lax.complex(re, im) * z + 1.0, 0j, rtol=1e-13).z) ** 2
        have = jax.grad(size, (0, 1))(c.real, c.imag)
    want = central(lambda x: abs(1 / (1 - x[0] - 1j * x[1])) ** 2, np.array([c.real, c.imag]))
    np.testing.assert_allclose(have, want, rtol=1e-6)


@pytest.mark.parametrize("wrap", ["plain", "vmap", "scan", "checkpoint"])
def test_integers_and_keys_closed_over(wrap):
    """Whatever its dtype, a traced array that `f` closes over must not break a gradient."""

    def value(scale, index, key, mask):
        def f(z):
            noise = jax.random.normal(key, (3,))
            return jnp.where(mask, jnp.tanh(scale * z[index] + noise), 0.0)

        return jnp.sum(fixed_point(f, jnp.zeros(3), rtol=1e-6).z)

    def reference(scale, index, key, mask):
        noise = jax.random.normal(key, (3,))
        step = lambda z, _: (jnp.where(mask, jnp.tanh(scale * z[index] + noise), 0.0), None)
        return jnp.sum(jax.lax.scan(step, jnp.zeros(3), length=40)[0])

    index, key, mask = jnp.array([2, 0, 1]), jax.random.key(3), jnp.array([True, True, False])

    def through(fun):
        grad = jax.jit(jax.grad(jax.checkpoint(fun) if wrap == "checkpoint" else fun))
        if wrap == "vmap":
            lanes = (jnp.array([0.4, 0.2]), jnp.stack([index, index[::-1]]), jax.random.split(key), mask)
            return jax.vmap(grad, in_axes=(0, 0, 0, None))(*lanes)
        if wrap == "scan":
            step = lambda total, k: (total + fun(total, index, k, mask), None)
            return jax.jit(jax.grad(lambda s: jax.lax.scan(step, s, jax.random.split(key, 3))[0]))(0.4)
        return jax.grad(fun)(0.4, index, key, mask) if wrap == "plain" else grad(0.4, index, key, mask)

    np.testing.assert_allclose(through(value), through(reference), rtol=1e-3)


def test_grad_of_vmap_and_vmap_of_grad():
    b = jnp.stack([F32[1], -F32[1], 0 * F32[1]])
    grad = jax.jit(jax.grad(loss, 1))
    each = jnp.stack([grad(F32[0], row) for row in b])
    np.testing.assert_allclose(jax.jit(jax.vmap(grad, (None, 0)))(F32[0], b), each, rtol=1e-5)
    total = lambda b: jnp.sum(jax.vmap(lambda row: loss(F32[0], row))(b))
    np.testing.assert_allclose(jax.jit(jax.grad(total))(b), each, rtol=1e-5)
    np.testing.assert_allclose(each[0], GRADS[1], rtol=1e-4)


def test_scan_over_solves():
    """A recurrent use: each solve starts at the last one's answer, the chain rule runs through `b`."""

    def rollout(b):
        step = lambda c, _: (fixed_point(layer, c, F32[0], 0.5 * c, rtol=1e-6).z, None)
        return jnp.sum(jax.lax.scan(step, b, length=3)[0])

    def reference(b):
        for _ in range(3):
            b = equilibrium(A, 0.5 * b)
        return np.sum(b)

    np.testing.assert_allclose(jax.jit(jax.grad(rollout))(F32[1]), central(reference, B), rtol=1e-3, atol=1e-5)


def test_backward_statistics():
    def value(b, tap, adjoint=adjoints.Implicit()):
        return loss(F32[0], b, tap=tap, adjoint=adjoint)

    grad = jax.jit(jax.grad(value, (0, 1)), static_argnums=2)
    _, stats = grad(F32[1], BackwardStats.empty(), adjoints.Implicit(solvers.Picard(), max_steps=2))
    assert (stats.steps, stats.status) == (2, Status.MAX_STEPS)
    _, stats = grad(F32[1], BackwardStats.empty(), adjoints.Implicit(rtol=1e-3))
    assert stats.status == Status.CONVERGED
    assert stats.residual <= 1e-3
    assert stats.steps > 2


def test_backward_statistics_of_a_batch():
    rates = jnp.array([0.1, 0.9])

    def value(x, tap):
        f = lambda z: rates[:, None] * jnp.sin(z) + x
        return jnp.sum(
            fixed_point(f, jnp.zeros((2, 3)), batched=True, solver=solvers.Picard(), max_steps=200, tap=tap).z
        )

    stats = jax.grad(value, 1)(0.1 * jnp.ones((2, 3)), BackwardStats.empty(2))
    assert stats.steps.shape == (2,)
    assert stats.steps[0] < stats.steps[1]


def test_backward_solver_of_its_own():
    for adjoint in (adjoints.Implicit(solvers.Picard(), 1e-6, 500), adjoints.Implicit(solvers.Anderson(2))):
        same_grads(jax.jit(jax.grad(lambda a, b, adjoint=adjoint: loss(a, b, adjoint=adjoint), (0, 1)))(*F32))
