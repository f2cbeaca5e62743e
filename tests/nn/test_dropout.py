"""One mask for all positions; one mask a solve, for any module that draws random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeq.nn import DEQ, VariationalDropout


@pytest.mark.parametrize("shape", [(50, 40), (50, 5, 40), (50, 3, 2, 40)])
def test_one_mask_for_all_positions(shape):
    y = VariationalDropout(0.25, rngs=nnx.Rngs(0))(jnp.ones(shape))
    first = y.reshape(50, -1, 40)[:, :1]
    np.testing.assert_array_equal(y.reshape(50, -1, 40), jnp.broadcast_to(first, y.reshape(50, -1, 40).shape))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    np.testing.assert_allclose(jnp.mean(y == 0), 0.25, atol=0.03)


def test_other_axes_can_share():
    y = VariationalDropout(0.5, broadcast_dims=[0], rngs=nnx.Rngs(0))(jnp.ones((4, 5, 6)))
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:1], y.shape))
    assert jnp.unique(y[0], axis=0).shape[0] > 1
    nothing = VariationalDropout(0.5, broadcast_dims=(), rngs=nnx.Rngs(0))(jnp.ones((4, 5, 6)))
    assert jnp.unique(nothing[0], axis=0).shape[0] > 1


def test_it_can_be_switched_off():
    x = jnp.ones((3, 4))
    layer = VariationalDropout(0.5, rngs=nnx.Rngs(0))
    assert (layer(x) == 0).any()
    layer.eval()
    np.testing.assert_array_equal(layer(x), x)
    assert (layer(x, deterministic=False) == 0).any()
    np.testing.assert_array_equal(VariationalDropout(0.0)(x), x)
    np.testing.assert_array_equal(VariationalDropout(1.0)(x), 0 * x)


@pytest.mark.parametrize("dropout", [VariationalDropout, nnx.Dropout])
def test_one_mask_a_solve(dropout):
    """The mask can be read off the equilibrium `z = mask * (x + z / 4) / 2`."""

    class Cell(nnx.Module):
        def __init__(self, rngs):
            self.dropout = dropout(0.5, rngs=rngs)

        def __call__(self, z, x):
            return 0.5 * self.dropout(0.25 * z + x)

    deq = DEQ(Cell(nnx.Rngs(0)), rtol=1e-6)
    x = jnp.ones((3, 4, 5))
    solutions = [deq(x) for _ in range(2)]
    for z, stats, _ in solutions:
        assert stats.converged
        np.testing.assert_allclose(np.unique(np.round(z, 4)), [0, 1.3333], atol=1e-3)
    assert ((solutions[0].z == 0) != (solutions[1].z == 0)).any()


def test_the_penalty_has_the_mask_of_the_solve():
    class Cell(nnx.Module):
        def __init__(self, rngs):
            self.dropout = VariationalDropout(0.5, rngs=rngs)

        def __call__(self, z, x):
            return self.dropout(0.25 * z + x)

    # J = mask / 2, so that its squared norm, over all entries, is a quarter of the share kept.
    z, _, penalty = DEQ(Cell(nnx.Rngs(0)))(jnp.ones((20, 30)), key=jax.random.key(1), probes=20)
    np.testing.assert_allclose(penalty, 0.25 * jnp.mean(z != 0), rtol=0.05)


def test_what_it_refuses(unchecked):
    with pytest.raises(ValueError, match=r"rate must be a number in \[0, 1\]; got 1.5"):
        VariationalDropout(1.5)
