"""Layers of a multiscale DEQ, NHWC, with the conventions of PyTorch that its weights were made under."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdeq._tree import wide_dtype
from jaxdeq.models import _entries
from jaxdeq.models._axes import CHANNELS, named
from jaxdeq.models._entries import Entry
from jaxdeq.models._mdeq_config import MDEQConfig
from jaxdeq.models._mdeq_norms import BatchNorm, Numerics
from jaxdeq.nn import WeightNorm

_small = nnx.initializers.normal(0.01)
_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's, bounded by fan_in^(-1/2)


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
