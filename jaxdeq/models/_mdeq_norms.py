"""Normalisations over images, NHWC, with PyTorch's conventions."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdeq._tree import wide, wide_dtype
from jaxdeq.models import _entries
from jaxdeq.models._entries import Entry
from jaxdeq.models._mdeq_config import MDEQConfig

EPS = 1e-5  # of all normalisations, as in PyTorch


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
        dtype = wide_dtype(jnp.dtype(config.param_dtype))  # in half precision small changes would be rounded away
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
