"""A small multiscale deep equilibrium model for grey images of 28 x 28."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdeq.nn import DEQ, Equilibrium

CLASSES = 10
BLACK = -0.8102  # (0 - mean) / deviation of the training images
DEVIATION = 0.3530


class Cell(nnx.Module):
    """The map whose equilibrium is the model: two resolutions that read each other.

    The state is `(fine, coarse)` with twice as many pixels a side in the first. Each is convolved
    with its own past, the other one is added after resampling, and the input reaches the fine one
    alone. The norms come last: they bound the state whatever the weights are.
    """

    def __init__(self, fine: int, coarse: int, rngs: nnx.Rngs):
        # Small, so that the cell contracts from the start and the penalty has little to repair.
        small = nnx.initializers.variance_scaling(0.2, "fan_in", "truncated_normal")
        conv = partial(nnx.Conv, use_bias=False, kernel_init=small, rngs=rngs)
        self.fine = conv(fine, fine, (3, 3))
        self.coarse = conv(coarse, coarse, (3, 3))
        self.down = conv(fine, coarse, (3, 3), strides=2)
        self.up = conv(coarse, fine, (1, 1))
        self.fine_norm = norm(fine, rngs)
        self.coarse_norm = norm(coarse, rngs)

    def __call__(self, z: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
        fine = self.fine(z[0]) + upsample(self.up(z[1])) + x
        coarse = self.coarse(z[1]) + self.down(z[0])
        return self.fine_norm(nnx.relu(fine)), self.coarse_norm(nnx.relu(coarse))

    def initial_state(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Zeros: the fine state is shaped like the input, the coarse one has half its pixels a side."""
        batch, height, width, _ = x.shape
        channels = self.coarse.out_features
        return jnp.zeros_like(x), jnp.zeros((batch, height // 2, width // 2, channels), x.dtype)


class Classifier(nnx.Module):
    """Stem, equilibrium, head.

    Args:
      channels: of the fine and of the coarse state, each a multiple of 8.
      dropout: share of the head's inputs to drop in training.
      rngs: for the initial weights.
      **solve: how to solve; see `jaxdeq.nn.DEQ`.
    """

    def __init__(self, channels: tuple[int, int], dropout: float, rngs: nnx.Rngs, **solve: Any):
        fine, coarse = channels
        conv = lambda into, out: nnx.Conv(into, out, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.stem = nnx.Sequential(conv(1, fine), norm(fine, rngs), nnx.relu, conv(fine, fine), norm(fine, rngs))
        self.deq = DEQ(Cell(fine, coarse, rngs), **solve)
        self.dropout = nnx.Dropout(dropout)
        self.head = nnx.Linear(4 * 4 * (fine + coarse), CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array, key: jax.Array | None = None, **solve: Any) -> tuple[jax.Array, Equilibrium]:
        """Logits, and the equilibrium that they were read from. `key` draws the dropout."""
        solution = self.deq(self.inject(images), **solve)
        return self.classify(solution.z, key), solution

    def unrolled(self, images: jax.Array, steps: int, key: jax.Array | None = None) -> jax.Array:
        """Logits after a few applications of the cell: a weight-tied network, to warm up with."""
        return self.classify(self.deq.unroll(self.inject(images), steps=steps).z, key)

    def inject(self, images: jax.Array) -> jax.Array:
        """What the images, uint8 [batch, 28, 28], put into the cell: [batch, 8, 8, channels]."""
        x = images[..., None].astype(jnp.float32) / (255 * DEVIATION) + BLACK
        return self.stem(jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=BLACK))

    def classify(self, z: tuple[jax.Array, jax.Array], key: jax.Array | None) -> jax.Array:
        fine, coarse = z
        h = jnp.concatenate([nnx.avg_pool(fine, (2, 2), (2, 2)), coarse], axis=-1)
        h = h.reshape(h.shape[0], -1)
        return self.head(self.dropout(h, deterministic=key is None, rngs=key))


def norm(channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=8, rngs=rngs)


def upsample(x: jax.Array) -> jax.Array:
    """Doubles height and width by repeating pixels."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
