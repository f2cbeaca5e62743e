"""Word vectors in and word probabilities out, with less width for rarer words."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Integer

from jaxdeq._tree import wide_dtype
from jaxdeq.models import _entries
from jaxdeq.models._axes import CHANNELS, named, whole
from jaxdeq.models._entries import Entry
from jaxdeq.models._lm_config import LMConfig
from jaxdeq.models._lm_layers import initial

ROOM = 2**24  # logits held at once; more positions than fit are handled in turn
PARTS = 8  # of a row, of which only those with words of a rare cluster are computed


class _Vocabulary(nnx.Module):
    """The words: which clusters they are in, and how wide their vectors are there."""

    def __init__(self, config: LMConfig):
        self.bounds = config.bounds
        self.clusters = len(config.bounds) - 1
        self.dtype = jnp.dtype(config.dtype)
        sizes = [config.vocab] if config.divisor == 1 else [b - a for a, b in pairwise(config.bounds)]
        self.shapes = tuple((size, config.embed // config.divisor**i) for i, size in enumerate(sizes))

    def _inside(self, words: Array, cluster: int) -> tuple[Array, Array]:
        """Whether words are in the cluster, and their numbers there (any valid one if not)."""
        low, high = self.bounds[cluster : cluster + 2]
        return (words >= low) & (words < high), jnp.clip(words - low, 0, high - low - 1)


class Embedding(_Vocabulary):
    """Word vectors of a width that depends on the cluster, projected to one width.

    References:
      Baevski & Auli, "Adaptive Input Representations for Neural Language Modeling", 2019.
    """

    def __init__(self, config: LMConfig, rngs: nnx.Rngs):
        super().__init__(config)
        draw = _drawer(config, rngs)
        self.tables = nnx.List([draw(shape) for shape in self.shapes])
        # `[width, embed]`, the layout in which the softmax uses them too.
        projections = [draw((config.width, embed)) for _, embed in self.shapes] if config.projected else []
        self.projections = nnx.List(projections)
        self.scale = config.width**0.5

    def __call__(self, words: Integer[Array, "batch length"]) -> Float[Array, "batch length width"]:
        words = jnp.asarray(words, jnp.int32)  # narrow integers would wrap around at the size of the vocabulary
        if len(self.tables) == 1:
            return self._look_up(0, words) * self.scale
        total = jnp.zeros((), self.dtype)
        for i in range(self.clusters):
            inside, number = self._inside(words, i)
            total = total + jnp.where(inside[..., None], self._look_up(i, number), 0)
        return total * self.scale

    def _look_up(self, i, number):
        vectors = _rows(self.tables[i][...], number).astype(self.dtype)
        if not self.projections:
            return vectors
        return vectors @ self.projections[i][...].astype(self.dtype).T

    def torch_entries(self, name: str) -> list[Entry]:
        tables = [_entries.same(f"{name}.emb_layers.{i}.weight", v) for i, v in enumerate(self.tables)]
        return tables + [_entries.same(f"{name}.emb_projs.{i}.weight", v) for i, v in enumerate(self.projections)]


class Softmax(_Vocabulary):
    """Probabilities of words: of the first cluster's and of the other clusters, then inside these.

    Owns what it does not share: tied tables and projections are those of the `embedding` that each
    method takes.

    References:
      Grave et al., "Efficient softmax approximation for GPUs", 2017.
    """

    def __init__(self, config: LMConfig, rngs: nnx.Rngs):
        super().__init__(config)
        draw, dtype = _drawer(config, rngs), jnp.dtype(config.param_dtype)
        self.tables = nnx.List([] if config.tie_tables else [draw(shape) for shape in self.shapes])
        self.biases = nnx.List([nnx.Param(jnp.zeros(size, dtype)) for size, _ in self.shapes])
        # One logit for each cluster but the first, the last cluster's first.
        self.cluster_table = draw((self.clusters - 1, config.embed)) if self.clusters > 1 else None
        self.cluster_bias = nnx.Param(jnp.zeros(self.clusters - 1, dtype)) if self.clusters > 1 else None
        tied = config.tie_projections or (False,) * self.clusters
        self.own = tuple(i for i in range(self.clusters) if config.projected and not tied[i])
        self.projections = nnx.List([draw((config.width, self._shape(i)[1])) for i in self.own])

    def losses(
        self, h: Float[Array, "batch length width"], words: Integer[Array, "batch length"], embedding: Embedding
    ) -> Float[Array, "batch length"]:
        """Negative log probabilities of `words`, in nats, in the order of the positions.

        Of a rare cluster only the positions that have its words are computed, up to an eighth of a row
        more. Holds no more than some 2^24 logits at once, in the backward pass too.
        """
        words = jnp.asarray(words, jnp.int32)  # as in the embedding
        column, found = self._inside(words, 0)[1], jnp.zeros(words.shape, wide_dtype(self.dtype))
        for i in range(1, self.clusters):
            inside, number = self._inside(words, i)
            column = jnp.where(inside, self.bounds[1] + self.clusters - 1 - i, column)
            found = found + self._packed(i, h, inside, number, embedding)
        everywhere = jnp.ones_like(words, dtype=bool)
        return -found - self._in_parts(0, h.shape[1], h, everywhere, column, embedding)

    def _packed(self, i, h, inside, number, embedding):
        """Log probabilities of words within cluster `i`, 0 for others: those inside go to the front of their row.

        Most parts behind them are then empty, and nothing is computed for these: on a CPU a training step of
        `sotu_transformer` takes three quarters of the time, half if it is unrolled twice.
        """
        h, inside, number = (whole(x, 1) for x in (h, inside, number))  # rows may lie on several devices
        order = jnp.argsort(~inside, axis=1, stable=True)
        move = lambda x, to: jnp.take_along_axis(x, to if x.ndim == 2 else to[..., None], axis=1)
        size = -(-h.shape[1] // PARTS)
        parts = self._in_parts(i, size, move(h, order), move(inside, order), move(number, order), embedding)
        return move(parts, jnp.argsort(order, axis=1))

    def _in_parts(self, i, size, h, inside, number, embedding):
        """Log probabilities of words within cluster `i`, 0 for others, of no more than `size` positions at once."""
        batch, length, _ = h.shape
        size = max(1, min(size, ROOM // (batch * (self.bounds[i + 1] - self.bounds[i]))))
        nothing = lambda h, inside, number: jnp.zeros_like(number, wide_dtype(self.dtype))

        def compute(h, inside, number):
            y = self._logits(h, i, embedding)
            return jnp.where(inside, _pick(y, number) - jax.nn.logsumexp(y, axis=-1), 0)

        if size >= length:
            return compute(h, inside, number)
        part = jax.checkpoint(lambda xs: lax.cond(jnp.any(xs[1]), compute, nothing, *xs))
        room = -length % size
        pad = lambda x: jnp.pad(x, ((0, 0), (0, room)) + ((0, 0),) * (x.ndim - 2))
        cut = lambda x: jnp.moveaxis(pad(x).reshape(batch, -1, size, *x.shape[2:]), 1, 0)
        parts = lax.map(part, (cut(h), cut(inside), cut(number)))
        return jnp.moveaxis(parts, 0, 1).reshape(batch, -1)[:, :length]

    def log_probabilities(self, h: Float[Array, "*batch width"], embedding: Embedding) -> Float[Array, "*batch vocab"]:
        """Of all words, in nats."""
        head = jax.nn.log_softmax(self._logits(h, 0, embedding))
        parts = [head[..., : self.bounds[1]]]
        for i in range(1, self.clusters):
            parts.append(head[..., -i, None] + jax.nn.log_softmax(self._logits(h, i, embedding)))
        return jnp.concatenate(parts, axis=-1)

    def _logits(self, h, i, embedding):
        """Of the words in cluster `i`; in the first, of the other clusters too. In float32 or better."""
        table, bias = self._words(self.tables or embedding.tables, i), self._words(self.biases, i)
        if i == 0 and self.cluster_table is not None and self.cluster_bias is not None:
            table = jnp.concatenate([table, self.cluster_table[...]])
            bias = jnp.concatenate([bias, self.cluster_bias[...]])
        h = h.astype(self.dtype)
        projection = self._projection(i, embedding)
        if projection is not None:
            h = h @ projection[...].astype(self.dtype)
        wide = wide_dtype(self.dtype)
        y = jnp.einsum("...e,ve->...v", h, table.astype(self.dtype), preferred_element_type=wide)
        return y + bias.astype(wide)

    def _words(self, arrays, i):
        """What belongs to the words of cluster `i`."""
        if len(self.shapes) == 1:
            return arrays[0][slice(*self.bounds[i : i + 2])]
        return arrays[i][...]

    def _projection(self, i, embedding):
        if i in self.own:
            return self.projections[self.own.index(i)]
        shared = embedding.projections
        return shared[min(i, len(shared) - 1)] if shared else None

    def _shape(self, i):
        return self.shapes[min(i, len(self.shapes) - 1)]

    def torch_entries(self, name: str, embedding: Embedding) -> list[Entry]:
        tables = self.tables or embedding.tables
        entries = [_entries.same(f"{name}.out_layers.{i}.weight", table) for i, table in enumerate(tables)]
        entries += [_entries.same(f"{name}.out_layers.{i}.bias", bias) for i, bias in enumerate(self.biases)]
        if self.cluster_table is not None and self.cluster_bias is not None:
            entries.append(_entries.same(f"{name}.cluster_weight", self.cluster_table))
            entries.append(_entries.same(f"{name}.cluster_bias", self.cluster_bias))
        projections = [self._projection(i, embedding) for i in range(self.clusters)]
        named = [(f"{name}.out_projs.{i}.weight", p) for i, p in enumerate(projections)]
        return entries + [_entries.same(name, p) for name, p in named if p is not None]


def _drawer(config, rngs):
    dtype = jnp.dtype(config.param_dtype)

    def draw(shape):
        # One axis may be spread: words, or a projection's width. What no mesh can divide stays whole.
        axis = CHANNELS if shape[0] % 8 == 0 else None
        return nnx.Param(initial(config)(rngs.params(), shape, dtype), **named(axis, None))

    return draw


def _rows(table, number):
    """Which lie as their numbers do; Explicit mesh axes want to be told."""
    lies = jax.typeof(number).sharding
    return table.at[number].get(out_sharding=NamedSharding(lies.mesh, P(*lies.spec, None)))


def _pick(logits, number):
    return jnp.take_along_axis(logits, number[..., None], axis=-1)[..., 0]
