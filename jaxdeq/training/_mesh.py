"""Where arrays lie: a mesh of devices, and rules from the names of axes to its axes."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdeq import _checks as check
from jaxdeq.models._axes import CHANNELS, INNER

ROWS = P(("data", "fsdp"))  # of a batch, and of what belongs to its rows
AT_REST = {INNER: "model", CHANNELS: "fsdp"}  # parameters between steps, as all that is shaped like them
IN_USE = {INNER: "model"}  # in a step: gathered once, not once an application of the layer


@dataclass(frozen=True)
class Mesh:
    """How devices share the work; their product is the number of devices.

    One of the sizes may be -1: all devices that are left. With less than all devices, those
    first in `jax.devices()` are used, in a run of one process.

    Attributes:
      data: parts of the batch, with the parameters whole in each.
      fsdp: parts of the batch, with the parameters and the optimiser's state in parts too: less
        memory, for one gather a step of each kernel.
      model: parts of the layers' insides and of attention's heads, on the devices of one process.

    Raises:
      ValueError: a size below 1 that is not the only -1.

    Example:
      >>> from jaxdeq.training import Mesh
      >>> Mesh(data=-1).make().axis_names
      ('data', 'fsdp', 'model')
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.model)
        for name in ("data", "fsdp", "model"):
            check.count(name, getattr(self, name), least=-1)
        if 0 in sizes or sizes.count(-1) > 1:
            raise ValueError(f"sizes of the mesh must be at least 1, one of them may be -1 (the rest); got {sizes}")

    def make(self) -> jax.sharding.Mesh:
        """The mesh over the devices there are.

        Raises:
          ValueError: more devices asked for than there are, a number that the sizes do not divide, or
            less than all in a run of several processes.
        """
        sizes, devices = [self.data, self.fsdp, self.model], jax.devices()
        known = math.prod(size for size in sizes if size > 0)
        if -1 in sizes:
            if len(devices) % known:
                raise ValueError(f"the sizes of {self} must divide the number of devices; got {len(devices)}")
            sizes[sizes.index(-1)] = len(devices) // known
        used = math.prod(sizes)
        if used > len(devices) or (used < len(devices) and jax.process_count() > 1):
            raise ValueError(f"{self} must be of all devices, or of fewer in one process; there are {len(devices)}")
        kinds = (AxisType.Auto,) * 3
        return jax.make_mesh(tuple(sizes), ("data", "fsdp", "model"), axis_types=kinds, devices=devices[:used])


def place(tree: Any, mesh: jax.sharding.Mesh, rules: dict[str, str] = AT_REST) -> Any:
    """The shardings of a tree: by the names of axes where they are variables that have some, else whole.

    Axes that a mesh axis does not divide stay whole.
    """

    def sharding(x):
        if not isinstance(x, nnx.Variable):
            return NamedSharding(mesh, P())
        names = x.get_metadata().get("out_sharding") or ()
        spread = [rules.get(name) for name in names]
        spread = [
            axis if axis and n % mesh.shape[axis] == 0 else None for axis, n in zip(spread, x.shape, strict=False)
        ]
        return x.replace(NamedSharding(mesh, P(*spread)))

    return jax.tree.map(sharding, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def place_rows(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """The shardings of arrays by rows; scalars are whole."""
    return jax.tree.map(lambda x: NamedSharding(mesh, ROWS if x.ndim else P()), tree)


def put_rows(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """A batch on the mesh, from each host's rows of it."""
    sharding = NamedSharding(mesh, ROWS)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def check_rows(name: str, batch: int, accumulate: int, mesh: jax.sharding.Mesh) -> None:
    """Refuses a batch that the mesh cannot share, and a mesh that needs the same rows on several hosts."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    if batch % parts:
        raise ValueError(
            f"{name} must be a multiple of {parts}: of data x fsdp devices ({mesh.shape['data']} x "
            f"{mesh.shape['fsdp']}) and of accumulate ({accumulate}); got {batch}"
        )
    model = mesh.shape["model"]
    hosts = [{device.process_index for device in devices} for devices in mesh.devices.reshape(-1, model)]
    if max(map(len, hosts)) > 1:  # they would read different rows for one place in the batch
        raise ValueError(f"model must be parts of layers on the devices of one process; got {model} over {hosts}")


def cut_rows(tree: Any, count: int, mesh: jax.sharding.Mesh) -> Any:
    """Parts of a batch along a new first axis: rows 0, n, 2n.. and so on, so that each stays on its device."""
    lies = NamedSharding(mesh, P(None, *ROWS))

    def cut(x):
        if not x.ndim:
            return jnp.broadcast_to(x, (count,))
        x = jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)
        return jax.lax.with_sharding_constraint(x, lies)

    return jax.tree.map(cut, tree)


def join_rows(tree: Any) -> Any:
    """The opposite."""
    join = lambda x: x[0] if x.ndim == 1 else jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
    return jax.tree.map(join, tree)
