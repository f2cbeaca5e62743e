"""Optimisers and their learning rates, with optax."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from jaxdeq import _checks as check


@dataclass(frozen=True)
class Cosine:
    """A rate that rises linearly, then follows a cosine down.

    The cosine's clock starts with training, not after the warm-up.

    Attributes:
      peak: the highest rate.
      warmup: steps of the rise.
      floor: the rate at the end.
      first_at_peak: whether the very first step has the peak's rate before the rise begins, as the
        reference's language models have. Adam's first step is of the size of the rate.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxdeq.training import Cosine
      >>> rate = Cosine(peak=1.0, warmup=10)
      >>> [round(float(rate(jnp.int32(step), steps=100)), 2) for step in (0, 5, 50, 100)]
      [0.0, 0.5, 0.5, 0.0]
    """

    peak: float
    warmup: int = 0
    floor: float = 0.0
    first_at_peak: bool = False

    def __post_init__(self):
        check.nonnegative("peak", self.peak)
        check.nonnegative("floor", self.floor)
        check.count("warmup", self.warmup, least=0)
        check.flag("first_at_peak", self.first_at_peak)

    def __call__(self, step: jax.Array, steps: int) -> jax.Array:
        """The rate after `step` steps of `steps`."""
        t = step.astype(jnp.float32)
        fall = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(t / steps, 1)))
        rate = self.floor + (self.peak - self.floor) * fall
        rate = jnp.where(t < self.warmup, self.peak * t / max(1, self.warmup), rate)
        return jnp.where(t == 0, self.peak, rate) if self.first_at_peak else rate


@runtime_checkable
class Optimizer(Protocol):
    """A frozen dataclass that says how gradients become updates.

    Example:
      >>> from jaxdeq import training
      >>> isinstance(training.Adam(training.Cosine(1e-3)), training.Optimizer)
      True
    """

    def learning_rate(self, step: jax.Array, steps: int) -> jax.Array:
        """After `step` steps of `steps`."""

    def directions(self) -> optax.GradientTransformation:
        """From gradients to what is added to the parameters, for a rate of -1."""


@dataclass(frozen=True)
class Adam:
    """Adam.

    Attributes:
      rate: the learning rate.
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      decay: weight decay.
      decoupled: whether weights decay by themselves (AdamW), or through the gradient, as in PyTorch's Adam.
      clip: gradients of a larger norm, over all parameters, are scaled down to it. 0: none are.

    Example:
      >>> from jaxdeq.training import Adam, Cosine
      >>> Adam(Cosine(peak=1e-3, warmup=200), clip=0.25).b2
      0.999
    """

    rate: Cosine
    b1: float = 0.9
    b2: float = 0.999
    decay: float = 0.0
    decoupled: bool = False
    clip: float = 0.0

    def __post_init__(self):
        for name in ("b1", "b2", "decay", "clip"):
            check.nonnegative(name, getattr(self, name))
        check.flag("decoupled", self.decoupled)

    def learning_rate(self, step: jax.Array, steps: int) -> jax.Array:
        return self.rate(step, steps)

    def directions(self) -> optax.GradientTransformation:
        coupled, decoupled = (0.0, self.decay) if self.decoupled else (self.decay, 0.0)
        adam = optax.scale_by_adam(self.b1, self.b2)
        return optax.chain(_clip(self.clip), _decay(coupled), adam, _decay(decoupled))


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum.

    Attributes:
      rate: the learning rate.
      momentum: decay of the sum of gradients.
      nesterov: whether the momentum looks one step ahead.
      decay: weight decay, through the gradient.
      clip: as in `Adam`.

    Example:
      >>> from jaxdeq.training import SGD, Cosine
      >>> SGD(Cosine(peak=0.05), nesterov=True, decay=5e-5).momentum
      0.9
    """

    rate: Cosine
    momentum: float = 0.9
    nesterov: bool = False
    decay: float = 0.0
    clip: float = 0.0

    def __post_init__(self):
        for name in ("momentum", "decay", "clip"):
            check.nonnegative(name, getattr(self, name))
        check.flag("nesterov", self.nesterov)

    def learning_rate(self, step: jax.Array, steps: int) -> jax.Array:
        return self.rate(step, steps)

    def directions(self) -> optax.GradientTransformation:
        return optax.chain(_clip(self.clip), _decay(self.decay), optax.trace(self.momentum, self.nesterov))


# Both have the same state, none, whether or not they do anything: a run may go on with another clip or decay.
def _clip(norm):
    return optax.clip_by_global_norm(norm) if norm else optax.identity()


def _decay(rate):
    return optax.add_decayed_weights(rate) if rate else optax.identity()
