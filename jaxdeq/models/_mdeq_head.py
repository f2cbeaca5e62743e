"""What comes before and after the equilibrium of a multiscale DEQ."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdeq._tree import wide
from jaxdeq.models._axes import CHANNELS
from jaxdeq.models._entries import Entry
from jaxdeq.models._mdeq_config import Branch, MDEQConfig
from jaxdeq.models._mdeq_layers import ConvNorm, conv, conv_entries, linear, linear_entries
from jaxdeq.models._resize import resize_bilinear

WIDENING = 4  # of a bottleneck: outputs for each channel inside


class Stem(nnx.Module):
    """From images to the features that are injected into the finest branch."""

    def __init__(self, config: MDEQConfig, rngs: nnx.Rngs):
        width = config.branches[0].channels
        inputs = [config.inputs, *[width] * (max(2, config.downsample) - 1)]
        strides = [2 if i < config.downsample else 1 for i in range(len(inputs))]
        self.layers = nnx.List(
            [ConvNorm(n, width, 3, config, rngs, stride=stride) for n, stride in zip(inputs, strides, strict=True)]
        )
        # The reference leaves it out here, and so do the published counts of parameters.
        plain = config.downsample == 0 and len(config.branches) <= 2
        self.last = None if plain else ConvNorm(width, width, 1, config, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x if self.last is None else jax.nn.relu(self.last(x))

    def torch_entries(self) -> list[Entry]:
        entries = []
        for i, layer in enumerate(self.layers):
            names = (f"{3 * i}", f"{3 * i + 1}") if i < 2 else (f"DS{i + 1}", f"DS{i + 1}-BN")
            entries += layer.torch_entries(*(f"downsample.{name}" for name in names))
        if self.last is not None:
            entries += self.last.torch_entries("stage0.0", "stage0.1")
        return entries


class ClassifierHead(nnx.Module):
    """Walks from the finest branch to the coarsest, then averages over positions."""

    def __init__(self, config: MDEQConfig, rngs: nnx.Rngs):
        widths = [WIDENING * branch.head for branch in config.branches]
        self.bottlenecks = nnx.List([Bottleneck(branch, config, rngs) for branch in config.branches])
        self.downs = nnx.List([ConvNorm(a, b, 3, config, rngs, stride=2, bias=True) for a, b in pairwise(widths)])
        self.last = ConvNorm(widths[-1], config.final_channels, 1, config, rngs, bias=True)
        self.classifier = linear(config.final_channels, config.classes, config, rngs)

    def __call__(self, z: tuple[jax.Array, ...]) -> jax.Array:
        first, *others = self.bottlenecks
        y = first(z[0])
        for bottleneck, down, branch in zip(others, self.downs, z[1:], strict=True):
            y = bottleneck(branch) + jax.nn.relu(down(y))
        y = jax.nn.relu(self.last(y))
        return self.classifier(jnp.mean(wide(y), axis=(1, 2)))

    def torch_entries(self) -> list[Entry]:
        entries = []
        for i, bottleneck in enumerate(self.bottlenecks):
            entries += bottleneck.torch_entries(f"incre_modules.{i}.0")
        for i, down in enumerate(self.downs):
            entries += down.torch_entries(f"downsamp_modules.{i}.0", f"downsamp_modules.{i}.1")
        return [
            *entries,
            *self.last.torch_entries("final_layer.0", "final_layer.1"),
            *linear_entries("classifier", self.classifier),
        ]


class Bottleneck(nnx.Module):
    """A residual block that is narrow inside. Only its shortcut's normalisation has scales."""

    def __init__(self, branch: Branch, config: MDEQConfig, rngs: nnx.Rngs):
        inputs, inner, outputs = branch.channels, branch.head, WIDENING * branch.head
        self.layers = nnx.List(
            [
                ConvNorm(inputs, inner, 1, config, rngs, affine=False),
                ConvNorm(inner, inner, 3, config, rngs, affine=False),
                ConvNorm(inner, outputs, 1, config, rngs, affine=False),
            ]
        )
        self.shortcut = None if inputs == outputs else ConvNorm(inputs, outputs, 1, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        first, second, third = self.layers
        y = third(jax.nn.relu(second(jax.nn.relu(first(x)))))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    def torch_entries(self, name: str) -> list[Entry]:
        entries = []
        for i, layer in enumerate(self.layers, 1):
            entries += layer.torch_entries(f"{name}.conv{i}", f"{name}.bn{i}")
        if self.shortcut is not None:
            entries += self.shortcut.torch_entries(f"{name}.downsample.0", f"{name}.downsample.1")
        return entries


class SegmenterHead(nnx.Module):
    """Brings all branches to the finest resolution and classifies each pixel."""

    def __init__(self, config: MDEQConfig, rngs: nnx.Rngs):
        width = sum(branch.channels for branch in config.branches)
        self.mix = ConvNorm(width, width, 1, config, rngs, bias=True)
        self.classifier = conv(
            width, config.classes, config.final_kernel, config, rngs, bias=True, axes=(CHANNELS, None)
        )

    def __call__(self, z: tuple[jax.Array, ...]) -> jax.Array:
        _, height, width, _ = z[0].shape
        y = jnp.concatenate([resize_bilinear(branch, (height, width)) for branch in z], axis=-1)
        return wide(self.classifier(jax.nn.relu(self.mix(y))))

    def torch_entries(self) -> list[Entry]:
        return [
            *self.mix.torch_entries("last_layer.0", "last_layer.1"),
            *conv_entries("last_layer.3", self.classifier),
        ]
