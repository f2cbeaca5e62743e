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

    # A loop: unrolled, each turn is several kernels to compile. (With 10 unknowns, in Anderson's gradient on a tanh
    # layer, 1.7 s in place of 1.0; steps take as long.)
    return lax.fori_loop(0, n, turn, jnp.concatenate([matrix, rhs[:, None]], axis=1))[:, -1]
