"""Text from a DEQ-Transformer, one solved position at a time."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jaxdeq import Stats
from jaxdeq import _checks as check
from jaxdeq.models._lm_cell import Memory


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
      tokens: `[batch, length]`, without the prompt.
      memory: what the last token saw. To go on, pass it with the last token as the prompt.
      stats: of the solves, `length` of them along a new first axis; the first one is the prompt's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.models import DEQTransformerConfig, DEQTransformerLM
      >>> config = DEQTransformerConfig(vocab=50, width=16, heads=2, inner=32, embed=16, memory=8)
      >>> def write(prompt):
      ...     model = DEQTransformerLM(config, rngs=nnx.Rngs(0))
      ...     model.eval()
      ...     return model.generate(prompt, 5)
      >>> out = jax.eval_shape(write, jnp.ones((1, 3), jnp.int32))
      >>> out.tokens.shape, out.stats.steps.shape
      ((1, 5), (5, 1))
    """

    tokens: Integer[Array, "batch length"]
    memory: Memory
    stats: Stats


class Reading(NamedTuple):
    """What follows from some tokens."""

    log_probabilities: Float[Array, "batch vocab"]  # of the next token
    memory: Memory
    stats: Stats | None


Read = Callable[[Array, Memory | None], Reading]
Pick = Callable[[Array, Any], Array]  # log probabilities and a key: tokens


def extend(
    read: Read,
    pick: Pick,
    prompt: Integer[Array, "batch prompt"],
    memory: Memory | None,
    length: int,
    room: int,
    key: Any,
) -> Generated:
    """Reads the prompt once, then `length - 1` tokens one by one, each at the cost of its own position."""
    keys = None if key is None else jax.random.split(key, length)
    at = lambda index: None if keys is None else keys[index]
    first = read(prompt, memory)
    token = pick(first.log_probabilities, at(0)).astype(jnp.int32)

    def step(carry: tuple[Array, Memory], key: Any):
        token, memory = carry
        found = read(token[:, None], memory)
        following = pick(found.log_probabilities, key).astype(token.dtype)
        return (following, found.memory), (following, found.stats)

    start = (token, first.memory.pad(room))
    (_, seen), (tokens, stats) = lax.scan(step, start, at(slice(1, None)), length=length - 1)
    tokens = jnp.concatenate([token[None], tokens]).T
    stats = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first.stats, stats)
    return Generated(tokens, seen, stats)


def picker(key: Any, temperature: ArrayLike, top_k: int | None) -> Pick:
    """How the next token is chosen: the most likely one without a key, else drawn.

    Raises:
      ValueError: `temperature` or `top_k` without a key, `temperature <= 0`, `top_k < 1`.
    """
    if top_k is not None:
        check.count("top_k", top_k)
    if isinstance(temperature, numbers.Real) and not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature must be a finite number above 0; got {temperature}. Without a key, the most likely "
            f"token is taken, as with a temperature of 0"
        )
    if key is None:
        if top_k is not None or not (isinstance(temperature, numbers.Real) and temperature == 1):
            raise ValueError("temperature and top_k need a key to draw with; got key=None, for the most likely token")
        return lambda log_probabilities, key: jnp.argmax(log_probabilities, axis=-1)

    def draw(log_probabilities, key):
        scores = log_probabilities / jnp.asarray(temperature, log_probabilities.dtype)
        if top_k is None:
            return jax.random.categorical(key, scores)
        scores, tokens = lax.top_k(scores, min(top_k, scores.shape[-1]))
        return jnp.take_along_axis(tokens, jax.random.categorical(key, scores)[:, None], axis=-1)[:, 0]

    return draw
