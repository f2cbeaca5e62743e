"""Which variable of a model an array of a PyTorch checkpoint is, and how the layouts differ."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from flax import nnx


class Entry(NamedTuple):
    """One array of a checkpoint.

    Attributes:
      name: its key in PyTorch's state dict.
      variable: what holds it here; several entries may share one.
      to_jax: from PyTorch's layout to the variable's; the inverse of `to_torch`. Both only move
        data, so that a round trip is exact.
      to_torch: from the variable's layout to PyTorch's.
      optional: whether a checkpoint may lack it.
    """

    name: str
    variable: nnx.Variable
    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]
    optional: bool = False


def same(name: str, variable: nnx.Variable) -> Entry:
    """The same layout on both sides."""
    return Entry(name, variable, np.asarray, np.asarray)


def transposed(name: str, variable: nnx.Variable) -> Entry:
    """A matrix, `[out, in]` in PyTorch, such as a linear layer's."""
    return Entry(name, variable, np.transpose, np.transpose)


def kernel(name: str, variable: nnx.Variable) -> Entry:
    """A 2-D convolution's kernel, `[out, in, height, width]` in PyTorch, `[height, width, in, out]` here."""
    return Entry(name, variable, lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))


def lengths(name: str, variable: nnx.Variable, ndim: int) -> Entry:
    """The lengths of a weight-normalised kernel, `[out, 1, ...]` of `ndim` axes in PyTorch, `[out]` here."""
    return Entry(name, variable, np.ravel, lambda a: a.reshape(-1, *(1,) * (ndim - 1)))


def count(name: str, variable: nnx.Variable) -> Entry:
    """A counter, int64 in PyTorch, where old checkpoints lack it."""
    return Entry(name, variable, lambda a: a.astype(np.int32), lambda a: a.astype(np.int64), optional=True)
