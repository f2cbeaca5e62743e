"""The solvers' small linear systems, against NumPy."""

import jax.numpy as jnp
import numpy as np

from jaxdeq._eliminate import eliminate


def test_pivots():
    """An unknown whose pivot is too small is 0, and the others are solved without it."""
    matrix = np.array([[2.0, 1.0, 0.5], [4.0, 2.0, 1.0], [1.0, 3.0, 4.0]])  # the second row is twice the first
    x = eliminate(jnp.asarray(matrix, jnp.float32), jnp.array([1.0, 5.0, 2.0]), 1e-6)
    assert x[1] == 0
    np.testing.assert_allclose(matrix[[0, 2]] @ x, [1.0, 2.0], rtol=1e-5)
    matrix = np.random.default_rng(11).standard_normal((5, 5)) + 4 * np.eye(5)
    both = np.stack([matrix, np.zeros((5, 5))], axis=-1)
    x = eliminate(jnp.asarray(both, jnp.float32), jnp.ones((5, 2)), 1e-6)
    np.testing.assert_allclose(matrix @ x[:, 0], 1, rtol=1e-4)
    np.testing.assert_array_equal(x[:, 1], 0)
