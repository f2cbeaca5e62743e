"""The spectral radius, against eigenvalues from numpy and recorded ones."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from jax.flatten_util import ravel_pytree

import jaxdeq

RECORDED = np.load(Path(__file__).parent / "data" / "jacobian_tanh.npz")
KEY = random.key(0)


def matrix(n, seed):
    return random.normal(random.key(seed), (n, n)) / n**0.5


def recorded(problem, iters=100, **settings):
    """The radius of the recorded map, z [b, d, l]."""
    z, w, u, b, x = (jnp.asarray(RECORDED[k], jnp.float32) for k in (f"{problem}/z", f"{problem}/W", "U", "b", "x"))
    f = lambda z: jnp.tanh(jnp.einsum("ij,bjl->bil", w, z) + jnp.einsum("ij,bjl->bil", u, x) + b[:, None])
    return jaxdeq.spectral_radius(f, z, KEY, iters=iters, **settings)


def spectrum(*values, n=60, rest=0.8, skew=0.0):
    """A real matrix with these eigenvalues, the others smaller; `skew` makes it non-normal."""
    rng = np.random.default_rng(0)
    blocks = np.diag(rng.uniform(-rest, rest, n))
    for i, value in enumerate(values):
        a, b = np.real(value), np.imag(value)
        blocks[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[a, -b], [b, a]] if b else [[a, 0], [0, blocks[2 * i, 2 * i]]]
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0] + skew * rng.standard_normal((n, n)) / n**0.5
    return basis @ blocks @ np.linalg.inv(basis)


SPECTRA = {  # matrix, relative error after 64 products
    "one real": (spectrum(0.95), 1e-5),
    "one negative": (spectrum(-0.95), 1e-5),
    "a complex pair": (spectrum(0.7 + 0.6j), 1e-5),
    "a pair of rotations": (spectrum(0.9j), 1e-5),
    "plus and minus": (spectrum(0.9, -0.9), 1e-5),
    "nearly equal": (spectrum(0.95, -0.945, 0.2 + 0.92j, 0.93), 1e-3),
    "non-normal": (spectrum(0.7 + 0.6j, skew=1.0), 1e-4),
    "above one": (spectrum(3.0, 2.9), 1e-4),
    "random": (np.random.default_rng(1).standard_normal((60, 60)) / 60**0.5, 1e-3),
    "random, wide": (np.random.default_rng(1).standard_normal((200, 200)) / 200**0.5, 2e-2),
    "a rotation": (0.9 * np.array([[0.0, -1.0], [1.0, 0.0]]), 1e-5),
    "one number": (np.array([[-0.3]]), 1e-5),
    "identity": (np.eye(60), 1e-5),
    "tiny": (1e-12 * spectrum(0.7 + 0.6j), 1e-5),
    "huge": (1e12 * spectrum(0.7 + 0.6j), 1e-5),
}


def radius(w, **settings):
    w = jnp.asarray(w, jnp.float32)
    return jaxdeq.spectral_radius(lambda z, w: w @ z, jnp.ones(len(w)), KEY, w, **settings)


@pytest.mark.parametrize("name", SPECTRA)
def test_radius_is_the_largest_eigenvalue(name):
    w, error = SPECTRA[name]
    np.testing.assert_allclose(radius(w), np.abs(np.linalg.eigvals(w)).max(), rtol=error)


@pytest.mark.parametrize("n", [1, 40])
def test_radius_of_zero_and_of_nilpotent_matrices_is_zero(n):
    assert radius(np.zeros((n, n))) == 0
    assert radius(np.triu(np.ones((n, n)), 1)) == 0


@pytest.mark.parametrize("iters", [1, 16, 17])
def test_radius_with_few_products_is_finite(iters):
    assert 0 < radius(spectrum(0.95), iters=iters) < 1
    assert radius(np.zeros((60, 60)), iters=iters) == 0


@pytest.mark.parametrize("problem", ["contractive", "stiff", "sym"])
def test_radius_of_each_sample_is_the_recorded_one(problem):
    np.testing.assert_allclose(recorded(problem, batched=True), RECORDED[f"{problem}/sradius_exact"], rtol=1e-3)


def test_radius_of_a_batch_is_the_largest_of_its_samples():
    np.testing.assert_allclose(recorded("contractive"), RECORDED["contractive/sradius_exact"].max(), rtol=1e-3)


def test_a_sample_does_not_see_its_batch():
    f = lambda z, s: s[:, None] * z @ jnp.asarray(spectrum(0.7 + 0.6j, n=8), jnp.float32)
    z = jnp.ones((3, 8))
    both = jaxdeq.spectral_radius(f, z, KEY, jnp.array([1.0, 0.0, 1e6]), batched=True)
    np.testing.assert_allclose(both, [0.85**0.5, 0.0, 0.85**0.5 * 1e6], rtol=1e-4)


def test_radius_of_trees_and_of_complex_states():
    z = {"a": jnp.arange(4.0).reshape(2, 2) / 4, "b": jnp.arange(1.0, 4.0) / 3}
    pair = lambda z: {"a": jnp.sin(z["a"]) * z["b"].sum(), "b": jnp.cos(z["b"]) * z["a"].mean() + z["b"] ** 2}
    flat, unravel = ravel_pytree(z)
    jacobian = jax.jacobian(lambda v: ravel_pytree(pair(unravel(v)))[0])(flat)
    want = np.abs(np.linalg.eigvals(np.asarray(jacobian, np.float64))).max()
    np.testing.assert_allclose(jaxdeq.spectral_radius(pair, z, KEY), want, rtol=1e-4)

    w = np.asarray(jax.lax.complex(matrix(6, 7), matrix(6, 8)))
    got = jaxdeq.spectral_radius(lambda z, w: w @ z, jnp.ones(6, jnp.complex64), KEY, jnp.asarray(w))
    np.testing.assert_allclose(got, np.abs(np.linalg.eigvals(w)).max(), rtol=1e-4)


def test_radius_in_bfloat16():
    w = jnp.asarray(spectrum(0.7 + 0.6j, n=8, rest=0.5), jnp.bfloat16)
    got = jaxdeq.spectral_radius(lambda z, w: w @ z, jnp.ones(8, jnp.bfloat16), KEY, w)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 0.85**0.5, rtol=0.03)


def test_radius_under_vmap():
    ws = jnp.asarray(np.stack([spectrum(0.95, n=8), spectrum(0.7 + 0.6j, n=8)]), jnp.float32)
    got = jax.vmap(lambda w: jaxdeq.spectral_radius(lambda z: w @ z, jnp.ones(8), KEY))(ws)
    np.testing.assert_allclose(got, [0.95, 0.85**0.5], rtol=1e-4)


def test_eager_calls_compile_once():
    f = lambda z, w: jnp.tanh(w @ z)
    jaxdeq.spectral_radius(f, jnp.ones(7), KEY, matrix(7, 0))
    before = jaxdeq._regularizers._radius._cache_size()
    for seed in range(3):
        jaxdeq.spectral_radius(f, jnp.ones(7), random.key(seed), matrix(7, seed))
    assert jaxdeq._regularizers._radius._cache_size() == before


def test_what_the_radius_refuses(unchecked):
    with pytest.raises(ValueError, match="iters must be at least 1; got 0"):
        jaxdeq.spectral_radius(jnp.sin, jnp.ones(3), KEY, iters=0)
    with pytest.raises(ValueError, match="leading batch axis"):
        jaxdeq.spectral_radius(jnp.sin, jnp.ones(()), KEY, batched=True)
