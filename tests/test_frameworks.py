"""`fixed_point` takes the cells of Flax NNX, Flax Linen and Equinox as they are."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdeq

X = jax.random.normal(jax.random.key(0), (4, 6))


def linen_cell():
    cell = linen.Dense(6, kernel_init=linen.initializers.normal(0.1))
    variables = cell.init(jax.random.key(1), X)
    return lambda variables, z: cell.apply(variables, z), variables


def equinox_cell():
    cell = eqx.nn.Linear(6, 6, key=jax.random.key(1))
    params, static = eqx.partition(cell, eqx.is_array)
    return lambda params, z: jax.vmap(eqx.combine(params, static))(0.3 * z), params


def nnx_cell():
    graphdef, params = nnx.split(nnx.Linear(6, 6, rngs=nnx.Rngs(0)))
    return lambda params, z: nnx.merge(graphdef, params)(0.3 * z), params


@pytest.mark.parametrize("make", [linen_cell, equinox_cell, nnx_cell])
def test_gradients_of_a_closed_over_cell(make):
    apply, params = make()

    def equilibrium(params):
        f = lambda z: jnp.tanh(apply(params, z) + X)  # closes over the cell and its parameters
        return jaxdeq.fixed_point(f, jnp.zeros_like(X), rtol=1e-6)

    def unrolled(params):
        z = jnp.zeros_like(X)
        for _ in range(25):
            z = jnp.tanh(apply(params, z) + X)
        return z

    got = jax.jit(jax.value_and_grad(lambda p: jnp.sum(equilibrium(p).z ** 2)))(params)
    want = jax.jit(jax.value_and_grad(lambda p: jnp.sum(unrolled(p) ** 2)))(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_equinox_module_is_an_argument_too():
    cell = eqx.nn.Linear(6, 6, key=jax.random.key(1))
    solve = lambda cell: jaxdeq.fixed_point(lambda z, c: jnp.tanh(0.3 * jax.vmap(c)(z) + X), 0 * X, cell).z
    grads = eqx.filter_grad(lambda cell: solve(cell).sum())(cell)
    assert jnp.abs(grads.weight).max() > 0


def test_a_live_nnx_module_is_closed_over():
    cell = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

    @nnx.jit
    def gradient(cell):
        loss = lambda cell: jaxdeq.fixed_point(lambda z: jnp.tanh(0.3 * cell(z) + X), 0 * X).z.sum()
        return nnx.grad(loss)(cell)

    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(gradient(cell)))


def test_linen_dropout_keeps_the_mask_of_its_key():
    cell = linen.Dropout(0.5, deterministic=False)
    f = lambda z: 0.5 * cell.apply({}, 0.5 * z + 1, rngs={"dropout": jax.random.key(3)})
    z, stats = jaxdeq.fixed_point(f, 0 * X, rtol=1e-6)
    assert stats.converged
    np.testing.assert_allclose(np.unique(np.round(z, 3)), [0, 2], atol=1e-2)
