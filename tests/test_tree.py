"""The algebra of `_tree` against numpy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdeq import _tree as tree

DTYPES = ["float16", "bfloat16", "float32", "complex64"]
EPS = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6, "complex64": 1e-6}

leaves = st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (1,), (5,), (2, 3), (0,), (2, 0, 3)]))
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
)
seeds = st.integers(0, 2**16)


def is_leaf(x):
    return isinstance(x, tuple)


def draw(spec, seed, batch=()):
    """A tree of these shapes, with `batch` before each."""
    rng = np.random.default_rng(seed)

    def leaf(x):
        dtype, shape = x
        value = rng.normal(size=batch + shape)
        value = value + 1j * rng.normal(size=batch + shape) if dtype == "complex64" else value
        return jnp.asarray(value, dtype)

    return jax.tree.map(leaf, spec, is_leaf=is_leaf)


def long(x, batch=0):
    """The tree as real vectors `[*batch, n]` in float64."""
    parts = []
    for a in jax.tree.leaves(x):
        wide = np.asarray(a).astype(complex if a.dtype == jnp.complex64 else float)
        flat = wide.reshape(*a.shape[:batch], math.prod(a.shape[batch:])).astype(complex)
        parts += [flat.real, flat.imag]
    return np.concatenate(parts, axis=-1)


def slack(x):
    return max(EPS[str(a.dtype)] for a in jax.tree.leaves(x))


def close(have, want, tolerance):
    np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance * (1 + np.max(np.abs(want), initial=0)))


@settings(max_examples=12)
@given(trees, seeds, st.sampled_from([(), (3,), (1,)]))
def test_dot_norm_and_peak(spec, seed, batch):
    x, y = draw(spec, seed, batch), draw(spec, seed + 1, batch)
    b = len(batch)
    have, norm, peak = jax.jit(lambda x, y: (tree.dot(x, y, b), tree.norm(x, b), tree.peak(x, b)))(x, y)
    assert (have.dtype, have.shape) == (jnp.float32, batch)
    # Sums in float32, whatever the leaves: no more than its round-off is lost.
    np.testing.assert_allclose(have, np.sum(long(x, b) * long(y, b), -1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm, np.linalg.norm(long(x, b), axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(peak, np.max(np.abs(long(x, b)), axis=-1, initial=0))


@given(trees, seeds, st.floats(-2, 2), st.booleans())
def test_sub_axpy_where(spec, seed, weight, condition):
    x, y = draw(spec, seed), draw(spec, seed + 1)
    close(long(tree.sub(x, y)), long(x) - long(y), 2 * slack(x))
    close(long(tree.axpy(weight, x, y)), weight * long(x) + long(y), 4 * slack(x))
    picked = tree.where(jnp.array(condition), x, y)
    np.testing.assert_array_equal(long(picked), long(x if condition else y))
    for out in (tree.sub(x, y), tree.axpy(weight, x, y), picked):
        assert jax.tree.map(jax.typeof, out) == jax.tree.map(jax.typeof, x)


@given(trees, seeds)
def test_weights_and_conditions_one_a_problem(spec, seed):
    x, y = draw(spec, seed, (3,)), draw(spec, seed + 1, (3,))
    weight = np.array([0.5, -1.0, 2.0])
    want = weight[:, None] * long(x, 1) + long(y, 1)
    close(long(tree.axpy(jnp.asarray(weight, jnp.float32), x, y), 1), want, 4 * slack(x))
    mask = np.array([True, False, True])
    np.testing.assert_array_equal(
        long(tree.where(jnp.array(mask), x, y), 1), np.where(mask[:, None], long(x, 1), long(y, 1))
    )


@settings(max_examples=12)
@given(trees, seeds, st.sampled_from([(), (2,)]))
def test_stacks(spec, seed, batch):
    vectors = [draw(spec, seed + i, batch) for i in range(3)]

    @jax.jit
    def run(vectors, weights):
        empty = stacked = tree.zeros(vectors[0], 3)
        for i, v in enumerate(vectors):
            stacked = tree.put(stacked, jnp.int32(i), v)
        return empty, tree.mix(weights, stacked), tree.dot(stacked, vectors[1], len(batch) + 1)

    weights = np.array([0.5, -1.5, 2.0]).reshape(3, *(1,) * len(batch)) * np.ones((3, *batch))
    want = sum(weights[i][..., None] * long(v, len(batch)) for i, v in enumerate(vectors))
    empty, mixed, have = run(vectors, jnp.asarray(weights, jnp.float32))
    np.testing.assert_array_equal(long(empty), 0)
    close(long(mixed, len(batch)), want, 8 * slack(mixed))
    assert have.shape == (3, *batch)
    want = np.stack([np.sum(long(v, len(batch)) * long(vectors[1], len(batch)), -1) for v in vectors])
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64, jnp.bfloat16, jnp.float16, jnp.float64])
def test_norm_at_the_ends_of_the_exponent_range(dtype):
    """Up to the largest number whose norm is still one, and down to the smallest normal one."""
    with jax.enable_x64(dtype == jnp.float64):
        info = jnp.finfo(dtype)
        for size in (float(info.tiny), 1e-3, 1.0, float(info.max) / 4):
            x = jnp.full(9, size, dtype)
            np.testing.assert_allclose(jax.jit(tree.norm)([x[:4], x[4:]]) / float(x[0].real), 3.0, rtol=1e-6)


@pytest.mark.parametrize(("entry", "want"), [(jnp.nan, jnp.nan), (jnp.inf, jnp.inf), (-jnp.inf, jnp.inf), (0.0, 0.0)])
def test_norm_of_what_is_not_finite(entry, want):
    for x in (jnp.zeros(3).at[1].set(entry), jnp.zeros(3, jnp.complex64).at[1].set(entry)):
        np.testing.assert_equal(float(tree.norm([jnp.zeros(()), x])), want)


def test_norm_of_a_problem_does_not_depend_on_its_mates():
    x = jax.random.normal(jax.random.key(0), (100, 7))
    norm = jax.jit(lambda x: tree.norm(x, 1))
    for entry in (0.0, jnp.nan, 1e30, 1e-30):
        np.testing.assert_array_equal(norm(x.at[0].set(entry))[1:], norm(x)[1:])


def test_leaves_of_several_precisions_at_once():
    """The small leaf counts in the wider dtype, also where float32 would lose it."""
    with jax.enable_x64():
        x = {"wide": jnp.full(3, 1e-50, jnp.float64), "narrow": jnp.zeros(2, jnp.float32)}
        assert tree.norm(x).dtype == jnp.float64
        np.testing.assert_allclose(tree.norm(x), np.sqrt(3) * 1e-50, rtol=1e-12)


def test_reductions_of_half_precision_run_in_single():
    x = jnp.full(100_000, 0.1, jnp.bfloat16)
    np.testing.assert_allclose(tree.dot(x, x), 1e5 * float(x[0]) ** 2, rtol=1e-5)
    assert tree.norm(jnp.full(4, 6e4, jnp.float16)) == pytest.approx(2 * 6e4, rel=1e-3)
