"""Residual networks against their mathematics in numpy and torchvision's sizes."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeq.models import (
    ResNet,
    ResNetConfig,
    load_torch_state_dict,
    resnet18,
    resnet50,
    resnet101,
    to_torch_state_dict,
)

TINY = ResNetConfig((1, 2), classes=3, width=4)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 9, 12, 3)), jnp.float32)


def abstract(config):
    return nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))


def build(config):
    """A model whose every array matters, and the arrays by their names in PyTorch."""
    graphdef, state = nnx.split(abstract(config))
    model = nnx.merge(graphdef, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state))
    rng = np.random.default_rng(1)
    sd = {}
    for name, array in to_torch_state_dict(model).items():
        low = 0.5 if name.endswith("running_var") else -0.5
        sd[name] = np.asarray(rng.uniform(low, 1, array.shape), array.dtype)
    load_torch_state_dict(model, sd)
    return model, {name: np.float64(array) for name, array in sd.items()}


def conv(x, kernel, stride):
    """`[B, C, H, W]`, as PyTorch's, with zeros around."""
    size = kernel.shape[-1]
    x = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", patches, kernel)


def conv_norm(sd, x, conv_name, norm_name, stride=1):
    y = conv(x, sd[f"{conv_name}.weight"], stride)
    mean, variance, scale, bias = (
        sd[f"{norm_name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (y - mean) / np.sqrt(variance + 1e-5) * scale + bias


def by_numpy(sd, config, images):
    relu = lambda x: np.maximum(x, 0)
    x = np.float64(images).transpose(0, 3, 1, 2)
    x = relu(conv_norm(sd, x, "conv1", "bn1", 1 if config.small_images else 2))
    if not config.small_images:
        x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max((-1, -2))
    for i, blocks in enumerate(config.blocks):
        for j in range(blocks):
            name, stride, last = f"layer{i + 1}.{j}", 2 if i > 0 and j == 0 else 1, 3 if config.bottleneck else 2
            y = x
            for k in range(1, last + 1):
                here = stride if k == last - 1 else 1  # of the 3x3 convolution, the first of them in a plain block
                y = conv_norm(sd, y, f"{name}.conv{k}", f"{name}.bn{k}", here)
                y = relu(y) if k < last else y
            if f"{name}.downsample.0.weight" in sd:
                x = conv_norm(sd, x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = relu(x + y)
    return x.mean((2, 3)) @ sd["fc.weight"].T + sd["fc.bias"]


@pytest.mark.parametrize("settings", [{}, {"bottleneck": True}, {"small_images": True}], ids=str)
def test_evaluation_by_hand(settings):
    config = replace(TINY, **settings)
    model, sd = build(config)
    model.eval()
    out = jax.jit(model)(IMAGES)
    np.testing.assert_allclose(out.logits, by_numpy(sd, config, IMAGES), rtol=1e-4, atol=1e-3)
    sizes = [(9, 12), (5, 6)] if config.small_images else [(3, 3), (2, 2)]
    assert [z.shape[1:3] for z in out.z] == sizes
    assert out.stats is out.penalty is None


def test_training_normalises_by_the_batch_and_remembers_it():
    model, sd = build(TINY)
    train = nnx.jit(lambda model: model(IMAGES).logits)
    before = train(model)
    after = to_torch_state_dict(model)
    y = conv(np.float64(IMAGES).transpose(0, 3, 1, 2), sd["conv1.weight"], 2)
    mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(after["bn1.running_mean"], 0.9 * sd["bn1.running_mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["bn1.running_var"], 0.9 * sd["bn1.running_var"] + 0.1 * variance, rtol=1e-5)
    for name, array in after.items():
        if name.endswith("num_batches_tracked"):
            assert array == sd[name] + 1
        else:
            assert np.array_equal(array, np.float32(sd[name])) != ("running" in name), name
    np.testing.assert_allclose(train(model), before, rtol=1e-6)


def test_gradients_reach_every_parameter():
    model, _ = build(replace(TINY, bottleneck=True))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    loss = lambda params: jnp.sum(nnx.merge(graphdef, params, rest, copy=True)(IMAGES).logits ** 2)
    grads = jax.jit(jax.grad(loss))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(grads)):
        assert jnp.isfinite(grad).all(), path
        assert grad.any(), path


def test_bfloat16_computes_and_float32_adds_up():
    config = replace(TINY, dtype="bfloat16")
    model, sd = build(config)
    model.eval()
    out = jax.jit(model)(IMAGES)
    assert out.logits.dtype == jnp.float32
    assert out.z[-1].dtype == jnp.bfloat16
    want = by_numpy(sd, config, IMAGES)
    np.testing.assert_allclose(out.logits, want, atol=0.03 * np.abs(want).max())


@pytest.mark.parametrize(
    ("config", "parameters", "arrays"),
    [
        (resnet18(), 11_689_512, 122),
        (resnet50(), 25_557_032, 320),
        (resnet101(), 44_549_160, 626),
        # The 7x7 stem has 3 * 64 * (49 - 9) weights more, the classifier 990 * (channels + 1).
        (resnet18(10, small_images=True), 11_689_512 - 7_680 - 990 * 513, 122),
        (resnet50(10, small_images=True), 25_557_032 - 7_680 - 990 * 2049, 320),
        (resnet101(10, small_images=True), 44_549_160 - 7_680 - 990 * 2049, 626),
    ],
)
def test_sizes_of_torchvision(config, parameters, arrays):
    model = abstract(config)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters
    names = [entry.name for entry in model.torch_entries()]
    assert len(set(names)) == len(names) == arrays
    pixels = 32 if config.small_images else 224
    graphdef, state = nnx.split(model)
    call = lambda state, images: nnx.merge(graphdef, state, copy=True)(images)
    out = jax.eval_shape(call, state, jax.ShapeDtypeStruct((2, pixels, pixels, 3), jnp.float32))
    assert out.logits.shape == (2, config.classes)
    assert [z.shape[1] for z in out.z] == ([32, 16, 8, 4] if config.small_images else [56, 28, 14, 7])


def test_where_weights_start():
    model = ResNet(replace(TINY, blocks=(1,), width=32), rngs=nnx.Rngs(0))
    kernel = model.stages[0][0].layers[0].conv.kernel
    np.testing.assert_allclose(kernel[...].std(), (2 / (9 * 32)) ** 0.5, rtol=0.05)


def test_configurations_print_as_they_are():
    assert eval(repr(resnet101(10, small_images=True))) == resnet101(10, small_images=True)


def test_what_it_refuses(unchecked):
    for settings, text in (
        ({"blocks": ()}, "number of stages must be at least 1; got 0"),
        ({"blocks": (1, 0)}, "blocks must be at least 1; got 0"),
        ({"momentum": 0.0}, r"momentum must be a number in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=text):
            replace(TINY, **settings)
    with pytest.raises(TypeError, match="bottleneck must be True or False; got 1"):
        replace(TINY, bottleneck=1)
    with pytest.raises(ValueError, match=r"images must be \[batch, height, width, 3\]; got \(2, 8, 8, 1\)"):
        abstract(TINY)(jnp.zeros((2, 8, 8, 1)))
