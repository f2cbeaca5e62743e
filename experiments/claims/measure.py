"""What trained models' solves take, and how much memory their training takes."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdeq import BackwardStats, Stats, Status, training


class Solved(NamedTuple):
    """Means over problems.

    Attributes:
      forward: evaluations to the tolerance, or all that were allowed.
      forward_share: of problems that got there.
      backward: products with the Jacobian.
      backward_share: likewise.
    """

    forward: float
    forward_share: float
    backward: float
    backward_share: float


def solved(config: training.Config, model: Any, rtol: float, max_steps: int) -> Solved:
    """Solves on the validation data, forward and backward from its loss.

    Args:
      config: of a run; the data are those of its evaluation.
      model: of that run, in evaluation. Its adjoint says with which tolerance and budget to solve backward.
      rtol: of the solves forward.
      max_steps: of the solves forward.
    """
    graphdef, state = nnx.split(model)
    rows = config.evaluation.batch or config.batch
    carry, found = config.task.carry(model, rows), []
    for batch in config.data.evaluate("valid", rows):
        limits = jnp.float32(rtol), jnp.int32(max_steps)
        one, carry = solve((config.task, graphdef), state, batch, carry, *limits)
        found.append(one)
    return Solved(*(float(number) for number in np.mean(jax.device_get(found), axis=0)))


@partial(jax.jit, static_argnums=0)
def solve(static, state, batch, carry, rtol, max_steps):
    task, graphdef = static
    model = nnx.merge(graphdef, state, copy=True)
    rows = len(jax.tree.leaves(batch)[0])

    def loss(tap):
        out = task.apply(model, batch, carry, rtol=rtol, max_steps=max_steps, tap=tap)
        return out.loss, (out.output.stats, out.carry)

    backward, (forward, carry) = jax.grad(loss, has_aux=True)(BackwardStats.empty(rows))
    return (*means(forward), *means(backward)), carry


def means(stats: Stats | BackwardStats) -> tuple[jax.Array, jax.Array]:
    """Of the steps, and of whether the tolerance was reached."""
    number = lambda x: jnp.mean(x.astype(jnp.float32))
    return number(stats.steps), number(stats.status == Status.CONVERGED)


def temporaries(config: training.Config, penalised: bool = False, unroll: int = 0) -> int:
    """Bytes that the gradient of a training step needs beside parameters and batch; compiled, not run.

    Args:
      config: of the run.
      penalised: whether the step adds the penalty.
      unroll: applications of the layer in place of a solve. 0: solves.
    """
    build = lambda: config.task.build(config.model, nnx.Rngs(0))
    model = nnx.eval_shape(build)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    carry = jax.eval_shape(lambda: config.task.carry(build(), config.batch))
    batch = next(iter(config.data.train(config.batch, 0)))
    options = {"key": jax.random.key(0)} if penalised else {}
    options |= {"unroll": unroll} if unroll else {}

    def loss(params, rest, batch, carry):
        out = config.task.apply(nnx.merge(graphdef, params, rest, copy=True), batch, carry, **options)
        return out.loss + (out.output.penalty if penalised else 0)

    compiled = jax.jit(jax.grad(loss)).lower(params, rest, batch, carry).compile()
    return compiled.memory_analysis().temp_size_in_bytes
