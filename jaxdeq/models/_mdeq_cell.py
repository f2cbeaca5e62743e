"""The layer whose fixed point a multiscale DEQ computes."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdeq.models._axes import CHANNELS, INNER
from jaxdeq.models._entries import Entry
from jaxdeq.models._mdeq_config import Branch, MDEQConfig
from jaxdeq.models._mdeq_layers import conv, conv_entries, normalised_conv
from jaxdeq.models._mdeq_norms import GroupNorm
from jaxdeq.models._resize import resize_nearest
from jaxdeq.nn import VariationalDropout

Branches = tuple[jax.Array, ...]  # [B, H / 2^i, W / 2^i, C_i], finest first


class Cell(nnx.Module):
    """Residual blocks on every branch, then every branch hears from every other.

    The injected image features `x` enter the first block of the finest branch only.
    """

    def __init__(self, config: MDEQConfig, rngs: nnx.Rngs):
        self.branches = nnx.List(
            [nnx.List([Block(branch, config, rngs) for _ in range(branch.blocks)]) for branch in config.branches]
        )
        indices = range(len(config.branches))
        self.fusions = nnx.List([Fusion(i, config, rngs) for i in indices])
        self.finals = nnx.List([Final(branch, config, rngs) for branch in config.branches])
        self.channels = tuple(branch.channels for branch in config.branches)

    def __call__(self, z: Branches, x: jax.Array) -> Branches:
        return self.finish(self.fuse(self.transform(z, x)))

    def initial_state(self, x: jax.Array) -> Branches:
        """Zeros."""
        b, h, w, _ = x.shape
        # From `x`, so that they lie on the mesh as it does.
        blank = jnp.zeros_like(x[..., :1])
        return tuple(
            jnp.broadcast_to(blank[:, : h >> i, : w >> i], (b, h >> i, w >> i, channels))
            for i, channels in enumerate(self.channels)
        )

    def transform(self, z: Branches, x: jax.Array) -> Branches:
        """The blocks of each branch."""
        out = []
        for i, (blocks, y) in enumerate(zip(self.branches, z, strict=True)):
            for j, block in enumerate(blocks):
                y = block(y, x if i == j == 0 else None)
            out.append(y)
        return tuple(out)

    def fuse(self, z: Branches) -> Branches:
        """For each branch, the sum of what it gets from all."""
        return tuple(fusion(z) for fusion in self.fusions)

    def finish(self, z: Branches) -> Branches:
        """The last layers of each branch."""
        return tuple(final(y) for final, y in zip(self.finals, z, strict=True))

    def torch_entries(self, name: str) -> list[Entry]:
        entries = []
        for i, blocks in enumerate(self.branches):
            for j, block in enumerate(blocks):
                entries += block.torch_entries(f"{name}.branches.{i}.blocks.{j}")
        for i, fusion in enumerate(self.fusions):
            entries += fusion.torch_entries(f"{name}.fuse_layers.{i}")
        for i, final in enumerate(self.finals):
            entries += final.torch_entries(f"{name}.post_fuse_layers.{i}")
        return entries


class Block(nnx.Module):
    """Two convolutions, the first one widening, around which the input is added."""

    def __init__(self, branch: Branch, config: MDEQConfig, rngs: nnx.Rngs):
        width, inner = branch.channels, branch.channels * config.expansion
        self.conv1 = normalised_conv(width, inner, branch.kernels[0], config, rngs, axes=(CHANNELS, INNER))
        self.norm1 = GroupNorm(inner, config.groups, config.block_affine, config)
        self.conv2 = normalised_conv(inner, width, branch.kernels[1], config, rngs, axes=(INNER, CHANNELS))
        self.dropout = VariationalDropout(config.dropout, rngs=rngs if config.dropout else None)
        self.norm2 = GroupNorm(width, config.groups, config.block_affine, config)
        self.norm3 = GroupNorm(width, config.groups, config.block_affine, config)

    def __call__(self, z: jax.Array, x: jax.Array | None) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.conv1(z)))
        y = self.dropout(self.conv2(y))
        y = self.norm2(y if x is None else y + x)
        return self.norm3(jax.nn.relu(y + z))

    def torch_entries(self, name: str) -> list[Entry]:
        return [
            *conv_entries(f"{name}.conv1", self.conv1),
            *self.norm1.torch_entries(f"{name}.gn1"),
            *conv_entries(f"{name}.conv2", self.conv2),
            *self.norm2.torch_entries(f"{name}.gn2"),
            *self.norm3.torch_entries(f"{name}.gn3"),
        ]


class Fusion(nnx.Module):
    """What branch `target` gets from all branches, brought to its resolution and summed."""

    def __init__(self, target: int, config: MDEQConfig, rngs: nnx.Rngs):
        last = len(config.branches)
        self.target = target
        self.downs = nnx.List([Down(source, target, config, rngs) for source in range(target)])
        self.ups = nnx.List([Up(source, target, config, rngs) for source in range(target + 1, last)])

    def __call__(self, z: Branches) -> jax.Array:
        total = z[self.target]
        for down, y in zip(self.downs, z[: self.target], strict=True):
            total = total + down(y)
        for up, y in zip(self.ups, z[self.target + 1 :], strict=True):
            total = total + up(y)
        return total

    def torch_entries(self, name: str) -> list[Entry]:
        entries = []
        for source, down in enumerate(self.downs):
            entries += down.torch_entries(f"{name}.{source}.net")
        for source, up in enumerate(self.ups, self.target + 1):
            entries += up.torch_entries(f"{name}.{source}.net")
        return entries


class Up(nnx.Module):
    """From a coarse branch to a finer one: channels first, while there are few pixels."""

    def __init__(self, source: int, target: int, config: MDEQConfig, rngs: nnx.Rngs):
        outputs = config.branches[target].channels
        self.conv = conv(config.branches[source].channels, outputs, 1, config, rngs)
        self.norm = GroupNorm(outputs, config.groups, config.fuse_affine, config)
        self.factor = 2 ** (source - target)

    def __call__(self, z: jax.Array) -> jax.Array:
        return resize_nearest(self.norm(self.conv(z)), self.factor)

    def torch_entries(self, name: str) -> list[Entry]:
        return [*conv_entries(f"{name}.conv", self.conv), *self.norm.torch_entries(f"{name}.gnorm")]


class Down(nnx.Module):
    """From a fine branch to a coarser one: each convolution halves, the last one changes the channels."""

    def __init__(self, source: int, target: int, config: MDEQConfig, rngs: nnx.Rngs):
        inputs, outputs = config.branches[source].channels, config.branches[target].channels
        widths = [inputs] * (target - source) + [outputs]
        pairs = list(pairwise(widths))
        self.convs = nnx.List([conv(a, b, 3, config, rngs, stride=2) for a, b in pairs])
        self.norms = nnx.List([GroupNorm(b, config.groups, config.fuse_affine, config) for _, b in pairs])

    def __call__(self, z: jax.Array) -> jax.Array:
        for step, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            z = norm(layer(jax.nn.relu(z) if step else z))
        return z

    def torch_entries(self, name: str) -> list[Entry]:
        entries = []
        for step, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            entries += conv_entries(f"{name}.{step}.conv", layer)
            entries += norm.torch_entries(f"{name}.{step}.gnorm")
        return entries


class Final(nnx.Module):
    """The end of the layer on one branch. Its normalisation has half as many groups."""

    def __init__(self, branch: Branch, config: MDEQConfig, rngs: nnx.Rngs):
        self.conv = normalised_conv(branch.channels, branch.channels, 1, config, rngs)
        self.norm = GroupNorm(branch.channels, config.groups // 2, config.post_affine, config)

    def __call__(self, z: jax.Array) -> jax.Array:
        return self.norm(self.conv(jax.nn.relu(z)))

    def torch_entries(self, name: str) -> list[Entry]:
        return [*conv_entries(f"{name}.conv", self.conv), *self.norm.torch_entries(f"{name}.gnorm")]
