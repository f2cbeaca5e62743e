"""Small cells, and what the tests look for in the compiled programs."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdeq.nn import SpectralNorm, VariationalDropout, WeightNorm


class Cell(nnx.Module):
    """`tanh(W z + U x)`, contractive."""

    def __init__(self, width, *, rngs):
        self.inner = nnx.Linear(width, width, rngs=rngs, kernel_init=nnx.initializers.normal(0.2 / width**0.5))
        self.outer = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, z, x):
        return jnp.tanh(self.inner(z) + self.outer(x))


class Busy(nnx.Module):
    """Everything that has to be done once a solve."""

    def __init__(self, width, *, rngs):
        self.weight = WeightNorm(nnx.Linear(width, width, rngs=rngs))
        self.spectral = SpectralNorm(nnx.Linear(width, width, rngs=rngs), norm=0.2, rngs=rngs)
        self.dropout = VariationalDropout(0.5, rngs=rngs)
        self.batch_norm = nnx.BatchNorm(width, rngs=rngs)

    def __call__(self, z, x):
        return jnp.tanh(self.dropout(0.1 * self.weight(z) + self.spectral(z)) + self.batch_norm(0.1 * z + x))


def inputs(batch, width, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, width))


def functional(model, call):
    """`call(model)` as a function of the parameters, in both modes of Flax; and the parameters."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return lambda params: call(nnx.merge(graphdef, params, rest, copy=True)), params


def equations(jaxpr, inside=None):
    """All operations, nested ones too; with `inside`, only those within such an operation."""
    found = []
    for eqn in jaxpr.eqns:
        found += [] if inside else [eqn]
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            value = getattr(value, "jaxpr", value)
            if hasattr(value, "eqns"):
                found += equations(value, None if eqn.primitive.name == inside else inside)
    return found


def names(eqns):
    return [eqn.primitive.name for eqn in eqns]
