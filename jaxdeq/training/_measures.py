"""What a step tells of its solves."""

import jax.numpy as jnp
from jaxtyping import Array

from jaxdeq import BackwardStats, Stats, Status

Measures = dict[str, Array]


def summary(name: str, stats: Stats | BackwardStats) -> Measures:
    """Means over a batch, and the steps of its slowest member: how long the batch took."""
    steps, status = (x.astype(jnp.float32) for x in (stats.steps, stats.status))
    return {
        f"{name}_steps": jnp.mean(steps),
        f"{name}_longest": jnp.max(steps),
        f"{name}_residual": jnp.mean(stats.residual),
        f"{name}_converged": jnp.mean((status == Status.CONVERGED).astype(jnp.float32)),
        f"{name}_failed": jnp.mean((status == Status.NONFINITE).astype(jnp.float32)),
    }


def by_row(stats: Stats, like: Array) -> Measures:
    """Steps, residual and convergence of each row."""
    spread = lambda x: jnp.broadcast_to(x.astype(jnp.float32), like.shape)
    values = {"rows": jnp.ones_like(like), "steps": stats.steps, "residual": stats.residual}
    return {f"forward_{name}": spread(x) for name, x in {**values, "converged": stats.converged}.items()}
