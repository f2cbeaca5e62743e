"""Names for the axes of kernels, by which rules lay them out on a mesh.

    with flax.core.spmd.logical_axis_rules(((INNER, "model"), (CHANNELS, "data"))):
        spread = nnx.get_named_sharding(params, mesh)
    with flax.core.spmd.logical_axis_rules(((INNER, "model"), (CHANNELS, None))):
        whole = nnx.get_named_sharding(params, mesh)

Parameters rest as `spread`; a training step first asks for `whole`, by `with_sharding_constraint`,
or `reshard` under Explicit axes. Each kernel is then gathered once a step, not once an application;
without that, XLA leaves the kernels where they are and gathers the batch. Equilibria need no names:
they lie as the inputs do.
"""

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

INNER = "inner"  # the widened inside of a layer: split between devices, one sum on the way out
CHANNELS = "channels"  # an axis of every other kernel, and the other one of these: FSDP


def named(*axes: str | None) -> dict[str, Any]:
    """Metadata of a parameter whose axes have these names.

    Not eager: without rules they mean nothing, and Flax would refuse to make the parameter.
    """
    return {"out_sharding": axes, "eager_sharding": False}


def whole(x: jax.Array, axis: int) -> jax.Array:
    """Gathers an axis that may be spread; the others stay as they lie. With Auto and with Explicit mesh axes."""
    lies = jax.typeof(x).sharding
    if lies.spec[axis] is not None:
        kept = [None if i == axis else name for i, name in enumerate(lies.spec)]
        x = jax.sharding.reshard(x, NamedSharding(lies.mesh, P(*kept)))
    if AxisType.Auto in lies.mesh.axis_types:
        free = [None if i == axis else P.UNCONSTRAINED for i in range(x.ndim)]
        x = jax.lax.with_sharding_constraint(x, NamedSharding(lies.mesh, P(*free)))
    return x
