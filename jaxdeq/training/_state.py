"""All that changes while a model is trained, and how it begins."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdeq.training._config import Config
from jaxdeq.training._mesh import place, place_rows
from jaxdeq.training._plan import argument


class State(NamedTuple):
    """Everything that a step changes.

    Random keys are not here: they follow from the seed and the number of the step.

    Attributes:
      step: steps made.
      params: the parameters.
      rest: other arrays of the model, such as statistics of BatchNorm.
      moments: the optimiser's.
      ema: averages of parameters and rest; `()` if not asked for.
      carry: from batch to batch, by rows: a language model's memory; `()` if there is none.
    """

    step: jax.Array
    params: Any
    rest: Any
    moments: Any
    ema: Any
    carry: Any


class Structure(NamedTuple):
    """What does not change: a model is `nnx.merge(graphdef, params, random, rest)`."""

    graphdef: nnx.GraphDef
    random: Any  # the random streams, or their shapes


class Parts(NamedTuple):
    """A model: `nnx.merge(*parts)`."""

    graphdef: Any
    params: Any
    random: Any
    rest: Any


def split(model: nnx.Module) -> Parts:
    """Structure, parameters, random streams, and all other arrays."""
    parts: Any = nnx.split(model, nnx.Param, nnx.RngState, ...)
    return Parts(*parts)


def structure(config: Config) -> Structure:
    """The model without its arrays."""
    graphdefs = []  # static: noted while the arrays are traced

    def trace():
        parts = split(config.task.build(config.model, nnx.Rngs(0)))
        graphdefs.append(parts.graphdef)
        return parts.random

    random = jax.eval_shape(trace)
    return Structure(graphdefs[0], random)


def draw(config: Config, seed: Any) -> State:
    """The state before the first step. `seed` is the config's, as an argument of a program."""
    model = config.task.build(config.model, nnx.Rngs(jax.random.key(seed)))
    carry = config.task.carry(model, config.batch)
    parts = split(model)
    moments = config.optimizer.directions().init(parts.params)
    ema = jax.tree.map(jnp.copy, (parts.params, parts.rest)) if config.ema else ()
    return State(jnp.int32(0), parts.params, parts.rest, moments, ema, carry)


def plan_state(config: Config, mesh: jax.sharding.Mesh) -> State:
    """Shapes and shardings of the state, without any array."""
    shapes = jax.eval_shape(partial(draw, config), argument(config.seed))
    shardings = place(shapes._replace(carry=()), mesh)._replace(carry=place_rows(shapes.carry, mesh))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def create(config: Config, mesh: jax.sharding.Mesh) -> State:
    """The state before the first step, made in parts where the mesh has it in parts."""
    shardings = jax.tree.map(lambda x: x.sharding, plan_state(config, mesh))
    return jax.jit(partial(draw, config), out_shardings=shardings)(argument(config.seed))


def seeded(structure: Structure, seed: int, mesh: jax.sharding.Mesh) -> Structure:
    """With random streams in place of their shapes."""
    begin = lambda seed: reseed(structure.random, jax.random.key(seed))
    random = jax.jit(begin, out_shardings=NamedSharding(mesh, P()))(argument(seed))
    return structure._replace(random=random)


def model_of(seeded: Structure, state: State) -> Any:
    """The model of a state, for evaluation: with averaged weights, where there are some."""
    params, rest = state.ema or (state.params, state.rest)
    model: Any = nnx.merge(seeded.graphdef, params, seeded.random, rest, copy=True)
    model.eval()
    return model


def reseed(random: Any, key: jax.Array) -> Any:
    """The random streams of a model, begun anew from one key."""
    leaves, treedef = jax.tree.flatten(random)
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    fresh = [jax.random.fold_in(key, i) if is_key(x) else jnp.zeros(x.shape, x.dtype) for i, x in enumerate(leaves)]
    return treedef.unflatten(fresh)


def averaged(ema: Any, now: Any, step: jax.Array, most: float) -> Any:
    """Moving averages one step on. They decay by `most`, by less in the first steps; integers are taken over."""
    t = step.astype(jnp.float32)
    decay = jnp.minimum(jnp.float32(most), (1 + t) / (10 + t))
    wide = lambda x: x.astype(jnp.float32)
    mix = lambda old, new: (decay * wide(old) + (1 - decay) * wide(new)).astype(new.dtype)
    is_number = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda old, new: mix(old, new) if is_number(new) else new, ema, now)
