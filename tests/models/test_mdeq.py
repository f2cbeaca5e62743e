"""Multiscale DEQs where no recording looks: counts, configurations, pixels, statistics, refusals."""

import inspect
import math
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random

import jaxdeq
from jaxdeq import adjoints, solvers  # noqa: F401, for the printed configurations
from jaxdeq.models import Branch, MDEQClassifier, MDEQConfig, MDEQSegmenter, mdeq_configs, resize_bilinear
from jaxdeq.models._mdeq_cell import Block
from jaxdeq.models._mdeq_head import SegmenterHead
from jaxdeq.models._mdeq_layers import conv, linear, normalised_conv
from jaxdeq.models._mdeq_norms import BatchNorm, GroupNorm
from jaxdeq.solvers import Anderson, Broyden  # noqa: F401
from tests.models.mdeq_recording import cross_entropy

Implicit = adjoints.Implicit  # for the printed configurations

COUNTS = {  # of the PyTorch models
    "cifar10_tiny": 158_890,
    "cifar10_large": 11_097_438,
    "cifar10_large_reg": 11_097_438,
    "imagenet_small": 16_808_936,
    "imagenet_small_reg": 18_613_496,
    "imagenet_large": 67_063_624,
    "imagenet_large_reg": 67_061_224,
    "imagenet_xl": 90_463_280,
    "cityscapes_small": 8_968_467,
    "cityscapes_large": 55_955_859,
    "cityscapes_xl": 79_551_755,
}
TINY = MDEQConfig((Branch(4, 2), Branch(8, 2)), classes=3, groups=4, expansion=2, final_channels=6)
KEY = random.key(0)


def build(config, kind=MDEQClassifier):
    return kind(config, rngs=nnx.Rngs(0))


def abstract(call, config=TINY, kind=MDEQClassifier):
    """The shapes that a call of a model gives."""
    return jax.eval_shape(lambda: call(build(config, kind)))


def drawn(config, kind=MDEQClassifier):
    """A model with some values, which takes less time to make than its own initial ones."""
    model = nnx.eval_shape(lambda: build(config, kind))
    rng = np.random.default_rng(0)
    for entry in model.torch_entries():
        shape, dtype = entry.variable.shape, entry.variable.dtype
        values = rng.uniform(0.5, 1, shape) if len(shape) == 1 else rng.normal(0, 0.1, shape)
        entry.variable.set_value(jnp.asarray(values).astype(dtype))
    return model


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_in_the_reference(name):
    kind = MDEQSegmenter if name.startswith("cityscapes") else MDEQClassifier
    model = nnx.eval_shape(lambda: build(getattr(mdeq_configs, name)(), kind))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == COUNTS[name]


def test_every_configuration_is_counted():
    public = [name for name, value in vars(mdeq_configs).items() if inspect.isfunction(value)]
    assert {name for name in public if not name.startswith("_") and name != "replace"} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_configurations_print_as_code(name):
    config = getattr(mdeq_configs, name)()
    assert eval(repr(config)) == config
    assert hash(config) == hash(getattr(mdeq_configs, name)())


@pytest.mark.parametrize("kind", [MDEQClassifier, MDEQSegmenter])
@pytest.mark.parametrize("downsample", [0, 1, 4])
def test_every_variable_has_a_name(kind, downsample):
    model = nnx.eval_shape(lambda: build(replace(TINY, downsample=downsample, dropout=0.1), kind))
    variables = {id(v) for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Param | nnx.BatchStat)}
    entries = model.torch_entries()
    assert {id(entry.variable) for entry in entries} == variables
    assert len({entry.name for entry in entries}) == len(entries) == len(variables)
    assert ("downsample.DS4-BN.weight" in {entry.name for entry in entries}) == (downsample == 4)


@pytest.mark.parametrize("branches", [1, 2, 4])
def test_any_number_of_branches(branches):
    config = replace(TINY, branches=tuple(Branch(4 * (i + 1)) for i in range(branches)), downsample=1)
    size = config.stride
    out = abstract(lambda model: model(jnp.zeros((2, size, 2 * size, 3)), key=KEY), config)
    assert out.logits.shape == (2, 3)
    assert [z.shape for z in out.z] == [(2, size >> i, 2 * size >> i, 4 * i) for i in range(1, branches + 1)]
    assert out.stats.steps.shape == (2,)
    assert out.penalty.shape == ()


def test_half_precision_is_for_layers_and_their_equilibrium():
    """Convolutions take bfloat16; norms, parameters, statistics, logits and residual tests stay float32."""
    x = random.normal(KEY, (2, 4, 4, 3))
    runs = {}
    for dtype in ("float32", "bfloat16"):
        model = drawn(replace(TINY, dtype=dtype))
        for final in model.deq.cell.finals:  # contracts well: rounding is not blown up
            final.norm.affine.scale[...] *= 0.2
        state = nnx.state(model)
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
        model.eval()
        lowered = jax.jit(lambda x, model=model: model(x)).lower(x)
        runs[dtype] = lowered.compile()(x)
    half, whole = runs["bfloat16"], runs["float32"]
    assert {z.dtype for z in half.z} == {jnp.dtype(jnp.bfloat16)}
    assert half.logits.dtype == half.stats.residual.dtype == jnp.float32
    assert half.stats.converged.all()
    for got, want in zip(half.z, whole.z, strict=True):
        assert jnp.linalg.norm(got.astype(jnp.float32) - want) < 0.03 * jnp.linalg.norm(want)
    np.testing.assert_allclose(half.logits, whole.logits, atol=0.05 * float(jnp.max(jnp.abs(whole.logits))))
    halves = [line for line in lowered.as_text().splitlines() if "bf16" in line]
    convolutions = [line for line in lowered.as_text().splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all("f32" not in line.replace("bf16", "") for line in convolutions)
    assert not any(op in line for line in halves for op in ("rsqrt", "reduce(", "stablehlo.divide"))


def test_one_radius_an_image_and_a_warm_start():
    x = jnp.zeros((2, 8, 8, 3))

    def call(model):
        out = model(x, tap=jaxdeq.BackwardStats.empty(2))
        return model.spectral_radius(x, out.z, KEY), model(x, z0=out.z, max_steps=jnp.int32(3))

    radius, out = abstract(call)
    assert radius.shape == (2,)
    assert out.logits.shape == (2, 3)


def test_initial_weights():
    """N(0, 0.01), but for weight-normalised convolutions and the linear layer, which start as PyTorch's."""
    rngs = nnx.Rngs(0)
    normalised, plain = normalised_conv(32, 64, 3, TINY, rngs), conv(32, 64, 3, TINY, rngs, bias=True)
    last = linear(64, 64, TINY, rngs)
    np.testing.assert_allclose(normalised.kernel(), normalised.layer.kernel[...], rtol=1e-5)
    for value, fan_in in ((normalised.kernel(), 32 * 9), (last.kernel[...], 64), (last.bias[...], 64)):
        assert float(jnp.max(jnp.abs(value))) <= fan_in**-0.5 * (1 + 1e-5)
        np.testing.assert_allclose(jnp.std(value), (3 * fan_in) ** -0.5, rtol=0.2)
    for value in (plain.kernel[...], plain.bias[...]):
        np.testing.assert_allclose(jnp.std(value), 0.01, rtol=0.2)


def test_running_statistics_are_not_rounded_to_half_precision():
    """Small steps would be lost."""
    norm, x = BatchNorm(4, replace(TINY, momentum=0.01, param_dtype="bfloat16")), 1 + random.normal(KEY, (500, 4))
    for _ in range(3):
        norm(x)
    np.testing.assert_allclose(norm.mean[...], (1 - 0.99**3) * x.mean(0), rtol=1e-5)
    assert norm.affine.scale[...].dtype == jnp.bfloat16


def test_running_statistics_are_those_of_pytorch():
    """Momentum is the weight of the new batch; the running variance is unbiased."""
    norm, (first, second) = BatchNorm(4, replace(TINY, momentum=0.25)), random.normal(KEY, (2, 3, 2, 5, 4)) * 2 + 1
    y = norm(first)
    a = np.asarray(first).reshape(-1, 4)
    want = (a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 4), want, atol=1e-5)
    mean, variance = 0.25 * a.mean(0), 0.75 + 0.25 * a.var(0, ddof=1)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)
    np.testing.assert_allclose(norm.variance[...], variance, rtol=1e-5)
    norm(second)
    b = np.asarray(second).reshape(-1, 4)
    mean, variance = 0.75 * mean + 0.25 * b.mean(0), 0.75 * variance + 0.25 * b.var(0, ddof=1)
    norm.eval()
    np.testing.assert_allclose(norm(second).reshape(-1, 4), (b - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    assert norm.batches[...] == 2


def test_statistics_move_once_a_call():
    """However often the layer was applied; and not in evaluation."""
    model = drawn(replace(TINY, momentum=0.25, max_steps=3))
    model.stem.layers[0].norm.mean[...] *= 0
    graphdef, state = nnx.split(model)
    x = random.normal(KEY, (2, 4, 4, 3))

    def run(state):
        model = nnx.merge(graphdef, state)
        seen = jnp.mean(model.stem.layers[0].conv(x), axis=(0, 1, 2))
        steps = model(x, rtol=0.0).stats.steps
        after = nnx.state(model, nnx.BatchStat)
        model.eval()
        model(x, unroll=1)
        return seen, steps, after, nnx.state(model, nnx.BatchStat)

    seen, steps, after, later = jax.jit(run)(state)
    assert (steps > 1).all()
    np.testing.assert_allclose(after["stem"]["layers"][0]["norm"]["mean"][...], 0.25 * seen, atol=1e-6)
    counts = [leaf for leaf in jax.tree.leaves(after) if leaf.dtype == jnp.int32]
    assert set(map(int, counts)) == {1}
    chex.assert_trees_all_equal(after, later)


def test_group_norm():
    norm, x = GroupNorm(6, 3, True, TINY), random.normal(KEY, (2, 3, 5, 6)) * 3 + 1
    groups = np.asarray(x).reshape(2, 15, 3, 2)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    want = (groups - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(norm(x), want.reshape(x.shape), atol=1e-5)


@pytest.mark.parametrize("size", [(7, 9), (3, 4), (1, 1), (2, 8)])
def test_bilinear_resizing_keeps_corners(size):
    x = np.asarray(random.normal(KEY, (2, 3, 4, 5)))
    got = resize_bilinear(jnp.asarray(x), size)
    for i, j in np.ndindex(size):
        row, column = i * 2 / max(size[0] - 1, 1), j * 3 / max(size[1] - 1, 1)
        top, left = min(int(row), 1), min(int(column), 2)
        down, right = row - top, column - left
        corners = x[:, top : top + 2, left : left + 2]
        rows = (1 - down) * corners[:, 0] + down * corners[:, 1]
        np.testing.assert_allclose(got[:, i, j], (1 - right) * rows[:, 0] + right * rows[:, 1], atol=1e-5)


def test_segmenter_head():
    """Every pixel of the finest branch sees all branches; against numpy."""
    head = SegmenterHead(replace(TINY, final_kernel=3), nnx.Rngs(0))
    head.eval()
    z = (random.normal(KEY, (2, 6, 4, 4)), random.normal(random.key(1), (2, 3, 2, 8)))
    y = np.concatenate([z[0], resize_bilinear(z[1], (6, 4))], axis=-1)
    y = y @ np.asarray(head.mix.conv.kernel[0, 0]) + np.asarray(head.mix.conv.bias[...])
    y = np.pad(np.maximum(y / np.sqrt(1 + 1e-5), 0), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(head.classifier.kernel[...])
    parts = [y[:, i : i + 6, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3)]
    got = jax.jit(lambda z: head(z))(z)
    np.testing.assert_allclose(got, sum(parts) + np.asarray(head.classifier.bias[...]), atol=1e-5)


def test_segmenter_is_as_fine_as_its_finest_branch():
    config = replace(TINY, downsample=2)
    out = abstract(lambda model: model(jnp.zeros((1, 16, 32, 3))), config, MDEQSegmenter)
    assert out.logits.shape == (1, 4, 8, 3)


def test_ignored_pixels_do_not_count():
    logits = random.normal(KEY, (1, 3, 3, 4))
    labels = jnp.array([[[0, 255, 1], [2, 3, 255], [0, 0, 1]]])
    counted = np.asarray(labels) != 255
    picked = jax.nn.log_softmax(logits)[counted, labels[counted]]
    np.testing.assert_allclose(cross_entropy(logits, labels), -jnp.mean(picked), rtol=1e-6)


def test_dropout_only_in_training():
    """Whole channels of a block's second convolution; one mask a solve is the affair of `DEQ`."""
    block = Block(Branch(4), replace(TINY, dropout=0.5), nnx.Rngs(0))
    z = random.normal(KEY, (2, 3, 3, 4))
    seen = []
    block.norm2 = lambda y: seen.append(y) or y
    block(z, None)
    zeros = np.asarray(seen[0] == 0)
    assert 0 < zeros.mean() < 1
    np.testing.assert_array_equal(zeros, np.broadcast_to(zeros[:, :1, :1], zeros.shape))
    block.eval()
    block(z, None)
    np.testing.assert_array_equal(seen[0], np.where(zeros, 0, 2 * seen[1]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 33, 64, 3), "got 33x64, the nearest size that works is 32x64"),
        ((1, 1, 47, 3), "multiples of 4.*got 1x47, the nearest size that works is 4x48"),
        ((1, 32, 32, 1), r"\[batch, height, width, 3\]; got \(1, 32, 32, 1\)"),
        ((32, 32, 3), "images must be"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, message, unchecked):
    with pytest.raises(ValueError, match=message):
        abstract(lambda model: model(jnp.zeros(shape)), replace(TINY, downsample=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 3}, "groups, and half of them, must divide the channels of every branch; got 3 groups and 4"),
        (
            {"groups": 5, "branches": (Branch(5), Branch(10))},
            "half of them, must divide .* got 5 groups and 5 channels",
        ),
        ({"final_kernel": 2}, "final_kernel must be odd, so that a kernel has a centre; got 2"),
        ({"branches": ()}, "number of branches must be at least 1"),
        ({"momentum": 0.0}, "momentum must be"),
        ({"downsample": -1}, "downsample must be at least 0"),
        ({"dropout": 1.0}, r"dropout must be below 1, or nothing is left; got 1.0"),
        ({"dropout": -0.1}, "dropout must be a finite number of at least 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **settings)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="kernels must be odd"):
        Branch(4, kernels=(3, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 2.5}, "classes must be an int of at least 1; got 2.5"),
        ({"weight_norm": "yes"}, "weight_norm must be True or False; got 'yes'"),
        ({"dtype": "float33"}, "dtype must be the name of a floating dtype, such as 'bfloat16'; got 'float33'"),
        ({"param_dtype": "int32"}, "param_dtype must be the name of a floating dtype, such as 'bfloat16'; got 'int32'"),
        ({"branch": ()}, "unexpected keyword argument 'branch'"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(settings, message, unchecked):
    with pytest.raises(TypeError, match=message):
        replace(TINY, **settings)
