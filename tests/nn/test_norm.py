"""Normalised weights: what they compute, their gradients, and that nothing is overwritten."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeq.nn import DEQ, SpectralNorm, WeightNorm
from tests.nn.cells import functional, inputs

LAYERS = {
    "linear": (lambda rngs: nnx.Linear(6, 5, rngs=rngs), (3, 6)),
    "conv": (lambda rngs: nnx.Conv(6, 4, (3, 3), rngs=rngs), (2, 5, 5, 6)),
    "grouped conv": (lambda rngs: nnx.Conv(6, 4, (3,), feature_group_count=2, rngs=rngs), (2, 5, 6)),
    "einsum": (lambda rngs: nnx.Einsum("bi,io->bo", (6, 4), (4,), rngs=rngs), (3, 6)),
}

layers = pytest.mark.parametrize("name", LAYERS)


@pytest.mark.parametrize(("name", "mode"), [*((name, True) for name in LAYERS), ("linear", False)])
def test_weight_norm_starts_as_the_layer(name, mode):
    make, shape = LAYERS[name]
    with nnx.set_graph_mode(mode):
        layer = make(nnx.Rngs(0))
        x = jax.random.normal(jax.random.key(1), shape)
        want = layer(x)
        normed = WeightNorm(layer)
        kernel = jnp.copy(layer.kernel[...])
        np.testing.assert_allclose(normed(x), want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(layer.kernel[...], kernel)
        assert normed.scale[...].shape == kernel.shape[-1:]


def test_weight_norm_is_g_times_the_direction():
    normed = WeightNorm(nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0)))
    normed.layer.kernel[...] = jnp.array([[3.0, 0.0], [4.0, 0.0], [0.0, -2.0]])
    normed.scale[...] = jnp.array([10.0, 0.5])
    np.testing.assert_allclose(normed.kernel(), [[6, 0], [8, 0], [0, -0.5]], rtol=1e-6)
    np.testing.assert_allclose(normed(jnp.eye(3)), normed.kernel(), rtol=1e-6)


def test_weight_norm_over_several_output_axes():
    layer = nnx.LinearGeneral(6, (2, 4), rngs=nnx.Rngs(0))
    normed = WeightNorm(layer, axes=(-2, -1))
    assert normed.scale[...].shape == (2, 4)
    np.testing.assert_allclose(normed(inputs(3, 6)), layer(inputs(3, 6)), rtol=1e-5, atol=1e-6)


def test_weight_norm_scales_have_the_names_of_the_kernels_axes():
    names = {"out_sharding": ("in", "heads", "out"), "eager_sharding": False}
    layer = nnx.Einsum("bi,iho->bho", (2, 3, 4), rngs=nnx.Rngs(0), kernel_metadata=names)
    scale = WeightNorm(layer, axes=(-1, 1)).scale
    assert scale.shape == (3, 4)
    assert scale.get_metadata()["out_sharding"] == ("heads", "out")
    assert "out_sharding" not in WeightNorm(nnx.Linear(2, 3, rngs=nnx.Rngs(0))).scale.get_metadata()


def test_weight_norm_gradients():
    """Those of the formula; and the one of `v` is at right angles to `v`."""
    x = inputs(4, 6)
    loss, params = functional(WeightNorm(nnx.Linear(6, 5, rngs=nnx.Rngs(0))), lambda m: jnp.sum(jnp.sin(m(x))))
    pure = nnx.to_pure_dict(params)
    v, bias = pure["layer"]["kernel"], pure["layer"]["bias"]
    formula = lambda v, g: jnp.sum(jnp.sin(x @ (g * v / jnp.linalg.norm(v, axis=0)) + bias))
    grads = nnx.to_pure_dict(jax.grad(loss)(params))
    got = grads["layer"]["kernel"], grads["scale"]
    chex.assert_trees_all_close(got, jax.grad(formula, argnums=(0, 1))(v, pure["scale"]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(got[0] * v, 0), jnp.zeros(5), atol=1e-5)


@pytest.mark.parametrize("normalise", [WeightNorm, lambda layer: SpectralNorm(layer, rngs=nnx.Rngs(1))])
def test_a_kernel_of_zeros_gives_no_nan(normalise):
    layer = nnx.Linear(6, 5, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    loss, params = functional(normalise(layer), lambda m: jnp.sum(m(inputs(4, 6))))
    value, grads = jax.value_and_grad(loss)(params)
    assert value == 0
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("normalise", [WeightNorm, lambda layer: SpectralNorm(layer, rngs=nnx.Rngs(1))])
def test_half_precision_kernels_stay_so(normalise):
    normed = normalise(nnx.Linear(600, 5, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert normed.kernel().dtype == jnp.bfloat16
    assert normed(jnp.ones((2, 600), jnp.bfloat16)).dtype == jnp.bfloat16


def singular(kernel):
    return jnp.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), ord=2)


@layers
def test_spectral_norm_bounds_the_kernel(name):
    make, shape = LAYERS[name]
    normed = SpectralNorm(make(nnx.Rngs(0)), norm=0.8, rngs=nnx.Rngs(1))
    for _ in range(30):
        normed(jnp.ones(shape))
    np.testing.assert_allclose(singular(normed.kernel()), 0.8, rtol=1e-3)


def test_spectral_norm_follows_the_weights_in_training_only():
    normed = SpectralNorm(nnx.Linear(6, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    normed.layer.kernel[...] = jax.random.normal(jax.random.key(2), (6, 5))
    normed.eval()
    before = jnp.copy(normed.u[...])
    normed(inputs(2, 6))
    np.testing.assert_array_equal(normed.u[...], before)
    normed.train()
    for _ in range(50):
        normed(inputs(2, 6))
    np.testing.assert_allclose(singular(normed.kernel()), 1.0, rtol=1e-4)


def test_spectral_norm_gradient_is_that_of_the_formula():
    x = inputs(4, 6)
    normed = SpectralNorm(nnx.Linear(6, 5, use_bias=False, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    for _ in range(60):
        normed(x)
    loss, params = functional(normed, lambda m: jnp.sum(jnp.sin(m(x))))
    formula = lambda v: jnp.sum(jnp.sin(x @ v / jnp.linalg.norm(v, ord=2)))
    want = jax.grad(formula)(normed.layer.kernel[...])
    np.testing.assert_allclose(jax.tree.leaves(jax.grad(loss)(params))[0], want, rtol=1e-3, atol=1e-4)


def test_spectral_norm_moves_once_a_solve():
    class Cell(nnx.Module):
        def __init__(self, rngs):
            self.inner = SpectralNorm(nnx.Linear(6, 6, rngs=rngs), norm=0.5, rngs=rngs)

        def __call__(self, z, x):
            return self.inner(z) + x

    deq, alone = DEQ(Cell(nnx.Rngs(0))), Cell(nnx.Rngs(0)).inner
    for layer in (deq.cell.inner, alone):
        layer.layer.kernel[...] = jax.random.normal(jax.random.key(2), (6, 6))
    assert deq(inputs(3, 6)).stats.steps > 2
    alone(inputs(3, 6))
    np.testing.assert_allclose(deq.cell.inner.u[...], alone.u[...], rtol=1e-6)


def test_what_they_refuse(unchecked):
    with pytest.raises(TypeError, match=r"parameter named kernel.*got BatchNorm"):
        WeightNorm(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match=r"parameter named kernel.*got BatchNorm"):
        SpectralNorm(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="norm must be a positive number; got 0"):
        SpectralNorm(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), norm=0, rngs=nnx.Rngs(0))
