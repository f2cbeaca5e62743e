"""The layer whose fixed point a DEQ-Transformer computes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int32

from jaxdeq._tree import wide_dtype
from jaxdeq.models import _entries
from jaxdeq.models._axes import CHANNELS, INNER, whole
from jaxdeq.models._entries import Entry
from jaxdeq.models._lm_config import LMConfig
from jaxdeq.models._lm_feed_forward import FeedForward
from jaxdeq.models._lm_layers import dropout, initial, layer_norm, linear_entries, normalised_linear, weights


class Memory(NamedTuple):
    """Past positions: frozen context on the left, oldest first.

    Attributes:
      z: their equilibria.
      u: their injections, which the layer adds to queries, keys and values.
      length: how many positions there are, counted from the right; what is left of them is room.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from jaxdeq.models import DEQTransformerConfig, DEQTransformerLM
      >>> config = DEQTransformerConfig(vocab=50, width=16, heads=2, inner=32, embed=16, memory=8)
      >>> def empty():
      ...     return DEQTransformerLM(config, rngs=nnx.Rngs(0)).empty_memory(2)
      >>> memory = jax.eval_shape(empty)
      >>> memory.z.shape, memory.u.shape
      ((2, 8, 16), (2, 8, 48))
    """

    z: Float[Array, "batch memory width"]
    u: Float[Array, "batch memory 3*width"]
    length: Int32[Array, ""]

    def extend(self, z: Array, u: Array, room: int) -> "Memory":
        """With further positions on the right, of which the last `room` are kept; held constant."""
        join = lambda old, new: jnp.concatenate([whole(old, 1), whole(new, 1)], axis=1)[:, -room:]
        length = jnp.minimum(self.length + z.shape[1], room).astype(jnp.int32)
        return jax.lax.stop_gradient(Memory(join(self.z, z), join(self.u, u), length))

    def beside(self, u: Array) -> "Memory":
        """With its sequences over the same mesh axes as those of `u`, where Explicit axes would not have others."""
        lies = jax.typeof(u).sharding
        rows = lies.spec[0]

        def move(x):
            spec = jax.typeof(x).sharding.spec
            return x if spec[0] == rows else jax.sharding.reshard(x, NamedSharding(lies.mesh, P(rows, *spec[1:])))

        return Memory(move(self.z), move(self.u), self.length)

    def pad(self, room: int) -> "Memory":
        """With room for this many positions, so that extending it no longer changes its shape."""
        widths = ((0, 0), (max(0, room - self.z.shape[1]), 0), (0, 0))
        return Memory(jnp.pad(self.z, widths), jnp.pad(self.u, widths), self.length)


class Cell(nnx.Module):
    """Attention, then a feed-forward layer."""

    def __init__(self, config: LMConfig, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs)
        self.feed_forward = FeedForward(config, rngs)
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
        init = initial(config)
        self.content_bias = nnx.Param(init(rngs.params(), each, dtype))
        self.position_bias = nnx.Param(init(rngs.params(), each, dtype))
        self.inputs = normalised_linear(width, 3 * width, config, rngs, bias=False)
        self.distances = normalised_linear(width, width, config, rngs, bias=False)
        self.output = normalised_linear(width, width, config, rngs, axes=(INNER, CHANNELS))
        self.drop_weights = dropout(config.attention_dropout, rngs, shared=())
        self.drop_output = dropout(config.dropout, rngs)
        self.window = config.window
        self.pre_norm = config.pre_norm

    def __call__(self, z: Array, u: Array, memory: Memory, positions: Array) -> Array:
        q, k, v = self._project(z, u)
        k, v = whole(k, 1), whole(v, 1)  # each query needs those of all positions
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
        """Queries, keys and values, `[batch, length, heads, each]`: one product, in which heads may be spread."""
        kernel, _ = weights(self.inputs)
        each = (3, self.heads, kernel.shape[0] // self.heads)
        z = (layer_norm(z) if self.pre_norm else z).astype(kernel.dtype)
        y = jnp.einsum("bld,dphe->blphe", z, kernel.reshape(-1, *each))
        y = y + u.astype(kernel.dtype).reshape(*u.shape[:2], *each)
        return [y[:, :, part] for part in range(3)]

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
    meaning. Every row moves alone, so that queries may lie on several devices: padding and reshaping,
    which moves all at once, would make these exchange the scores. (On a CPU rows alone are three
    times as fast, and their gradient is slower by as much: of an attention's gradient a tenth.)
    """
    queries, keys = x.shape[2:]
    lies = jax.typeof(x).sharding
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, queries - 1)))
    starts = jnp.arange(queries - 1, -1, -1, dtype=jnp.int32, out_sharding=NamedSharding(lies.mesh, P(lies.spec[2])))
    move = lambda rows, start: lax.dynamic_slice_in_dim(rows, start, keys, axis=-1)
    return jax.vmap(move, (2, 0), 2)(x, starts)


def visible(queries: int, keys: int, window: int, past: Array) -> Array:
    """Which of the keys a query sees: itself, and those before it inside window and memory."""
    memory = keys - queries
    key = jnp.arange(keys, dtype=jnp.int32)
    query = memory + jnp.arange(queries, dtype=jnp.int32)[:, None]
    return (key <= query) & (key > query - window) & (key >= memory - past)
