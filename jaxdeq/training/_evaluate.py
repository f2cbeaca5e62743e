"""Scores of a state on data that it was not trained on."""

from typing import Any

import jax
import numpy as np

from jaxdeq.training._mesh import put_rows
from jaxdeq.training._state import State
from jaxdeq.training._step import Programs
from jaxdeq.training._task import Task


def evaluate(programs: Programs, split: str, state: State, step: int) -> dict[str, float]:
    """Scores on a split: of averaged weights where there are some, unrolled before the end of pre-training.

    Raises:
      ValueError: the split has no data.
    """
    config = programs.config
    weights = state.ema or (state.params, state.rest)
    rows, unrolled = config.evaluation.batch or config.batch, step < config.pretrain
    begin = carry = programs.carry(rows)
    parts: list[Any] = []
    radius = {}
    for batch in config.data.evaluate(split, rows):
        batch = put_rows(batch, programs.mesh)
        if not parts and config.evaluation.radius and config.implicit:
            radius = {"radius": programs.radius(weights, batch, begin, jax.random.key(config.seed))}
        part, carry = programs.evaluate(weights, batch, carry, unrolled)
        parts.append(part)
    if not parts:
        raise ValueError(f"there must be {split} data to try the model on; got none from {config.data}")
    return means(config.task, jax.device_get(parts)) | {name: float(value) for name, value in radius.items()}


def means(task: Task, parts: list[Any]) -> dict[str, float]:
    """Scores over the data, from sums over its batches."""
    total = lambda name: np.asarray(np.sum([part[name] for part in parts], axis=0, dtype=np.float64))
    totals = {name: total(name) for name in parts[0]}
    solves = {name: totals.pop(name) for name in list(totals) if name.startswith("forward_")}
    rows = solves.pop("forward_rows", 1.0)
    return task.scores(totals) | {name: float(x / rows) for name, x in solves.items()}
