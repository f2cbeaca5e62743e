"""What language models take and return."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdeq import Stats
from jaxdeq.models._lm_cell import Memory


class LMOutput(NamedTuple):
    """What a language model returns.

    Attributes:
      losses: `[batch, targets]`, negative log probabilities of the targets in nats, in the order
        of the tokens; None without targets.
      logits: `[batch, length, vocab]`, log probabilities of the next token in nats; None with
        targets.
      z: `[batch, length, width]`, the equilibrium; of a model with several layers, the last one's
        output.
      memory: for the next segment.
      stats: how the equilibrium was found; None if it was unrolled, or if there is none.
      penalty: `jaxdeq.jacobian_penalty` there; None if no `key` was given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.models import DEQTransformerConfig, DEQTransformerLM
      >>> config = DEQTransformerConfig(vocab=50, width=16, heads=2, inner=32, embed=16, memory=8)
      >>> def read(tokens):
      ...     return DEQTransformerLM(config, rngs=nnx.Rngs(0))(tokens)
      >>> out = jax.eval_shape(read, jnp.ones((2, 6), jnp.int32))
      >>> out.logits.shape, out.z.shape, out.losses
      ((2, 6, 50), (2, 6, 16), None)
    """

    losses: Array | None
    logits: Array | None
    z: Array
    memory: Memory
    stats: Stats | None
    penalty: Array | None


def check_inputs(tokens: Array, targets: Array | None, memory: Memory | None, width: int) -> None:
    """Refuses what is no segment of text, or does not belong to it; `width` is that of the memory."""
    for name, x in (("tokens", tokens), ("targets", targets)):
        if x is not None and (x.ndim != 2 or 0 in x.shape or not jnp.issubdtype(x.dtype, jnp.integer)):
            raise ValueError(f"{name} must be integers of shape [batch, length]; got {jax.typeof(x)}")
    batch, length = tokens.shape
    if targets is not None and (targets.shape[0] != batch or targets.shape[1] > length):
        raise ValueError(
            f"targets must be [{batch}, at most {length}], as tokens are {tokens.shape}; got {targets.shape}"
        )
    if memory is not None and (memory.z.shape[0] != batch or memory.z.shape[2:] != (width,)):
        raise ValueError(f"memory must be of {batch} sequences and width {width}; got z of shape {memory.z.shape}")
