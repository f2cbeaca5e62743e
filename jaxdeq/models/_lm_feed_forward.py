"""The feed-forward layer, whose inside may be too wide to be held at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from jaxdeq.models._axes import CHANNELS, INNER
from jaxdeq.models._entries import Entry
from jaxdeq.models._lm_config import LMConfig
from jaxdeq.models._lm_layers import dropout, layer_norm, linear_entries, normalised_linear, weights

ACTIVE = "active units"
POLICIES = {
    "active": jax.checkpoint_policies.save_only_these_names(ACTIVE),
    "nothing": jax.checkpoint_policies.nothing_saveable,
}


class FeedForward(nnx.Module):
    """A wide layer of rectified units, with its input added: pre-LN, the normalised input."""

    def __init__(self, config: LMConfig, rngs: nnx.Rngs):
        self.widen = normalised_linear(config.width, config.inner, config, rngs, axes=(CHANNELS, INNER))
        self.narrow = normalised_linear(config.inner, config.width, config, rngs, axes=(INNER, CHANNELS))
        self.drop_inner = dropout(config.dropout, rngs)
        self.drop_output = dropout(config.dropout, rngs)
        self.pre_norm = config.pre_norm
        self.parts = config.parts
        self.keep = config.keep

    def __call__(self, h: Array) -> Array:
        if self.pre_norm:
            h = layer_norm(h)
        y = h + self.drop_output(self._inside(h)).astype(h.dtype)
        return y if self.pre_norm else layer_norm(y)

    def _inside(self, h):
        # What all parts share comes first: outside of the loop a solve computes it once.
        (widen, bias), (narrow, offset) = weights(self.widen), weights(self.narrow)
        mask = self.drop_inner(jnp.ones((len(h), 1, len(narrow)), widen.dtype))

        def part(h):
            y = h @ widen + bias
            active = checkpoint_name(~(y <= 0), ACTIVE)  # NaN is: it must not become 0
            y = jnp.where(active, y, 0) * mask
            return jnp.matmul(y, narrow, out_sharding=jax.typeof(h).sharding) + offset

        parts = min(self.parts, h.shape[1])
        if self.keep != "all":
            # In a loop XLA cannot merge what is computed anew with what was computed before; outside it must not.
            part = jax.checkpoint(part, policy=POLICIES[self.keep], prevent_cse=parts == 1)
        h = h.astype(widen.dtype)
        return part(h) if parts == 1 else in_parts(part, h, parts)

    def torch_entries(self, name: str) -> list[Entry]:
        return [
            *linear_entries(f"{name}.ff1_net", self.widen),
            *linear_entries(f"{name}.ff2_net", self.narrow),
        ]


def in_parts(f: Callable[[Array], Array], x: Array, parts: int) -> Array:
    """Applies `f` to every `parts`-th position of `[batch, length, width]`, then to their neighbours, and so on.

    Positions that are spread over a mesh stay where they are.
    """
    batch, length, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % parts), (0, 0)))
    x = jnp.moveaxis(x.reshape(batch, -1, parts, width), 2, 0)
    y = jnp.moveaxis(lax.map(f, x), 0, 2)
    return y.reshape(batch, -1, width)[:, :length]
