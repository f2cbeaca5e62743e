"""How and on what something ran."""

import importlib.metadata
import os
import platform
import shlex
import sys

import jax


def where() -> dict[str, str | int]:
    """The command, versions and hardware of this process."""
    versions = {name: importlib.metadata.version(name) for name in ("jaxdeq", "jax", "flax", "optax")}
    device = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    command = shlex.join(["python", "-m", "experiments.claims", *sys.argv[1:]])
    return {
        "command": command,
        "Python": platform.python_version(),
        **versions,
        "device": device,
        "machine": platform.machine(),
        "cores": os.cpu_count() or 0,
    }
