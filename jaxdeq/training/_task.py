"""What a run wants to know of what is learnt."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

Batch = dict[str, jax.Array]


class Outcome(NamedTuple):
    """What a model did with a batch.

    Attributes:
      loss: to be minimised, a mean.
      sums: over the batch, to be added over batches and read by the task's `scores`.
      carry: for the next batch.
      output: the model's own; its `stats` and `penalty` are read, and may be None.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxdeq.training import Outcome
      >>> Outcome(jnp.float32(0.5), {"loss": jnp.float32(4.0), "weight": jnp.float32(8.0)}, (), None).carry
      ()
    """

    loss: Array
    sums: dict[str, Array]
    carry: Any
    output: Any


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass that says what is learnt.

    Example:
      >>> from jaxdeq import training
      >>> isinstance(training.Classification(), training.Task)
      True
    """

    def build(self, config: Any, rngs: nnx.Rngs) -> nnx.Module:
        """The model."""

    def carry(self, model: Any, rows: int) -> Any:
        """What goes from batch to batch, before the first."""

    def apply(self, model: Any, batch: Batch, carry: Any, **solve: Any) -> Outcome:
        """Runs the model; `solve` as the model takes it. `batch` may have `weights`, 0 for what does not count."""

    def spectral_radius(self, model: Any, batch: Batch, carry: Any, z: Any, key: Array) -> Array:
        """Spectral radii at the equilibrium `z` of a batch."""

    def scores(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        """Means from sums, `loss` among them."""

    def best(self) -> tuple[str, bool]:
        """The score by which the best checkpoint is kept, and whether higher is better."""

    def unit(self) -> str:
        """What batches are counted in."""

    def count(self, batch: Batch) -> int:
        """How many of these a batch has."""
