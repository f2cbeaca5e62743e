"""Layers of a DEQ-Transformer, with the conventions of PyTorch that its weights were made under."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdeq._tree import wide, wide_dtype
from jaxdeq.models import _entries
from jaxdeq.models._axes import CHANNELS, named
from jaxdeq.models._entries import Entry
from jaxdeq.models._lm_config import LMConfig
from jaxdeq.nn import VariationalDropout, WeightNorm

EPS = 1e-5  # of layer normalisation, as in PyTorch
LONGEST = 10_000.0  # wavelength of positions, in units of 2 pi

_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's, bounded by fan_in^(-1/2)


def initial(config: LMConfig) -> nnx.Initializer:
    """What all that is not weight-normalised starts from."""
    return nnx.initializers.normal(config.init_std)


class Buffer(nnx.Variable):
    """A constant that checkpoints hold."""


def layer_norm(x: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over the last axis; no scale, no offset. In float32 or better."""
    y = wide(x)
    y = y - jnp.mean(y, -1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + EPS)).astype(x.dtype)


def linear(
    inputs: int,
    outputs: int,
    config: LMConfig,
    rngs: nnx.Rngs,
    *,
    bias: bool = True,
    init: nnx.Initializer | None = None,
    axes: tuple[str | None, str | None] = (CHANNELS, None),
) -> nnx.Linear:
    """A linear layer that starts from `init`, the configuration's if None, and zeros.

    `axes` names its inputs and outputs, for rules that lay it out on a mesh.
    """
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        kernel_init=init or initial(config),
        kernel_metadata=named(*axes),
        rngs=rngs,
    )


def normalised_linear(
    inputs: int, outputs: int, config: LMConfig, rngs: nnx.Rngs, **settings: Any
) -> nnx.Linear | WeightNorm:
    """A linear layer, weight-normalised if the configuration says so; `settings` as for `linear`.

    It then starts from PyTorch's default, not as others do: the reference draws that too, but
    into a kernel that is computed anew from lengths and directions before each use.
    """
    if not config.weight_norm:
        return linear(inputs, outputs, config, rngs, **settings)
    return WeightNorm(linear(inputs, outputs, config, rngs, init=_default, **settings))


def weights(layer: nnx.Linear | WeightNorm) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias that a layer computes with; zeros without a bias."""
    plain = layer.layer if isinstance(layer, WeightNorm) else layer
    assert isinstance(plain, nnx.Linear)
    kernel = layer.kernel() if isinstance(layer, WeightNorm) else plain.kernel[...]
    bias = jnp.zeros(kernel.shape[-1], kernel.dtype) if plain.bias is None else plain.bias[...]
    return kernel.astype(plain.dtype), bias.astype(plain.dtype)


def linear_entries(name: str, layer: nnx.Linear | WeightNorm, ndim: int = 2) -> list[Entry]:
    """A linear layer, or in PyTorch a convolution of size 1, whose kernel has `ndim` = 3 axes."""
    plain = layer.layer if isinstance(layer, WeightNorm) else layer
    assert isinstance(plain, nnx.Linear)
    ends = (1,) * (ndim - 2)
    matrix = lambda name: Entry(
        name, plain.kernel, lambda a: a.reshape(a.shape[:2]).T, lambda a: a.T.reshape(*a.T.shape, *ends)
    )
    if isinstance(layer, WeightNorm):
        entries = [_entries.lengths(f"{name}.weight_g", layer.scale, ndim), matrix(f"{name}.weight_v")]
    else:
        entries = [matrix(f"{name}.weight")]
    return entries if plain.bias is None else [*entries, _entries.same(f"{name}.bias", plain.bias)]


def dropout(rate: float, rngs: nnx.Rngs, shared: tuple[int, ...] | None = None) -> VariationalDropout:
    """Dropout whose mask is the same along the axes `shared`; without a random state where it does nothing."""
    return VariationalDropout(rate, broadcast_dims=shared, rngs=rngs if rate else None)


class Positions(nnx.Module):
    """Sines, then cosines, of distances to the last position."""

    def __init__(self, config: LMConfig):
        powers = np.arange(0, config.width, 2, dtype=np.float32) / np.float32(config.width)
        frequencies = np.float32(1) / np.float32(LONGEST) ** powers
        # The reference rounds them to float32, and keeps them in its checkpoints.
        self.frequencies = Buffer(jnp.asarray(frequencies, wide_dtype(jnp.dtype(config.param_dtype))))
        self.dtype = config.state_dtype

    def __call__(self, length: int) -> jax.Array:
        """`[length, width]`, for the distances `length - 1, ..., 0`."""
        distances = jnp.arange(length - 1, -1, -1, dtype=self.dtype)
        angles = distances[:, None] * self.frequencies[...].astype(self.dtype)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def torch_entries(self, name: str) -> list[Entry]:
        return [_entries.same(f"{name}.inv_freq", self.frequencies)]
