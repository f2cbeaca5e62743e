"""The tasks that come with the library: the model, its loss, and how well it does."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Integer

from jaxdeq import _checks as check
from jaxdeq import models
from jaxdeq.models import DEQTransformerConfig, MDEQConfig, ResNetConfig, TransformerXLConfig
from jaxdeq.training._task import Batch, Outcome

ModelConfig = MDEQConfig | ResNetConfig | DEQTransformerConfig | TransformerXLConfig


@dataclass(frozen=True)
class Classification:
    """Images, one class each: `{"images": [B, H, W, C], "labels": [B]}`.

    Attributes:
      smoothing: share of each label that is spread over all classes, in training.
      top5: whether to score the five most likely classes as well.

    Example:
      >>> from jaxdeq.training import Classification
      >>> Classification(smoothing=0.1).best()
      ('accuracy', True)
    """

    smoothing: float = 0.0
    top5: bool = False

    def __post_init__(self):
        check.nonnegative("smoothing", self.smoothing)

    def build(self, config: MDEQConfig | ResNetConfig, rngs: nnx.Rngs) -> nnx.Module:
        return {MDEQConfig: models.MDEQClassifier, ResNetConfig: models.ResNet}[type(config)](config, rngs=rngs)

    def carry(self, model: Any, rows: int) -> tuple[()]:
        return ()

    def count(self, batch: Batch) -> int:
        return len(batch["images"])

    def apply(self, model: Any, batch: Batch, carry: Any, **solve: Any) -> Outcome:
        out = model(batch["images"], **solve)
        labels, weights = batch["labels"], _weights(batch, batch["labels"])
        losses = cross_entropy(out.logits, labels)
        sums = {"loss": jnp.sum(weights * losses), "weight": jnp.sum(weights)}
        right = lambda hits: jnp.sum(jnp.where(hits, weights, 0))
        sums["accuracy"] = right(jnp.argmax(out.logits, axis=-1) == labels)
        if self.top5:
            _, best = jax.lax.top_k(out.logits, 5)
            sums["top5"] = right(jnp.any(best == labels[:, None], axis=-1))
        if self.smoothing:
            even = -jnp.mean(jax.nn.log_softmax(out.logits), axis=-1)
            losses = (1 - self.smoothing) * losses + self.smoothing * even
        loss = jnp.sum(weights * losses) / jnp.maximum(sums["weight"], 1)
        return Outcome(loss, sums, (), out)

    def spectral_radius(self, model: Any, batch: Batch, carry: Any, z: Any, key: Array) -> Array:
        return model.spectral_radius(batch["images"], z, key)

    def best(self) -> tuple[str, bool]:
        return "accuracy", True

    def unit(self) -> str:
        return "images"

    def scores(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        weight = max(float(sums["weight"]), 1.0)
        return {name: float(total) / weight for name, total in sums.items() if name != "weight"}


@dataclass(frozen=True)
class Segmentation:
    """Images, one class a pixel: `{"images": [B, H, W, C], "labels": [B, H, W]}`.

    Attributes:
      weights: of the classes in the loss. Empty: all alike.
      ignore: the label of pixels that do not count.

    Example:
      >>> from jaxdeq.training import Segmentation
      >>> Segmentation(weights=(0.8, 1.2)).best()
      ('miou', True)
    """

    weights: tuple[float, ...] = ()
    ignore: int = 255

    def build(self, config: MDEQConfig, rngs: nnx.Rngs) -> nnx.Module:
        if len(self.weights) not in (0, config.classes):
            raise ValueError(f"weights must be empty or one for each of {config.classes} classes; got {self.weights}")
        return models.MDEQSegmenter(config, rngs=rngs)

    def carry(self, model: Any, rows: int) -> tuple[()]:
        return ()

    def count(self, batch: Batch) -> int:
        return len(batch["images"])

    def apply(self, model: Any, batch: Batch, carry: Any, **solve: Any) -> Outcome:
        out, labels = model(batch["images"], **solve), batch["labels"]
        weights = _weights(batch, labels[:, 0, 0])[:, None, None]
        counts = jnp.where(labels == self.ignore, 0, weights)
        labels = jnp.where(labels == self.ignore, 0, labels)
        logits = models.resize_bilinear(out.logits, (labels.shape[1], labels.shape[2]))
        losses = counts * cross_entropy(logits, labels)
        balance = jnp.asarray(self.weights, jnp.float32)[labels] if self.weights else jnp.float32(1)
        loss = jnp.sum(balance * losses) / jnp.maximum(jnp.sum(balance * counts), 1e-6)
        predicted, classes = jnp.argmax(logits, axis=-1).astype(labels.dtype), logits.shape[-1]
        confusion = jax.ops.segment_sum(counts.ravel(), (labels * classes + predicted).ravel(), classes**2)
        sums = {"loss": jnp.sum(losses), "weight": jnp.sum(counts), "confusion": confusion.reshape(classes, classes)}
        return Outcome(loss, sums, (), out)

    def spectral_radius(self, model: Any, batch: Batch, carry: Any, z: Any, key: Array) -> Array:
        return model.spectral_radius(batch["images"], z, key)

    def best(self) -> tuple[str, bool]:
        return "miou", True

    def unit(self) -> str:
        return "images"

    def scores(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        """Loss a pixel, share of right pixels, and the mean over classes of intersection over union."""
        confusion, weight = np.asarray(sums["confusion"], np.float64), max(float(sums["weight"]), 1.0)
        right = np.diag(confusion)
        union = confusion.sum(0) + confusion.sum(1) - right
        miou = float(np.mean(right[union > 0] / union[union > 0])) if np.any(union) else 0.0
        return {"loss": float(sums["loss"]) / weight, "accuracy": float(right.sum()) / weight, "miou": miou}


@dataclass(frozen=True)
class LanguageModelling:
    """Text, row by row: `{"tokens": [B, L], "targets": [B, L]}`.

    Each row of a batch goes on where the same row of the batch before ended; the model's memory is
    carried along.

    Example:
      >>> from jaxdeq.training import LanguageModelling
      >>> LanguageModelling().best()
      ('loss', False)
    """

    def build(self, config: DEQTransformerConfig | TransformerXLConfig, rngs: nnx.Rngs) -> nnx.Module:
        kinds = {DEQTransformerConfig: models.DEQTransformerLM, TransformerXLConfig: models.TransformerXL}
        return kinds[type(config)](config, rngs=rngs)

    def carry(self, model: Any, rows: int) -> Any:
        return model.empty_memory(rows)

    def count(self, batch: Batch) -> int:
        return batch["targets"].size

    def apply(self, model: Any, batch: Batch, carry: Any, **solve: Any) -> Outcome:
        out = model(batch["tokens"], targets=batch["targets"], memory=carry, **solve)
        weights = _weights(batch, batch["targets"])
        sums = {"loss": jnp.sum(weights * out.losses), "weight": jnp.sum(weights)}
        return Outcome(sums["loss"] / jnp.maximum(sums["weight"], 1), sums, out.memory, out)

    def spectral_radius(self, model: Any, batch: Batch, carry: Any, z: Any, key: Array) -> Array:
        return model.spectral_radius(batch["tokens"], z, key, memory=carry)

    def best(self) -> tuple[str, bool]:
        return "loss", False

    def unit(self) -> str:
        return "tokens"

    def scores(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        loss = float(sums["loss"]) / max(float(sums["weight"]), 1.0)
        return {"loss": loss, "perplexity": float(np.exp(loss))}


def cross_entropy(logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Negative log probabilities of the labels, in nats."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def _weights(batch: Batch, like: Array) -> Array:
    return batch["weights"] if "weights" in batch else jnp.ones(like.shape, jnp.float32)
