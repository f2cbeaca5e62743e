"""What a run has learnt."""

from typing import Any

import jax

from jaxdeq.training._checkpoint import CheckpointError, complete, first_line, folder_of, read_state
from jaxdeq.training._config import Config
from jaxdeq.training._state import model_of, plan_state, seeded, structure

__all__ = ["load", "saved"]


def saved(config: Config) -> list[int]:
    """The steps of a run's complete checkpoints, in order.

    Example:
      >>> import tempfile
      >>> from dataclasses import replace
      >>> from pathlib import Path
      >>> from experiments import configs
      >>> from jaxdeq import training
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     training.saved(replace(configs.fashion_mdeq(), work=Path(folder)))
      []
    """
    return complete(folder_of(config))


def load(config: Config, step: int | None = None) -> Any:
    """The model of a run's checkpoint, for evaluation: with averaged weights, where the run has them.

    Args:
      config: of the run. How its model solves may differ, and its mesh; the shapes of its weights, its optimiser
        and batch, may not.
      step: of the checkpoint. None: of the last one.

    Raises:
      CheckpointError: no such checkpoint, or one that cannot be read.

    Example:
      >>> from experiments import configs
      >>> from jaxdeq import training
      >>> def classifier():  # after python -m experiments.main fashion_mdeq
      ...     return training.load(configs.fashion_mdeq())
    """
    mesh, folder = config.mesh.make(), folder_of(config)
    steps = complete(folder)
    step = steps[-1] if step is None and steps else step
    if step not in steps:
        raise CheckpointError(f"there must be a checkpoint of step {step} in {folder}; there are {steps}")
    with jax.set_mesh(mesh):
        like = plan_state(config, mesh)
        try:
            state = read_state(folder, step, like)
        except Exception as error:  # whatever orbax and its libraries raise for a damaged file
            raise CheckpointError(
                f"the checkpoint of step {step} in {folder} cannot be read ({first_line(error)}); there are {steps}"
            ) from error
        return model_of(seeded(structure(config), config.seed, mesh), state)
