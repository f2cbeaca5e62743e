"""Weights from and to the PyTorch code beside the paper."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from jaxdeq.models._entries import Entry

WRAPPERS = ("module.", "model.")  # what parallel training and the segmentation code put before names
EXTRAS = ("fullstage_copy.", "loss.")  # layers that released files hold twice; weights of a loss


@runtime_checkable
class Model(Protocol):
    """A model that knows its names in PyTorch."""

    def torch_entries(self) -> list[Entry]:
        """All arrays of its state dict."""


def load_torch_state_dict(model: Model, mapping: Mapping[str, np.ndarray]) -> None:
    """Loads a state dict of the PyTorch code into a model of the same configuration, in place.

    Takes what released files add: the wrappers' prefixes `module.` and `model.`; the
    `fullstage_copy.` duplicates and the segmentation loss's `loss.` weights, which are dropped. What files
    may lack (BatchNorm's counters of batches) becomes 0. Every array ends up with the dtype and the
    sharding that its variable has. Nothing is changed if anything does not fit.

    Args:
      model: a `DEQTransformerLM`, `MDEQClassifier` or `MDEQSegmenter`.
      mapping: numpy arrays by name, such as `{k: v.numpy() for k, v in torch_state_dict.items()}`.

    Raises:
      ValueError: names that are missing or unexpected, arrays of another shape, or different
        values for what the model shares; all of them, in one message.

    Example:
      >>> from flax import nnx
      >>> from jaxdeq.models import MDEQClassifier, load_torch_state_dict, mdeq_configs, to_torch_state_dict
      >>> model = MDEQClassifier(mdeq_configs.cifar10_tiny(), rngs=nnx.Rngs(0))
      >>> load_torch_state_dict(model, to_torch_state_dict(model))
    """
    arrays, problems = _plain_names(mapping)
    entries = model.torch_entries()
    known = {entry.name for entry in entries}
    problems += [f"missing: {e.name} {_torch_shape(e)}" for e in entries if not e.optional and e.name not in arrays]
    problems += [f"unexpected: {name} {array.shape}" for name, array in arrays.items() if name not in known]
    arrays |= {e.name: np.zeros(_torch_shape(e), np.int64) for e in entries if e.optional and e.name not in arrays}
    found = [(entry, arrays[entry.name]) for entry in entries if entry.name in arrays]
    misfits = {entry.name for entry, array in found if array.shape != _torch_shape(entry)}
    problems += [
        f"shape: {entry.name} must be {_torch_shape(entry)}, got {array.shape}"
        for entry, array in found
        if entry.name in misfits
    ]
    loaded: dict[int, tuple[Entry, np.ndarray]] = {}
    for entry, array in found:
        if entry.name in misfits:
            continue
        value = entry.to_jax(array)
        first, other = loaded.setdefault(id(entry.variable), (entry, value))
        if other is not value and not np.array_equal(value, other, equal_nan=True):
            problems.append(f"shared: {entry.name} must be equal to {first.name}")
    if problems:
        raise ValueError(f"the checkpoint does not fit the model ({len(problems)}):\n  " + "\n  ".join(problems))
    for entry, value in loaded.values():
        _put(entry, value)


def to_torch_state_dict(model: Model) -> dict[str, np.ndarray]:
    """The model's arrays under PyTorch's names and in its layouts: the inverse of `load_torch_state_dict`.

    Gathers sharded arrays on this host; all their parts have to lie on it.

    Example:
      >>> from flax import nnx
      >>> from jaxdeq.models import MDEQClassifier, mdeq_configs, to_torch_state_dict
      >>> model = MDEQClassifier(mdeq_configs.cifar10_tiny(), rngs=nnx.Rngs(0))
      >>> to_torch_state_dict(model)["classifier.weight"].shape
      (10, 200)
    """
    return {
        entry.name: np.array(entry.to_torch(np.asarray(entry.variable.get_value())), order="C")
        for entry in model.torch_entries()
    }


def _plain_names(mapping):
    """The arrays by their names without wrappers, and what was found twice."""
    arrays: dict[str, np.ndarray] = {}
    problems = []
    for name, array in mapping.items():
        plain = name
        while plain.startswith(WRAPPERS):
            plain = plain.split(".", 1)[1]
        if plain.startswith(EXTRAS):
            continue
        if plain in arrays:
            problems.append(f"twice: {name}")
        arrays[plain] = np.asarray(array)
    return arrays, problems


def _torch_shape(entry: Entry) -> tuple[int, ...]:
    blank = np.broadcast_to(np.zeros((), np.int8), entry.variable.shape)  # a view: holds one number
    return entry.to_torch(blank).shape


def _put(entry: Entry, value: np.ndarray) -> None:
    old = entry.variable.get_value()
    entry.variable.set_value(jax.device_put(value.astype(old.dtype), old.sharding))
