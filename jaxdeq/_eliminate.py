"""Small linear systems, one a problem, as the solvers meet them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def eliminate(matrix: jax.Array, rhs: jax.Array, floor: float) -> jax.Array:
    """Solves `matrix x = rhs` by Gauss-Jordan elimination, each unknown in its turn.

    No pivoting. Where the pivot of an unknown is no larger than `floor`, the unknown is 0, as if it were not
    there. A library call would cost a kernel launch (on a GPU, dozens) for a few dozen multiplications.
    Shapes: matrix `[n, n, *batch]`, rhs `[n, *batch]`.
    """
    n = len(rhs)
    here = jnp.asarray(np.eye(n, dtype=bool).reshape(n, n, *(1,) * (rhs.ndim - 1)))

    def turn(i, table):
        pivot = table[i, i]
        used = jnp.abs(pivot) > floor
        row = jnp.where(used, table[i] / jnp.where(used, pivot, 1), 0)
        return jnp.where(here[:, i, None], row, table - table[:, i, None] * row)

    # A loop: unrolled, each turn is several kernels, which take longer to compile and to launch.
    return lax.fori_loop(0, n, turn, jnp.concatenate([matrix, rhs[:, None]], axis=1))[:, -1]
