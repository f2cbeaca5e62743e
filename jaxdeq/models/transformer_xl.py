"""The language model that DEQ-Transformers are compared with: a Transformer-XL of untied layers."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Integer

from jaxdeq import _checks as check
from jaxdeq.models import _lm_generate as generation
from jaxdeq.models._axes import whole
from jaxdeq.models._entries import Entry
from jaxdeq.models._lm_cell import Cell, Memory
from jaxdeq.models._lm_config import LMConfig
from jaxdeq.models._lm_generate import Generated
from jaxdeq.models._lm_interface import LMOutput, check_inputs
from jaxdeq.models._lm_layers import Positions, dropout
from jaxdeq.models._lm_vocabulary import Embedding, Softmax
from jaxdeq.nn import VariationalDropout

__all__ = ["TransformerXL", "TransformerXLConfig", "transformer_xl_wt103"]


@dataclass(frozen=True)
class TransformerXLConfig(LMConfig):
    """A Transformer-XL.

    Attributes:
      vocab: see `LMConfig`, as for all others that are not below.
      weight_norm: whether all matrices inside a layer are weight-normalised; here they are not.
      layers: each with weights of its own.

    Raises:
      ValueError: as `LMConfig`.
      TypeError: as `LMConfig`.

    Example:
      >>> from jaxdeq.models import TransformerXLConfig
      >>> TransformerXLConfig(vocab=100, width=16, heads=2, inner=32, embed=16, layers=4).weight_norm
      False
    """

    weight_norm: bool = False
    layers: int = 18

    def __post_init__(self):
        super().__post_init__()
        check.count("layers", self.layers)


def transformer_xl_wt103() -> TransformerXLConfig:
    """Of the size with which the paper compares itself: 18 layers, 110 M parameters (24.1 perplexity).

    The paper prints these two numbers and no widths. Here feed-forward layers are four times as
    wide as the model and words are embedded with 4 times less width from cluster to cluster, as in
    the large model of the Transformer-XL paper, heads and dropout are those of its standard one,
    and the width is then what makes it 110 M.

    Example:
      >>> from jaxdeq.models import transformer_xl_wt103
      >>> transformer_xl_wt103().layers
      18
    """
    return TransformerXLConfig(
        vocab=267_735,
        width=610,
        heads=10,
        inner=2440,
        embed=610,
        cutoffs=(20_000, 40_000, 200_000),
        divisor=4,
        tie_projections=(False, True, True, True),
        memory=150,
        dropout=0.1,
    )


class TransformerXL(nnx.Module):
    """A language model of several Transformer layers, for comparison: called as a `DEQTransformerLM` is.

    Its layers are a DEQ-Transformer's without injection, each with weights of its own; embedding and
    softmax are the same. Each layer sees what came into it at earlier positions, as memory.
    Backpropagation holds what all layers computed. Against the original: layer normalisations have
    no scales and offsets, output projections have offsets, each layer has its own attention
    biases, dropout inside a feed-forward layer has one mask for all positions (which takes less
    memory), and other weights start from N(0, init_std).

    Args:
      config: see there; `jaxdeq.models.transformer_xl_wt103` is of the paper's size.
      rngs: `params` for the initial weights, `dropout` for masks.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.models import TransformerXL, TransformerXLConfig
      >>> config = TransformerXLConfig(vocab=50, width=16, heads=2, inner=32, embed=16, memory=8, layers=3)
      >>> model = TransformerXL(config, rngs=nnx.Rngs(0))
      >>> tokens = jnp.arange(12).reshape(2, 6)
      >>> out = model(tokens[:, :-1], targets=tokens[:, 1:])
      >>> out.losses.shape, out.memory.z.shape
      ((2, 5), (2, 5, 48))

    References:
      Dai et al., "Transformer-XL: Attentive Language Models beyond a Fixed-Length Context", 2019.
    """

    def __init__(self, config: TransformerXLConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = Embedding(config, rngs)
        self.positions = Positions(config)
        self.layers = nnx.List([Cell(config, rngs) for _ in range(config.layers)])
        self.softmax = Softmax(config, rngs)
        self.drop_words = dropout(config.dropout, rngs)
        self.drop_positions = dropout(config.dropout, rngs)
        self.drop_output = dropout(config.dropout, rngs)
        self.deterministic = False  # toggled by train() and eval()
        for _, layer in nnx.iter_graph(self):
            if isinstance(layer, VariationalDropout):
                layer.shared = ()  # no solve asks for one mask; as in the original, numbers have their own

    def __call__(
        self,
        tokens: Integer[Array, "batch length"],
        *,
        targets: Integer[Array, "batch targets"] | None = None,
        memory: Memory | None = None,
    ) -> LMOutput:
        """Losses, or probabilities of the next token, of one segment of text.

        In training mode (`model.train()`, the initial one) dropout draws masks; in evaluation mode
        (`model.eval()`) there is none. Words outside the vocabulary are not noticed.

        Args:
          tokens: the segment.
          targets: the tokens that follow each position; fewer than `length` are those of the
            last positions. None asks for probabilities of all words at all positions instead.
          memory: of the segment before, from its output or from `empty_memory`. None: there is none.

        Returns:
          Without `stats` and `penalty`. In the memory, `z` is `[batch, memory, layers * width]`, what
          came into each layer, side by side; `u` has no width.

        Raises:
          ValueError: more targets than tokens, another batch size in targets or memory.
        """
        z, memory = self._read(tokens, targets, memory)
        h, losses, logits = self.drop_output(z), None, None
        if targets is None:
            logits = self.softmax.log_probabilities(h, self.embedding)
        else:
            losses = self.softmax.losses(h[:, h.shape[1] - targets.shape[1] :], targets, self.embedding)
        return LMOutput(losses, logits, z, memory, None, None)

    def empty_memory(self, batch: int) -> Memory:
        """A memory without any positions but with room for all, so that no segment changes its shape."""
        config = self.config
        z = jnp.zeros((batch, config.memory, config.layers * config.width), config.state_dtype)
        return Memory(z, z[..., :0], jnp.int32(0))

    def generate(
        self,
        prompt: Integer[Array, "batch prompt"],
        length: int,
        *,
        memory: Memory | None = None,
        key: Array | None = None,
        temperature: ArrayLike = 1.0,
        top_k: int | None = None,
    ) -> Generated:
        """Continues a prompt, in evaluation mode: see `DEQTransformerLM.generate`.

        Returns:
          Without `stats`.

        Raises:
          ValueError: training mode, `length < 1`, a `temperature` that is not above 0, `top_k < 1`,
            either of them without a key.
          TypeError: `length` or `top_k` is not an int.
        """
        check.count("length", length)
        if not self.deterministic:
            raise ValueError("generate needs a model in evaluation mode, without dropout; call model.eval() first")
        pick = generation.picker(key, temperature, top_k)

        def read(tokens, memory):
            z, memory = self._read(tokens, None, memory)
            return generation.Reading(self.softmax.log_probabilities(z[:, -1], self.embedding), memory, None)

        return generation.extend(read, pick, prompt, memory, length, self.config.memory, key)

    def torch_entries(self) -> list[Entry]:
        """All arrays by PyTorch's names for a DEQ-Transformer, with `layers.0` and so on for its `func`."""
        entries = [*self.embedding.torch_entries("word_emb"), *self.positions.torch_entries("pos_emb")]
        for i, layer in enumerate(self.layers):
            entries += layer.torch_entries(f"layers.{i}")
        return entries + self.softmax.torch_entries("crit", self.embedding)

    def _read(self, tokens, targets, memory):
        """The last layer's output, and the memory with what came into all layers."""
        config = self.config
        check_inputs(tokens, targets, memory, config.layers * config.width)
        nothing = lambda z: jnp.zeros((*z.shape[:2], 3 * config.width), config.dtype)  # injected
        z = self.drop_words(self.embedding(tokens)).astype(config.state_dtype)
        if memory is None:
            past = jnp.concatenate([whole(z, 1)[:, :0]] * config.layers, axis=-1)
            memory = Memory(past, past[..., :0], jnp.int32(0))
        memory = memory.beside(z)
        positions = self.drop_positions(self.positions(memory.z.shape[1] + tokens.shape[1]))
        inputs = []
        for layer, past in zip(self.layers, jnp.split(memory.z, config.layers, axis=-1), strict=True):
            inputs.append(z)
            z = layer(z, nothing(z), Memory(past, nothing(past), memory.length), positions)
        passed = jnp.concatenate(inputs, axis=-1)
        return z, memory.extend(passed, passed[..., :0], config.memory)
