"""Dropout inside an equilibrium layer."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx


class VariationalDropout(nnx.Dropout):
    """Dropout with one mask for all positions, and inside a `DEQ` for all steps of a solve.

    An equilibrium exists only if the map stays the same from step to step. `DEQ` sees to that for
    any module that draws random numbers: the mask is drawn once a solve, serves the backward pass
    and the penalty too, and the next solve in training mode draws a new one. What this layer adds
    to `flax.nnx.Dropout` is its default: one mask for all positions of a sample and a channel.

    Args:
      rate: the probability that an entry is set to zero; the others grow by `1 / (1 - rate)`.
      broadcast_dims: the axes that share a mask. None: all but the first and the last, which are
        the positions of a `[batch, length, features]` or `[batch, height, width, features]` array.
      deterministic: whether to drop nothing; `train()` and `eval()` set it.
      rngs: for the masks.

    Raises:
      ValueError: a `rate` outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.nn import VariationalDropout
      >>> y = VariationalDropout(0.5, rngs=nnx.Rngs(0))(jnp.ones((1, 3, 8)))
      >>> bool((y == y[:, :1]).all())
      True

    References:
      Gal & Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
      Networks", 2016.
    """

    def __init__(
        self,
        rate: float,
        *,
        broadcast_dims: Sequence[int] | None = None,
        deterministic: bool = False,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ):
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must be a number in [0, 1]; got {rate!r}")
        super().__init__(rate, deterministic=deterministic, rngs=rngs)
        self.shared = None if broadcast_dims is None else tuple(broadcast_dims)

    def __call__(self, inputs: jax.Array, *, deterministic: bool | None = None, rngs: Any = None) -> jax.Array:
        shared = range(1, inputs.ndim - 1) if self.shared is None else self.shared
        layer = nnx.Dropout(
            self.rate,
            broadcast_dims=tuple(shared),
            deterministic=self.deterministic,
            rng_collection=self.rng_collection,
        )
        return layer(inputs, deterministic=deterministic, rngs=self.rngs if rngs is None else rngs)
