"""Weights of another run or of a published checkpoint, to start from."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import tree_leaves_with_path

from jaxdeq.models import convert, load_torch_state_dict, to_torch_state_dict
from jaxdeq.training._checkpoint import CheckpointError, agreed, complete, first_line, read_arrays, read_scores
from jaxdeq.training._state import State, Structure, reseed, split


def start_from(path: Path, state: State, structure: Structure, mesh: jax.sharding.Mesh) -> tuple[State, str]:
    """A state with all arrays that `path` has under the same name and in the same shape.

    Args:
      path: the work folder of another run, of which the checkpoint with the lowest validation loss is
        taken, or else the last one, and averages of weights where it has them; or a PyTorch
        checkpoint as a `.safetensors` file.
      state: the state before the first step.
      structure: of the model.
      mesh: where arrays are read to.

    Returns:
      The state, and how much was found.

    Raises:
      FileNotFoundError: there is nothing to start from.
      CheckpointError: it cannot be read, by one process or more.
      ValueError: nothing there fits.
    """
    if path.suffix == ".safetensors":
        weights, found, total = _from_torch(path, (state.params, state.rest), structure, mesh)
    else:
        weights, found, total = _from_run(path, (state.params, state.rest), mesh)
    if not found:
        raise ValueError(f"{path} must have arrays of the model's names and shapes to start from; none of {total} fit")
    state = state._replace(params=weights[0], rest=weights[1])
    if state.ema:
        state = state._replace(ema=jax.tree.map(lambda x: x.copy(), weights))
    return state, f"starting from {path}: {found} of {total} arrays"


def _from_torch(path, weights, structure, mesh):
    """Counts arrays as PyTorch has them. Each process has them whole for a moment: it cannot read parts on others."""
    params, rest = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(weights)
    random = reseed(structure.random, jax.random.key(0))
    model: Any = nnx.merge(structure.graphdef, params, random, rest, copy=True)
    own = to_torch_state_dict(model)
    fits = {name: x for name, x in convert.load(path).items() if name in own and own[name].shape == x.shape}
    load_torch_state_dict(model, own | fits)
    parts = split(model)
    at_rest = jax.tree.map(lambda x: x.sharding, weights)
    return jax.jit(lambda x: x, out_shardings=at_rest)((parts.params, parts.rest)), len(fits), len(own)


def _from_run(path, weights, mesh):
    folder = path.absolute() / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"there must be a run or a .safetensors file to start from; got {path}")
    if not (steps := complete(folder)):
        raise FileNotFoundError(f"there must be a finished checkpoint to start from; got none in {folder}")
    saved, problem = {}, ""
    try:
        saved = read_arrays(folder, _best(folder, steps), NamedSharding(mesh, P()))
    except Exception as error:  # whatever orbax and its libraries raise for a damaged file
        problem = first_line(error)
    if problem := agreed(problem):
        raise CheckpointError(f"the best checkpoint in {folder} cannot be read ({problem})")
    theirs = dict(_named(tuple(saved.get("ema") or (saved["params"], saved["rest"]))))
    found = {name for name, x in _named(weights) if name in theirs and theirs[name].shape == x.shape}
    take = lambda name, x: jax.device_put(theirs[name].astype(x.dtype), x.sharding) if name in found else x
    taken = [take(name, x) for name, x in _named(weights)]
    return jax.tree.unflatten(jax.tree.structure(weights), taken), len(found), len(taken)


def _best(folder, steps):
    """With the lowest validation loss; the last one, if none was tried."""
    losses = {step: read_scores(folder, step).get("loss", np.inf) for step in reversed(steps)}
    return min(losses, key=lambda step: losses[step] if np.isfinite(losses[step]) else np.inf)


def _named(tree):
    """Arrays by the names on the way to them, in order."""
    part = lambda key: str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
    return [(".".join(map(part, path)), x) for path, x in tree_leaves_with_path(tree)]
