"""Monotone cells: one equilibrium for any weights, found from anywhere, with the gradient of the equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxdeq
from jaxdeq import solvers
from jaxdeq.nn import DEQ, Monotone
from tests.derivatives import central
from tests.nn.cells import equations, names

X = np.random.default_rng(0).normal(size=(4, 3))
SIZE = 6


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64():
        yield


def make(scale=1.0, seed=0, **arguments):
    """A cell in float64, with weights larger than those it starts from."""
    cell = Monotone(3, SIZE, rngs=nnx.Rngs(seed), **arguments)
    nnx.update(cell, jax.tree.map(lambda x: scale * x.astype(jnp.float64), nnx.state(cell)))
    return cell


def solve(cell, x=X, solver=solvers.Picard(), **arguments):
    deq = DEQ(cell, solver=solver, rtol=1e-12, max_steps=5000)
    u, stats, _ = deq(jnp.asarray(x), **arguments)
    return cell.read(u), stats


def check_equation(cell, z):
    """`z = relu(W z + U x + b)`, in numpy."""
    kernel, bias = np.asarray(cell.inject.kernel[...]), np.asarray(cell.inject.bias[...])
    np.testing.assert_allclose(np.maximum(z @ np.asarray(cell.weight()).T + X @ kernel + bias, 0), z, atol=1e-9)


@settings(max_examples=6, deadline=None)
@given(scale=st.floats(0.1, 4.0), seed=st.integers(0, 99))
def test_one_equilibrium_from_anywhere(scale, seed):
    cell = make(scale, seed)
    values = np.linalg.eigvalsh(np.eye(SIZE) - (cell.weight() + cell.weight().T) / 2)
    assert values.min() > 0.1 - 1e-9
    z, stats = solve(cell)
    assert stats.converged
    check_equation(cell, z)
    far, _ = solve(cell, z0=100 * jax.random.normal(jax.random.key(seed), (4, SIZE), jnp.float64))
    np.testing.assert_allclose(far, z, atol=1e-8)


def test_where_plain_iteration_diverges():
    cell = make(2.0)
    assert np.abs(np.linalg.eigvals(cell.weight())).max() > 2
    plain = lambda z, x: nnx.relu(z @ cell.weight().T + cell.inject(x))
    _, stats = jaxdeq.fixed_point(plain, jnp.zeros((4, SIZE)), X, solver=solvers.Picard(), max_steps=500)
    assert not stats.converged
    for solver in (solvers.Picard(), solvers.Picard(0.5), solvers.Anderson()):
        z, stats = solve(cell, solver=solver)
        assert stats.converged
        check_equation(cell, z)


def test_the_map_contracts():
    cell = make(2.0)
    near, far = jax.random.normal(jax.random.key(0), (2, 4, SIZE), jnp.float64)
    apart = lambda a, b: np.linalg.norm(a - b, axis=1)
    x = jnp.asarray(X)
    assert (apart(cell(near, x), cell(far, x)) < 0.999 * apart(near, far)).all()


def test_gradients():
    """By the weights and by the input, against central differences of the solve."""
    cell = make(1.5)
    graphdef, state = nnx.split(cell)

    def loss(symmetric, skew, x):
        copy = nnx.merge(graphdef, state, copy=True)
        copy.symmetric[...], copy.skew[...] = symmetric, skew
        return jnp.sum(jnp.sin(solve(copy, x)[0]))

    at = [cell.symmetric[...], cell.skew[...], jnp.asarray(X)]
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*at)
    value = jax.jit(loss)
    for i, gradient in enumerate(gradients):
        moved = lambda x, i=i: value(*at[:i], x, *at[i + 1 :])
        np.testing.assert_allclose(gradient, central(moved, at[i]), rtol=1e-5, atol=1e-7)


@pytest.mark.mesh
def test_rows_apart_and_on_devices():
    """Solved one by one under `vmap`, and spread over a mesh, rows have the gradients that they have together."""
    cell = make(1.5)
    graphdef, state = nnx.split(cell)

    def loss(skew, x):
        copy = nnx.merge(graphdef, state, copy=True)
        copy.skew[...] = skew
        return jnp.sum(jnp.sin(solve(copy, x)[0]))

    at, gradient = (cell.skew[...], jnp.asarray(X)), jax.grad(loss)
    together = jax.jit(gradient)(*at)
    one_by_one = jax.jit(jax.vmap(gradient, (None, 0)))(at[0], at[1][:, None])
    np.testing.assert_allclose(one_by_one.sum(0), together, rtol=1e-7, atol=1e-9)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            spread = jax.device_put(at[1], NamedSharding(mesh, P("data")))
            parts = jax.jit(gradient)(jax.device_put(at[0], NamedSharding(mesh, P())), spread)
        np.testing.assert_allclose(jax.device_get(parts), together, rtol=1e-7, atol=1e-9)


def test_the_inverse_is_made_once_a_solve():
    """Outside the loop, so that it costs one step's time or so."""
    cell = make()
    jaxpr = jax.make_jaxpr(lambda x: solve(cell, x)[0])(jnp.asarray(X)).jaxpr
    assert names(equations(jaxpr)).count("lu") == 1
    assert "lu" not in names(equations(jaxpr, inside="while"))
    assert "dot_general" in names(equations(jaxpr, inside="while"))


@pytest.mark.parametrize("name", ["margin", "step"])
def test_refuses_what_is_not_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive number; got 0.0"):
        Monotone(3, 4, rngs=nnx.Rngs(0), **{name: 0.0})
