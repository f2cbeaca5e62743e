"""Scores of a model on data that it was not trained on."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdeq import _checks as check
from jaxdeq.training import _state
from jaxdeq.training._config import Config
from jaxdeq.training._measures import by_row
from jaxdeq.training._mesh import IN_USE, place, place_rows, put_rows
from jaxdeq.training._task import Task


class _Fixed(NamedTuple):
    """What a program is compiled for."""

    task: Task
    graphdef: nnx.GraphDef
    mesh: jax.sharding.Mesh

    def model(self, arrays):
        params, random, rest = arrays
        params = lax.with_sharding_constraint(params, place(params, self.mesh, IN_USE))
        return nnx.merge(self.graphdef, params, random, rest, copy=True)

    def in_rows(self, tree):
        return lax.with_sharding_constraint(tree, place_rows(tree, self.mesh))

    def whole(self, tree):
        return lax.with_sharding_constraint(tree, NamedSharding(self.mesh, P()))


def evaluate(
    config: Config,
    model: Any,
    split: str = "test",
    *,
    max_steps: int = 0,
    rtol: float = 0.0,
    unroll: int = 0,
) -> dict[str, float]:
    """Scores of a model, as a run writes them.

    All budgets, and all tolerances, share one compilation.

    Args:
      config: of the run: task, data, mesh, and how to evaluate.
      model: of a run, from `load`, or another one for the task, in evaluation.
      split: of the data: `"test"` or `"valid"`.
      max_steps: the budget of a solve. 0: that of `config.evaluation`, or else the model's.
      rtol: the tolerance of a solve. 0: likewise.
      unroll: applications of the layer in place of a solve. 0: solves.

    Returns:
      Means over the data: the task's scores, of solves `forward_steps`, `forward_residual` and `forward_converged`,
      and `radius` where `config.evaluation` asks for it.

    Raises:
      ValueError: there are no such data; `max_steps`, `rtol` or `unroll` below 0.

    Example:
      >>> from experiments import configs
      >>> from jaxdeq import training
      >>> def stopped_early():  # after python -m experiments.main fashion_mdeq
      ...     config = configs.fashion_mdeq()
      ...     model = training.load(config)
      ...     return [training.evaluate(config, model, max_steps=n)["accuracy"] for n in (3, 4, 5)]
    """
    check.count("max_steps", max_steps, least=0)
    check.count("unroll", unroll, least=0)
    check.nonnegative("rtol", rtol)
    mesh, rows = config.mesh.make(), config.evaluation.batch or config.batch
    graphdef, *arrays = _state.split(model)
    fixed = _Fixed(config.task, graphdef, mesh)
    limits = _limits(config, max_steps, rtol)
    parts: list[Any] = []
    radius = {}
    with jax.set_mesh(mesh):
        begin = carry = _begin(fixed, rows, arrays)
        for batch in config.data.evaluate(split, rows):
            batch = put_rows(batch, mesh)
            if not parts and config.evaluation.radius and config.implicit:
                key = jax.random.key(config.seed)
                radius = {"radius": float(_radius(fixed, arrays, batch, begin, limits, key))}
            part, carry = _sums(fixed, unroll, arrays, batch, carry, limits)
            parts.append(part)
    if not parts:
        raise ValueError(f"there must be {split} data to try the model on; got none from {config.data}")
    return _means(config.task, jax.device_get(parts)) | radius


def _limits(config, max_steps, rtol):
    """Budget and tolerance of a solve, for the compiled programs."""
    if config.implicit:
        max_steps = max_steps or config.evaluation.max_steps or config.model.max_steps
        rtol = rtol or config.evaluation.rtol
    limits = {"max_steps": jnp.int32(max_steps), "rtol": jnp.float32(rtol)}
    return {name: limit for name, limit in limits.items() if limit}


@partial(jax.jit, static_argnums=(0, 1))
def _begin(fixed, rows, arrays):
    """What goes from batch to batch, before the first."""
    return fixed.in_rows(fixed.task.carry(fixed.model(arrays), rows))


@partial(jax.jit, static_argnums=(0, 1))
def _sums(fixed, unroll, arrays, batch, carry, limits):
    """Sums over a batch, and the carry for the next one."""
    out = fixed.task.apply(fixed.model(arrays), batch, carry, **({"unroll": unroll} if unroll else limits))
    sums = dict(out.sums)
    if out.output.stats is not None:
        rows = batch["weights"].reshape(len(batch["weights"]), -1).max(axis=1)
        sums |= {name: jnp.sum(rows * x) for name, x in by_row(out.output.stats, rows).items()}
    return fixed.whole(sums), fixed.in_rows(out.carry)


@partial(jax.jit, static_argnums=0)
def _radius(fixed, arrays, batch, carry, limits, key):
    """The mean of the spectral radii at the equilibria of a batch."""
    model = fixed.model(arrays)
    z = fixed.task.apply(model, batch, carry, **limits).output.z
    return fixed.whole(jnp.mean(fixed.task.spectral_radius(model, batch, carry, z, key)))


def _means(task: Task, parts: list[Any]) -> dict[str, float]:
    """Scores over the data, from sums over its batches."""
    total = lambda name: np.asarray(np.sum([part[name] for part in parts], axis=0, dtype=np.float64))
    totals = {name: total(name) for name in parts[0]}
    solves = {name: totals.pop(name) for name in list(totals) if name.startswith("forward_")}
    rows = solves.pop("forward_rows", 1.0)
    return task.scores(totals) | {name: float(x / rows) for name, x in solves.items()}
