"""What is in a run's checkpoints. Reading changes nothing in them, and waits for no other process but in `agreed`."""

import json
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxdeq.training._config import Config, describe, differences
from jaxdeq.training._state import State

SCORES = "metrics"  # as orbax names them
FREE = ("evaluation", "checkpoints", "log", "mesh", "hosts", "work", "start")  # settings that change no number of a run


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the message says which ones are intact.

    Example:
      >>> import tempfile
      >>> from dataclasses import replace
      >>> from pathlib import Path
      >>> from experiments import configs
      >>> from jaxdeq import training
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     try:
      ...         training.load(replace(configs.fashion_mdeq(), work=Path(folder)), step=5)
      ...     except training.CheckpointError as error:
      ...         print(str(error).split(" in ")[0])
      there must be a checkpoint of step 5
    """


def folder_of(config: Config) -> Path:
    return config.work.absolute() / "checkpoints"


def complete(folder: Path) -> list[int]:
    """The steps of all checkpoints that are."""
    return sorted(ocp.utils.checkpoint_steps(folder))


def read_state(folder: Path, step: int, like: State) -> State:
    """On the mesh of `like`."""
    saved = ocp.StandardCheckpointHandler().restore(
        folder / str(step) / "state", args=ocp.args.StandardRestore(with_size(like))
    )
    whole = lambda x, found: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding) if found is None else found
    return jax.tree.map(whole, like, saved)


def read_arrays(folder: Path, step: int, sharding: jax.sharding.Sharding) -> Any:
    """All arrays of a state by name, as they were saved, and all placed in the same way."""
    handler, path = ocp.StandardCheckpointHandler(), folder / str(step) / "state"
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    like = jax.tree.map(place, handler.metadata(path).tree)
    return handler.restore(path, args=ocp.args.StandardRestore(like))


def read_scores(folder: Path, step: int) -> dict[str, float]:
    """Of the evaluation that the checkpoint was made after; none if there was none."""
    path = folder / str(step) / SCORES
    return ocp.JsonCheckpointHandler(filename=SCORES).restore(path) if path.exists() else {}


def read_changes(folder: Path, step: int, config: Config) -> dict[str, str]:
    """What differs from the settings that the checkpoint was made with, but for what every run may change.

    Raises:
      CheckpointError: it is of another model, task or data set.
    """
    old = ocp.JsonCheckpointHandler().restore(folder / str(step) / "config", args=ocp.args.JsonRestore())
    changes = differences(old, json.loads(json.dumps(describe(config))))
    told = {n: f"{a!r} -> {b!r}" for n, (a, b) in changes.items() if n.split(".")[0] not in FREE}
    if any(f"{part}.type" in told for part in ("model", "task", "data")):
        raise CheckpointError(f"{folder} is of another run ({told}); choose another folder by --work")
    return told


def seek(folder: Path, step: int, data: grain.DatasetIterator) -> None:
    """Sets the position in the data, which is the same on all hosts, however many there were."""
    files = folder / str(step) / "data"
    own = files / f"process_{jax.process_index()}-of-{jax.process_count()}.json"
    path = own if own.exists() else next(iter(sorted(files.glob("process_0-of-*.json"))))
    data.set_state(json.loads(path.read_text()))


def agreed(problem: str) -> str:
    """What a process could not do, known to all of them: "" where all could. Waits for the others."""
    return (problem or "by another process") if np.any(multihost_utils.process_allgather(problem != "")) else ""


def with_size(state: State) -> State:
    """Without arrays of no elements, which orbax refuses; an explicit model's memory has one."""
    return jax.tree.map(lambda x: x if x.size else None, state)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
