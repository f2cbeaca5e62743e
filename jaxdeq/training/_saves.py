"""Saving a run and going on from it, with orbax."""

import contextlib
import warnings
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from grain.checkpoint import CheckpointSave
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from jaxdeq.training._checkpoint import (
    CheckpointError,
    agreed,
    complete,
    first_line,
    folder_of,
    read_changes,
    read_state,
    seek,
    with_size,
)
from jaxdeq.training._config import Config, describe
from jaxdeq.training._state import State

ITEMS = ("state", "data", "config")


class Saves:
    """The checkpoints of one run: state, position in the data, and config, each in one folder by its step.

    A context: at its end all is written and closed.

    Args:
      config: of the run; its `work` is where they are.

    Raises:
      CheckpointError: a folder that cannot be written.
    """

    def __init__(self, config: Config):
        self.config = config
        self.folder = folder_of(config)
        try:
            self.manager = _Manager(self.folder, options=_options(config), item_names=ITEMS)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.folder}: {error}; choose another folder by --work") from error

    def save(self, state: State, data: grain.DatasetIterator, step: int, scores: dict[str, float] | None) -> None:
        """Begins a save, and returns once the state may change; waits for the save before.

        Raises:
          CheckpointError: this one or the one before could not be written.
        """
        if step in self.manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(with_size(state)),
            data=CheckpointSave(data),
            config=ocp.args.JsonSave(describe(self.config)),
        )
        self._try(lambda: self.manager.save(step, args=args, metrics=scores, force=True))

    def wait(self) -> None:
        """Until all is written.

        Raises:
          CheckpointError: it could not be.
        """
        self._try(self.manager.wait_until_finished)

    def __enter__(self) -> "Saves":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        with contextlib.suppress(CheckpointError) if error else contextlib.nullcontext():
            self._try(self.manager.close)

    def _try(self, write):
        try:
            write()
        except Exception as error:
            raise CheckpointError(
                f"a checkpoint could not be written to {self.folder} ({first_line(error)}). Those of steps "
                f"{complete(self.folder)} are intact; make room or repair the folder, and the same command goes on "
                "from the last one"
            ) from error

    def restore(self, like: State, data: grain.DatasetIterator) -> State | None:
        """The state of the last readable checkpoint, on the mesh of `like`; the position in the data is set too.

        Checkpoints after it that cannot be read are moved to the folder `unreadable`, with a warning.

        Returns:
          None where there is no checkpoint.

        Raises:
          CheckpointError: there are some, and none can be read, or they are of another model.
        """
        failed: dict[int, str] = {}
        for step in reversed(self.steps()):
            state, changes, problem = self._read(step, like, data)
            if problem := agreed(problem):  # all go on from the same step
                failed[step] = problem
                continue
            self._put_aside(failed, step)
            if changes:
                warnings.warn(f"the run in {self.folder} goes on with other settings: {changes}", stacklevel=4)
            return state
        if failed:
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} can be read: {failed}. If settings differ, they are the "
                "likely cause. To begin anew, move that folder away or choose another one by --work"
            )
        return None

    def _read(self, step, like, data):
        """The state, the settings that differ, and what this process could not read, if anything."""
        changes: dict[str, str] = {}
        try:
            changes = read_changes(self.folder, step, self.config)
            state = read_state(self.folder, step, like)
            seek(self.folder, step, data)
        except CheckpointError:
            raise
        except Exception as error:  # whatever orbax and its libraries raise for a damaged file
            return None, changes, first_line(error) + (f" (settings that differ: {changes})" if changes else "")
        return state, changes, ""

    def best(self) -> int | None:
        """The step of the best checkpoint, if any was scored."""
        return self.manager.best_step()

    def steps(self) -> list[int]:
        """Of all checkpoints that are complete."""
        return sorted(self.manager.all_steps())

    def _put_aside(self, failed, step):
        if not failed:
            return
        aside = self.folder.parent / "unreadable"
        warnings.warn(
            f"checkpoints cannot be read and are moved to {aside}: {failed}; going on from step {step}", stacklevel=3
        )
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            for bad in failed:
                (self.folder / str(bad)).rename(_free(aside / str(bad)))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("unreadable checkpoints are put aside")
        self.manager.reload()


class _Manager(ocp.CheckpointManager):
    """Does not ask JAX whether the run is to stop.

    JAX takes the step last asked about for the one that the process has reached. Orbax asks about a save's step once
    that save is written, when the run is further: processes told to stop just then would agree on a step that one of
    them has passed, and the others wait for it.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def _options(config):
    """The last ones are kept, and the best of those that were scored."""
    name, higher = config.task.best()
    goodness = lambda scores: (scores[name] if higher else -scores[name]) if np.isfinite(scores[name]) else -np.inf
    last = checkpoint_managers.LatestN(config.checkpoints.keep)
    best = checkpoint_managers.BestN(get_metric_fn=goodness, n=1, keep_checkpoints_without_metrics=False)
    return ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy([last, best]),
        best_fn=goodness,
        cleanup_tmp_directories=True,
    )


def _free(path: Path) -> Path:
    """A name that is not taken."""
    return path if not path.exists() else _free(path.with_name(path.name + "+"))
