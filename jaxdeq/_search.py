"""A line search as a state machine: every trial is one step of the solver that makes it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

DECREASE = 1e-4  # Armijo's constant: the share of the promised decrease that a trial must reach
SHRINK = 0.5  # of the length, after a trial that did not
SHORTEST = 2.0**-4  # a step of this length is taken anyway, if finite: a way out of local minima


class Search(NamedTuple):
    """The next trial's length, 1 being a full step, and the residual's norm, to be lowered."""

    length: jax.Array  # [*batch]
    size: jax.Array  # [*batch]: infinite before the first trial, which is `z0` itself


def judge(search: Search, size: jax.Array) -> tuple[jax.Array, Search]:
    """Whether to move to a trial with a residual of this norm, and the search after that.

    The first trial is taken whatever it gives; later ones, if not finite, never are.
    """
    enough = size <= (1 - DECREASE * search.length) * search.size
    last = jnp.isfinite(size) & (search.length <= SHORTEST)
    accept = enough | last | jnp.isinf(search.size)
    length = jnp.where(accept, 1, SHRINK * search.length)
    return accept, Search(length, jnp.where(accept, size, search.size))
