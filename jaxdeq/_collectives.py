"""Refuses maps that communicate with devices or lanes which stop at other steps."""

from collections.abc import Iterator
from typing import Any

import jax

from jaxdeq._closure import varying

# They have the name of an axis too, but wait for nobody.
LOCAL = {"axis_index", "pvary", "pcast"}


def check_alone(f: Any, z: Any, batch: int) -> None:
    """Checks that each device and each lane of a `vmap` can go through the loop by itself.

    Raises:
      ValueError: `f`, a `Hoisted` map, communicates over a mesh axis of `shard_map` over which `z` varies, where
        devices that go on would wait for ever for those that have stopped; or over the axis of a `vmap`, of which
        the loop makes a batch of its own.
    """
    names = set(axes(f.jaxpr))
    if not names:
        return
    manual = set(jax.sharding.get_abstract_mesh().manual_axes)
    spread = names.intersection(axis for x in jax.tree.leaves(z) for axis in varying(jax.typeof(x)))
    if spread:
        raise ValueError(
            f"f communicates over the mesh axes {sorted(spread)}, over which z varies: each device would stop after "
            "its own number of steps, and others wait for it. Solve under jit with sharded arrays in place of "
            "shard_map, or keep z the same on all devices of these axes"
        )
    if not batch and names - manual:
        raise ValueError(
            f"f communicates over {sorted(names - manual)}, which is an axis of a vmap: solve the whole "
            "batch at once, with batched=True"
        )


def axes(jaxpr: Any) -> Iterator[str]:
    """The names of the axes that a jaxpr communicates over, with those inside it."""
    for eqn in jaxpr.eqns:
        for name, value in eqn.params.items():
            if name in ("axes", "axis_name") and eqn.primitive.name not in LOCAL:
                names = value if isinstance(value, (tuple, list)) else [value]
                yield from (axis for axis in names if isinstance(axis, str))
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from axes(inner)
