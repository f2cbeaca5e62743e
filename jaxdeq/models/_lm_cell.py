"""The layer whose fixed point a DEQ-Transformer computes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int32

from jaxdeq._tree import wide_dtype
from jaxdeq.models import _entries
from jaxdeq.models._entries import Entry
from jaxdeq.models._lm_config import LMConfig
from jaxdeq.models._lm_layers import dropout, layer_norm, linear_entries, normalised_linear, small, weights


class Memory(NamedTuple):
    """Past positions: frozen context on the left, oldest first.

    Attributes:
      z: their equilibria.
      u: their injections, which the layer adds to queries, keys and values.
      length: how many positions there are, counted from the right; what is left of them is room.
    """

    z: Float[Array, "batch memory width"]
    u: Float[Array, "batch memory 3*width"]
    length: Int32[Array, ""]

    def extend(self, z: Array, u: Array, room: int) -> "Memory":
        """With further positions on the right, of which the last `room` are kept; held constant."""
        join = lambda old, new: jnp.concatenate([old, new], axis=1)[:, -room:]
        length = jnp.minimum(self.length + z.shape[1], room).astype(jnp.int32)
        return jax.lax.stop_gradient(Memory(join(self.z, z), join(self.u, u), length))

    def pad(self, room: int) -> "Memory":
        """With room for this many positions, so that extending it no longer changes its shape."""
        widths = ((0, 0), (max(0, room - self.z.shape[1]), 0), (0, 0))
        return Memory(jnp.pad(self.z, widths), jnp.pad(self.u, widths), self.length)


class Cell(nnx.Module):
    """Attention, then a feed-forward layer."""

    def __init__(self, config: LMConfig, rngs: nnx.Rngs, parts: int = 1):
        self.attention = Attention(config, rngs)
        self.feed_forward = FeedForward(config, rngs, parts)
        self.width = config.width
        self.dtype = config.state_dtype

    def __call__(self, z: Array, u: Array, memory: Memory, positions: Array) -> Array:
        return self.feed_forward(self.attention(z, u, memory, positions))

    def initial_state(self, u: Array, memory: Memory, positions: Array) -> Array:
        """Zeros; from `u`, so that they lie on the mesh as it does."""
        return jnp.zeros_like(u[..., : self.width], dtype=self.dtype)

    def torch_entries(self, name: str) -> list[Entry]:
        return [
            *self.attention.torch_entries(f"{name}.dec_attn"),
            *self.feed_forward.torch_entries(f"{name}.pos_ff"),
        ]


class Attention(nnx.Module):
    """Causal attention to relative positions (Transformer-XL), with the input added to its output.

    All that depends only on the memory or the positions is constant in a solve, and a `DEQ`
    computes it once.
    """

    def __init__(self, config: LMConfig, rngs: nnx.Rngs):
        width, self.heads = config.width, config.heads
        each = (self.heads, width // self.heads)
        dtype = jnp.dtype(config.param_dtype)
        self.content_bias = nnx.Param(small(rngs.params(), each, dtype))
        self.position_bias = nnx.Param(small(rngs.params(), each, dtype))
        self.inputs = normalised_linear(width, 3 * width, config, rngs, bias=False)
        self.distances = normalised_linear(width, width, config, rngs, bias=False)
        self.output = normalised_linear(width, width, config, rngs)
        self.drop_weights = dropout(config.attention_dropout, rngs, shared=())
        self.drop_output = dropout(config.dropout, rngs)
        self.window = config.window
        self.pre_norm = config.pre_norm

    def __call__(self, z: Array, u: Array, memory: Memory, positions: Array) -> Array:
        q, k, v = self._project(z, u)
        if memory.z.shape[1]:
            _, old_k, old_v = self._project(memory.z, memory.u)
            k, v = jnp.concatenate([old_k, k], axis=1), jnp.concatenate([old_v, v], axis=1)
        r = self._split(self.distances(positions))
        weights = self.drop_weights(self._weigh(q, k, r, memory.length).astype(v.dtype))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        y = self.drop_output(self.output(y.reshape(u.shape[:2] + z.shape[2:])))
        y = z + y.astype(z.dtype)
        return y if self.pre_norm else layer_norm(y)

    def _project(self, z, u):
        """Queries, keys and values, `[batch, length, heads, each]`."""
        y = self.inputs(layer_norm(z) if self.pre_norm else z)
        return [self._split(part) for part in jnp.split(y + u.astype(y.dtype), 3, axis=-1)]

    def _split(self, x):
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def _weigh(self, q, k, r, past):
        """Attention weights `[batch, heads, queries, keys]`, in float32 or better."""
        dtype = wide_dtype(q.dtype)
        bias = lambda variable: variable[...].astype(q.dtype)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q + bias(self.content_bias), k, preferred_element_type=dtype)
        by_distance = jnp.einsum("bqhd,khd->bhqk", q + bias(self.position_bias), r, preferred_element_type=dtype)
        scores = (scores + shift(by_distance)) * q.shape[-1] ** -0.5
        seen = visible(q.shape[1], k.shape[1], self.window, past)
        return jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(dtype).min), axis=-1)

    def torch_entries(self, name: str) -> list[Entry]:
        return [
            _entries.same(f"{name}.r_w_bias", self.content_bias),
            _entries.same(f"{name}.r_r_bias", self.position_bias),
            *linear_entries(f"{name}.qkv_net", self.inputs, ndim=3),
            *linear_entries(f"{name}.r_net", self.distances, ndim=3),
            *linear_entries(f"{name}.o_net", self.output, ndim=3),
        ]


def shift(x: Float[Array, "batch heads queries keys"]) -> Float[Array, "batch heads queries keys"]:
    """From scores by distance, the last one 0, to scores by key.

    Row `i` moves left by `queries - 1 - i`. What then stands right of a query's own position is of no
    meaning. Padding and reshaping move all rows at once.
    """
    batch, heads, queries, keys = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0)))
    return x.reshape(batch, heads, keys + 1, queries)[:, :, 1:].reshape(batch, heads, queries, keys)


def visible(queries: int, keys: int, window: int, past: Array) -> Array:
    """Which of the keys a query sees: itself, and those before it inside window and memory."""
    memory = keys - queries
    key = jnp.arange(keys, dtype=jnp.int32)
    query = memory + jnp.arange(queries, dtype=jnp.int32)[:, None]
    return (key <= query) & (key > query - window) & (key >= memory - past)


class FeedForward(nnx.Module):
    """A wide layer of rectified units, with its input added: pre-LN, the normalised input."""

    def __init__(self, config: LMConfig, rngs: nnx.Rngs, parts: int):
        self.widen = normalised_linear(config.width, config.inner, config, rngs)
        self.narrow = normalised_linear(config.inner, config.width, config, rngs)
        self.drop_inner = dropout(config.dropout, rngs)
        self.drop_output = dropout(config.dropout, rngs)
        self.pre_norm = config.pre_norm
        self.parts = parts

    def __call__(self, h: Array) -> Array:
        if self.pre_norm:
            h = layer_norm(h)
        y = h + self.drop_output(self._inside(h)).astype(h.dtype)
        return y if self.pre_norm else layer_norm(y)

    def _inside(self, h):
        parts = min(self.parts, h.shape[1])
        if parts == 1:
            return self.narrow(self.drop_inner(jax.nn.relu(self.widen(h))))
        # What all parts share comes first: outside of the loop a solve computes it once.
        (widen, bias), (narrow, offset) = weights(self.widen), weights(self.narrow)
        mask = self.drop_inner(jnp.ones((len(h), 1, len(narrow)), widen.dtype))

        def part(h):
            y = h @ widen + bias
            active = checkpoint_name(y > 0, ACTIVE)
            return jnp.where(active, y, 0) * mask @ narrow + offset

        return in_parts(part, h.astype(widen.dtype), parts)

    def torch_entries(self, name: str) -> list[Entry]:
        return [
            *linear_entries(f"{name}.ff1_net", self.widen),
            *linear_entries(f"{name}.ff2_net", self.narrow),
        ]


ACTIVE = "active units"


def in_parts(f: Callable[[Array], Array], x: Array, parts: int) -> Array:
    """Applies `f` to every `parts`-th position of `[batch, length, width]`, then to their neighbours, and so on.

    For the gradient it keeps nothing of the inside of `f` but what is called `ACTIVE`, and computes
    the rest anew. Positions that are spread over a mesh stay where they are.
    """
    batch, length, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % parts), (0, 0)))
    x = jnp.moveaxis(x.reshape(batch, -1, parts, width), 2, 0)
    keep = jax.checkpoint_policies.save_only_these_names(ACTIVE)
    y = jnp.moveaxis(lax.map(jax.checkpoint(f, policy=keep, prevent_cse=False), x), 0, 2)
    return y.reshape(batch, -1, width)[:, :length]
