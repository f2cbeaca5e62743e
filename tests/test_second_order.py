"""Gradients of gradients, against central differences of Newton's method in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeq import adjoints, fixed_point, solvers
from tests.derivatives import central

A = 0.3 * np.random.default_rng(5).normal(size=(3, 3))
B = np.array([0.3, -0.2, 0.9])
V = np.array([1.0, 0.5, -2.0])

PICARD = {"solver": solvers.Picard(), "rtol": 1e-13, "max_steps": 500}
ADJOINTS = [adjoints.Implicit(), adjoints.Implicit(**PICARD), adjoints.ImplicitJVP(), adjoints.ImplicitJVP(**PICARD)]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64():
        yield


def newton(a, b):
    z = np.zeros(3)
    for _ in range(30):
        t = np.tanh(a @ z + b)
        z = z + np.linalg.solve(np.eye(3) - (1 - t**2)[:, None] * a, t - z)
    return z


def loss(a, b, adjoint=ADJOINTS[0], **settings):
    f = lambda z: jnp.tanh(a @ z + b)
    z = fixed_point(f, jnp.zeros(3), rtol=1e-13, max_steps=300, adjoint=adjoint, **settings).z
    return jnp.sum(jnp.sin(z) * z)


def exact_grad(a, b):
    """By the implicit function theorem, with explicit Jacobians."""
    z = newton(a, b)
    slope = 1 - np.tanh(a @ z + b) ** 2
    g = np.sin(z) + z * np.cos(z)
    return slope * np.linalg.solve((np.eye(3) - slope[:, None] * a).T, g)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_grad_of_grad(adjoint):
    have = jax.jit(jax.jacrev(jax.grad(lambda b: loss(A, b, adjoint))))(B)
    want = central(lambda b: exact_grad(A, b), B)
    np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(have, have.T, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("inner", [jax.grad, jax.jacfwd], ids=["reverse", "forward"])
def test_forward_over_either(inner):
    """`jax.hessian` is forward over reverse mode."""
    have = jax.jit(jax.jacfwd(inner(lambda b: loss(A, b, adjoints.ImplicitJVP()))))(B)
    np.testing.assert_allclose(have, central(lambda b: exact_grad(A, b), B), rtol=1e-6, atol=1e-8)


def test_hessian_vector_products():
    product = lambda b, v: jax.grad(lambda b: jnp.vdot(jax.grad(loss, 1)(A, b), v))(b)
    want = central(lambda t: exact_grad(A, B + t[0] * V), np.zeros(1))[0]
    np.testing.assert_allclose(jax.jit(product)(B, V), want, rtol=1e-6)


def test_mixed_derivatives():
    """Of the gradient with respect to `b`, with respect to `a`."""
    have = jax.jit(jax.grad(lambda a: jnp.vdot(jax.grad(loss, 1)(a, B), V)))(A)
    want = central(lambda a: np.vdot(exact_grad(a, B), V), A)
    np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-8)


def test_gradient_penalty_through_a_batch():
    """As in training with a penalty on input gradients, one problem a row."""
    b = np.stack([B, -B, 0.5 * B])

    def penalty(b):
        def value(b):
            f = lambda z: jnp.tanh(z @ A.T + b)
            return jnp.sum(jnp.sin(fixed_point(f, 0 * b, batched=True, rtol=1e-13).z))

        return jnp.sum(jax.grad(value)(b) ** 2)

    def row(b):
        z = newton(A, b)
        slope = 1 - np.tanh(A @ z + b) ** 2
        return np.sum((slope * np.linalg.solve((np.eye(3) - slope[:, None] * A).T, np.cos(z))) ** 2)

    have = jax.jit(jax.grad(penalty))(b)
    np.testing.assert_allclose(have, np.stack([central(row, r) for r in b]), rtol=1e-6, atol=1e-9)


def test_third_derivative():
    """`z = a z + 1`, `z = 1 / (1 - a)`: the k-th derivative is `k! / (1 - a)^(k + 1)`."""
    solve = lambda a: fixed_point(lambda z: a * z + 1, 0.0, rtol=1e-14).z
    for order in range(1, 4):
        solve = jax.grad(solve)
        np.testing.assert_allclose(jax.jit(solve)(0.5), [2, 4, 16, 96][order], rtol=1e-9)


def test_under_vmap_and_checkpoint():
    value = jax.checkpoint(lambda b: loss(A, b))
    hessians = jax.jit(jax.vmap(lambda b: jax.jacrev(jax.grad(value))(b)))(np.stack([B, -B]))
    for have, b in zip(hessians, (B, -B), strict=True):
        np.testing.assert_allclose(have, central(lambda b: exact_grad(A, b), b), rtol=1e-6, atol=1e-8)
