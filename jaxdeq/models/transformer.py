"""Deep equilibrium language models."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jaxdeq import BackwardStats, spectral_radius
from jaxdeq import _checks as check
from jaxdeq.models import _lm_generate as generation
from jaxdeq.models._axes import whole
from jaxdeq.models._entries import Entry
from jaxdeq.models._lm_cell import Cell, Memory
from jaxdeq.models._lm_config import DEQTransformerConfig, LMConfig
from jaxdeq.models._lm_generate import Generated
from jaxdeq.models._lm_interface import LMOutput, check_inputs
from jaxdeq.models._lm_layers import Positions, dropout, linear, linear_entries
from jaxdeq.models._lm_vocabulary import Embedding, Softmax
from jaxdeq.nn import DEQ

__all__ = ["DEQTransformerConfig", "DEQTransformerLM", "Generated", "LMConfig", "LMOutput", "Memory"]


class DEQTransformerLM(nnx.Module):
    """A language model whose one Transformer layer is applied until nothing changes.

    Relative attention sees the positions of a segment and a memory of earlier ones, whose
    equilibria stay as they were found. The injection, a linear map of the word vectors, is added to
    queries, keys and values at every application. Head and gradient are taken at the equilibrium
    `z*` in training and in evaluation. (The reference's training head and memory get one more
    application, `f(z*)`, which is the same where the solve has converged.)

    Tied tables and projections are one variable, owned by the embedding. The paper's 98 M
    parameters of WikiText-103 are 97.85 M tensor entries of the reference, which keeps a second
    parameter for each tied projection; here they are 97.69 M.

    Args:
      config: see there; `jaxdeq.models.transformer_configs` has the paper's.
      rngs: `params` for the initial weights, `dropout` for masks.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.models import DEQTransformerConfig, DEQTransformerLM
      >>> config = DEQTransformerConfig(vocab=50, width=16, heads=2, inner=32, embed=16, memory=8)
      >>> model = DEQTransformerLM(config, rngs=nnx.Rngs(0))
      >>> tokens = jnp.arange(12).reshape(2, 6)
      >>> out = model(tokens[:, :-1], targets=tokens[:, 1:])
      >>> out.losses.shape, out.memory.z.shape
      ((2, 5), (2, 5, 16))
      >>> out = model(tokens[:, :-1], memory=out.memory)
      >>> out.logits.shape, out.memory.z.shape
      ((2, 5, 50), (2, 8, 16))

    References:
      Bai, Kolter & Koltun, "Deep Equilibrium Models", 2019.
      Dai et al., "Transformer-XL: Attentive Language Models beyond a Fixed-Length Context", 2019.
    """

    def __init__(self, config: DEQTransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = Embedding(config, rngs)
        self.injection = linear(config.width, 3 * config.width, config, rngs)
        self.positions = Positions(config)
        self.deq = DEQ(
            Cell(config, rngs),
            solver=config.solver,
            adjoint=config.adjoint,
            rtol=config.rtol,
            atol=config.atol,
            max_steps=config.max_steps,
            batched=config.batched,
        )
        self.softmax = Softmax(config, rngs)
        self.drop_words = dropout(config.dropout, rngs)
        self.drop_positions = dropout(config.dropout, rngs, shared=(0,))
        self.drop_output = dropout(config.dropout, rngs, shared=(2,))  # whole positions, as in the reference
        self.deterministic = False  # toggled by train() and eval()

    def __call__(
        self,
        tokens: Integer[Array, "batch length"],
        *,
        targets: Integer[Array, "batch targets"] | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
        probes: int = 1,
        unroll: int | None = None,
        z0: Float[Array, "batch length width"] | None = None,
        rtol: ArrayLike | None = None,
        atol: ArrayLike | None = None,
        max_steps: ArrayLike | None = None,
        tap: BackwardStats | None = None,
    ) -> LMOutput:
        """Losses, or probabilities of the next token, of one segment of text.

        In training mode (`model.train()`, the initial one) dropout draws a mask for this solve; in
        evaluation mode (`model.eval()`) there is none. Words outside the vocabulary are not noticed.

        Args:
          tokens: the segment.
          targets: the tokens that follow each position; fewer than `length` are those of the
            last positions. None asks for probabilities of all words at all positions instead.
          memory: of the segment before, from its output or from `empty_memory`. None: there is none.
          key: asks for the Jacobian penalty, and draws its probes; consumed.
          probes: of the penalty, to average over.
          unroll: applies the layer this many times from `z0` in place of the solve, and
            back-propagates through all of them: the paper's pre-training. Its memory grows with
            the number.
          z0: where to start; None: zeros.
          rtol: in place of the configuration's; may be traced, as may `atol` and `max_steps`.
          tap: see `jaxdeq.fixed_point`.

        Raises:
          ValueError: more targets than tokens, another batch size in targets or memory.
        """
        check_inputs(tokens, targets, memory, self.config.width)
        inputs = u, memory, _ = self._inject(tokens, memory)
        if unroll is None:
            z, stats, penalty = self.deq(
                *inputs, z0=z0, key=key, probes=probes, rtol=rtol, atol=atol, max_steps=max_steps, tap=tap
            )
        else:
            z, stats, penalty = self.deq.unroll(*inputs, steps=unroll, z0=z0, key=key, probes=probes)
        memory = memory.extend(z, u, self.config.memory)
        h, losses, logits = self.drop_output(z), None, None
        if targets is None:
            logits = self.softmax.log_probabilities(h, self.embedding)
        else:
            losses = self.softmax.losses(h[:, h.shape[1] - targets.shape[1] :], targets, self.embedding)
        return LMOutput(losses, logits, z, memory, stats, penalty)

    def empty_memory(self, batch: int) -> Memory:
        """A memory without any positions but with room for all, so that no segment changes its shape.

        Starting from it, and not from None, compiles one program for all segments; the first ones
        then cost as much as all others.
        """
        z = jnp.zeros((batch, self.config.memory, self.config.width), self.config.state_dtype)
        u = jnp.zeros((batch, self.config.memory, 3 * self.config.width), self.config.dtype)
        return Memory(z, u, jnp.int32(0))

    def generate(
        self,
        prompt: Integer[Array, "batch prompt"],
        length: int,
        *,
        memory: Memory | None = None,
        key: Array | None = None,
        temperature: ArrayLike = 1.0,
        top_k: int | None = None,
        rtol: ArrayLike | None = None,
        max_steps: ArrayLike | None = None,
    ) -> Generated:
        """Continues a prompt, in evaluation mode.

        The prompt is solved once. Each token is then a solve for its own position alone, which sees
        the equilibria of the positions before it in the memory. Attention is causal: equilibria of
        earlier positions do not depend on later ones, so that this finds, up to the tolerance, what
        solving the whole text anew would, as long as the text fits in `config.memory` positions.
        Beyond that each token sees the last `config.memory` positions, and those saw more.

        Shapes are static: two compiled solves for any `length`. Call it under `jax.jit`; outside, every call
        compiles them anew. A token costs its solve, the keys and values of the memory, and the softmax over all words.

        Args:
          prompt: at least one token.
          length: tokens to make.
          memory: of the text before the prompt.
          key: draws the tokens; consumed. None takes the most likely ones.
          temperature: divides log probabilities before drawing; may be traced.
          top_k: draws from this many most likely words only.
          rtol: as in a call, as for `max_steps`.

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
            check_inputs(tokens, None, memory, self.config.width)
            inputs = u, memory, _ = self._inject(tokens, memory)
            z, stats, _ = self.deq(*inputs, rtol=rtol, max_steps=max_steps)
            log_probabilities = self.softmax.log_probabilities(z[:, -1], self.embedding)
            return generation.Reading(log_probabilities, memory.extend(z, u, self.config.memory), stats)

        return generation.extend(read, pick, prompt, memory, length, self.config.memory, key)

    def spectral_radius(
        self,
        tokens: Integer[Array, "batch length"],
        z: Float[Array, "batch length width"],
        key: Array,
        *,
        memory: Memory | None = None,
        iters: int = 64,
    ) -> Float[Array, " batch"]:
        """`jaxdeq.spectral_radius` of the layer at `z`, one a sequence; meant for evaluation mode.

        Args:
          tokens: as in a call, as for `memory`.
          z: the equilibrium that the call returned.
          key: for the random start; consumed.
          iters: products with the Jacobian.
        """
        return spectral_radius(self.bind(tokens, memory=memory), z, key, iters=iters, batched=True)

    def bind(self, tokens: Integer[Array, "batch length"], *, memory: Memory | None = None) -> Any:
        """The map `z -> f(z)` whose equilibrium a call with these arguments finds."""
        check_inputs(tokens, None, memory, self.config.width)
        return self.deq.bind(*self._inject(tokens, memory))

    def torch_entries(self) -> list[Entry]:
        """The names of all arrays in the PyTorch code; for `load_torch_state_dict`."""
        cell: Any = self.deq.cell
        return [
            *self.embedding.torch_entries("word_emb"),
            *linear_entries("inject_conv", self.injection, ndim=3),
            *self.positions.torch_entries("pos_emb"),
            *cell.torch_entries("func"),
            *self.softmax.torch_entries("crit", self.embedding),
        ]

    def _inject(self, tokens, memory):
        """What the layer sees at every application: injection, memory, positions."""
        u = self.injection(self.drop_words(self.embedding(tokens)))
        if memory is None:
            nothing = whole(u, 1)[:, :0]
            z = jnp.zeros_like(nothing[..., : self.config.width], dtype=self.config.state_dtype)
            memory = Memory(z, nothing, jnp.int32(0))
        positions = self.positions(memory.z.shape[1] + tokens.shape[1])
        return u, memory.beside(u), self.drop_positions(positions)
