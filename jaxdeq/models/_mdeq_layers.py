"""Layers of a multiscale DEQ, NHWC, with the conventions of PyTorch that its weights were made under."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdeq._tree import wide, wide_dtype
from jaxdeq.models import _entries
from jaxdeq.models._axes import CHANNELS, named
from jaxdeq.models._entries import Entry
from jaxdeq.models._mdeq_config import MDEQConfig
from jaxdeq.nn import WeightNorm

EPS = 1e-5  # of all normalisations, as in PyTorch

_small = nnx.initializers.normal(0.01)
_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's, bounded by fan_in^(-1/2)


@runtime_checkable
class Numerics(Protocol):
    """What layers want to know of a model's configuration."""

    @property
    def dtype(self) -> str:
        """Of convolutions."""

    @property
    def param_dtype(self) -> str:
        """Of parameters and statistics."""

    @property
    def momentum(self) -> float:
        """The weight of a new batch in BatchNorm's running statistics."""


def conv(
    inputs: int,
    outputs: int,
    size: int,
    config: Numerics,
    rngs: nnx.Rngs,
    *,
    stride: int = 1,
    bias: bool = False,
    init: nnx.Initializer = _small,
    axes: tuple[str | None, str | None] = (None, CHANNELS),
) -> nnx.Conv:
    """A convolution of odd size with zeros around the image, as wide as PyTorch puts them.

    `axes` names its inputs and outputs, for rules that lay it out on a mesh.
    """
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=bias,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        kernel_init=init,
        bias_init=_small,
        kernel_metadata=named(None, None, *axes),
        rngs=rngs,
    )


def normalised_conv(
    inputs: int,
    outputs: int,
    size: int,
    config: MDEQConfig,
    rngs: nnx.Rngs,
    *,
    axes: tuple[str | None, str | None] = (None, CHANNELS),
) -> nnx.Conv | WeightNorm:
    """A convolution, weight-normalised if the configuration says so.

    It then starts from PyTorch's default, not from N(0, 0.01): the reference draws that too, but
    into a kernel that is computed anew from lengths and directions before each use.
    """
    if not config.weight_norm:
        return conv(inputs, outputs, size, config, rngs, axes=axes)
    return WeightNorm(conv(inputs, outputs, size, config, rngs, init=_default, axes=axes))


def linear(inputs: int, outputs: int, config: Numerics, rngs: nnx.Rngs) -> nnx.Linear:
    """PyTorch's linear layer, in float32 or better."""
    bound = inputs**-0.5
    return nnx.Linear(
        inputs,
        outputs,
        dtype=wide_dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        kernel_init=_default,
        bias_init=lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
        kernel_metadata=named(CHANNELS, None),
        rngs=rngs,
    )


class Affine(nnx.Module):
    """A scale and an offset a channel, or none."""

    def __init__(self, channels: int, affine: bool, config: Numerics):
        dtype = jnp.dtype(config.param_dtype)
        self.scale = nnx.Param(jnp.ones(channels, dtype)) if affine else None
        self.bias = nnx.Param(jnp.zeros(channels, dtype)) if affine else None

    def __call__(self, x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        """Normalises `x` and applies both; `mean` and `variance` broadcast against it."""
        factor = jax.lax.rsqrt(variance + EPS)
        if self.scale is None or self.bias is None:
            return ((wide(x) - mean) * factor).astype(x.dtype)
        factor = factor * wide(self.scale[...])
        return ((wide(x) - mean) * factor + wide(self.bias[...])).astype(x.dtype)

    def torch_entries(self, name: str) -> list[Entry]:
        if self.scale is None or self.bias is None:
            return []
        return [_entries.same(f"{name}.weight", self.scale), _entries.same(f"{name}.bias", self.bias)]


class GroupNorm(nnx.Module):
    """Group normalisation; its statistics are in float32 or better.

    Sums run over positions first and over the few channels of a group last, which is how the data
    lie in memory.
    """

    def __init__(self, channels: int, groups: int, affine: bool, config: MDEQConfig):
        self.affine = Affine(channels, affine, config)
        self.groups = groups

    def __call__(self, x: jax.Array) -> jax.Array:
        mean = self._group_mean(wide(x))
        variance = self._group_mean(jnp.square(wide(x) - mean))
        return self.affine(x, mean, variance)

    def _group_mean(self, x):
        """The mean of each group, repeated for its channels: `[batch, 1, 1, channels]`."""
        means = jnp.mean(x, axis=(1, 2), keepdims=True)
        grouped = means.reshape(*means.shape[:-1], self.groups, -1)
        return jnp.broadcast_to(jnp.mean(grouped, axis=-1, keepdims=True), grouped.shape).reshape(means.shape)

    def torch_entries(self, name: str) -> list[Entry]:
        return self.affine.torch_entries(name)


class BatchNorm(nnx.Module):
    """Batch normalisation whose running variance is unbiased, as PyTorch's is and Flax's is not.

    Over a batch that is spread over devices, the statistics are those of the whole batch.
    """

    def __init__(self, channels: int, config: Numerics, *, affine: bool = True):
        dtype = jnp.dtype(config.param_dtype)
        self.affine = Affine(channels, affine, config)
        self.mean = nnx.BatchStat(jnp.zeros(channels, dtype))
        self.variance = nnx.BatchStat(jnp.ones(channels, dtype))
        self.batches = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.momentum = config.momentum
        self.use_running_average = False  # toggled by train() and eval()

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.use_running_average:
            return self.affine(x, wide(self.mean[...]), wide(self.variance[...]))
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(wide(x), axis=axes)
        variance = jnp.mean(jnp.square(wide(x) - mean), axis=axes)
        count = x.size // x.shape[-1]
        self._move(self.mean, mean)
        self._move(self.variance, variance * (count / max(count - 1, 1)))
        self.batches[...] += 1
        return self.affine(x, mean, variance)

    def _move(self, running, new):
        old, new = running[...], jax.lax.stop_gradient(new)
        running[...] = ((1 - self.momentum) * wide(old) + self.momentum * wide(new)).astype(old.dtype)

    def torch_entries(self, name: str) -> list[Entry]:
        return [
            *self.affine.torch_entries(name),
            _entries.same(f"{name}.running_mean", self.mean),
            _entries.same(f"{name}.running_var", self.variance),
            _entries.count(f"{name}.num_batches_tracked", self.batches),
        ]


class ConvNorm(nnx.Module):
    """A convolution and a batch normalisation."""

    def __init__(self, inputs, outputs, size, config, rngs, *, stride=1, bias=False, affine=True, init=_small):
        self.conv = conv(inputs, outputs, size, config, rngs, stride=stride, bias=bias, init=init)
        self.norm = BatchNorm(outputs, config, affine=affine)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))

    def torch_entries(self, conv_name: str, norm_name: str) -> list[Entry]:
        return [*conv_entries(conv_name, self.conv), *self.norm.torch_entries(norm_name)]


def conv_entries(name: str, layer: nnx.Conv | WeightNorm) -> list[Entry]:
    """The arrays of a convolution, weight-normalised or not."""
    if isinstance(layer, WeightNorm):
        directions: Any = layer.layer
        return [
            _entries.lengths(f"{name}.weight_g", layer.scale, ndim=4),
            _entries.kernel(f"{name}.weight_v", directions.kernel),
        ]
    return [_entries.kernel(f"{name}.weight", layer.kernel), *_bias(name, layer)]


def linear_entries(name: str, layer: nnx.Linear) -> list[Entry]:
    """The arrays of a linear layer."""
    return [_entries.transposed(f"{name}.weight", layer.kernel), *_bias(name, layer)]


def _bias(name, layer):
    return [] if layer.bias is None else [_entries.same(f"{name}.bias", layer.bias)]


def resize_nearest(x: jax.Array, factor: int) -> jax.Array:
    """Repeats every pixel `factor` times in height and width."""
    b, h, w, c = x.shape
    # One axis after the other: under Explicit mesh axes a reshape may merge one pair.
    x = jnp.broadcast_to(x[:, :, None], (b, h, factor, w, c)).reshape(b, h * factor, w, c)
    return jnp.broadcast_to(x[:, :, :, None], (b, h * factor, w, factor, c)).reshape(b, h * factor, w * factor, c)


def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes images or logits `[B, H, W, C]` to `[B, *size, C]` so that corner pixels stay in the corners.

    Linear in height and in width: two small matrix products, in float32 or better. It is what
    PyTorch calls `interpolate(mode="bilinear", align_corners=True)`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxdeq.models import resize_bilinear
      >>> resize_bilinear(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 3)).ravel()
      Array([0. , 0.5, 1. ], dtype=float32)
    """
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = (_interpolation(n, m, wide(x).dtype) for n, m in zip(size, x.shape[1:3], strict=True))
    y = jnp.einsum("ih,bhwc->biwc", rows, wide(x), precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("jw,biwc->bijc", columns, y, precision=jax.lax.Precision.HIGHEST).astype(x.dtype)


def _interpolation(outputs, inputs, dtype):
    """The matrix `[outputs, inputs]` of linear interpolation between the end points."""
    position = np.arange(outputs) * ((inputs - 1) / max(outputs - 1, 1))
    weights = 1 - np.abs(position[:, None] - np.arange(inputs))
    return jnp.asarray(np.maximum(weights, 0), dtype)
