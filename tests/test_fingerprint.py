"""When two maps are the same, so that what was compiled for one serves the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

from jaxdeq import fixed_point
from jaxdeq._closure import Hoisted, trace_map
from jaxdeq._fingerprint import fingerprint

W = 0.2 * jax.random.normal(jax.random.key(0), (3, 3))
X = jnp.array([1.0, -2.0, 0.5])
Z = jnp.array([0.3, 0.1, -0.2])


def traced(f, z=Z):
    return trace_map(f, z, ())[1]


def same(f, g, z=Z):
    f, g = traced(f, z), traced(g, z)
    assert (f == g) <= (hash(f) == hash(g))
    return f == g


def test_equal_maps():
    c, d = jnp.float32(1), jnp.float32(2)
    assert same(lambda z: z * c + 1, lambda y: y * d + 1)
    assert same(jnp.sin, lambda z: jnp.sin(z))
    assert same(lambda z: jax.nn.relu(z) + X, lambda z: jax.nn.relu(z) + Z)
    assert same(*(lambda z: jax.lax.cond(z[0] > 0, jnp.sin, jnp.cos, z) for _ in range(2)))
    assert same(*(lambda z: jax.lax.scan(lambda c, _: (c / 2, None), z, length=3)[0] for _ in range(2)))


ONE = jnp.ones(1)


def outer(c):
    return jax.jit(lambda z: z + c)


@pytest.mark.parametrize(
    ("f", "g"),
    [
        (lambda z: z + 1, lambda z: z + 2),
        (lambda z: z + 0.1, lambda z: z + (0.1 + 1e-8)),
        (lambda z: z - W[0], lambda z: W[0] - z),
        (lambda z: z * 1e-30, lambda z: z * 2e-30),
        (lambda z: jnp.concatenate([z[:1], z[1:]]), lambda z: jnp.concatenate([z[:2], z[2:]])),
        (lambda z: jax.lax.scan(lambda c, _: (c / 2, None), z, length=3)[0], lambda z: z / 8),
        (
            lambda z: jax.lax.scan(lambda c, _: (c / 2, None), z, length=3)[0],
            lambda z: jax.lax.scan(lambda c, _: (c / 2, None), z, length=4)[0],
        ),
        (lambda z: jax.lax.cond(z[0] > 0, jnp.sin, jnp.cos, z), lambda z: jax.lax.cond(z[0] > 0, jnp.cos, jnp.sin, z)),
        (lambda z: jnp.sum(z, keepdims=True) + 0 * z, lambda z: jnp.max(z, keepdims=True) + 0 * z),
        (lambda z: z + X, lambda z: z + ONE),
        (lambda z: z + X, lambda z: z + np.float32(1)),
        (lambda z: jax.lax.dot(W, z), lambda z: jax.lax.dot(W, z, precision="highest")),
    ],
)
def test_unequal_maps(f, g):
    assert not same(f, g)


def test_constants_inside_a_compiled_function():
    """Both are `z + c` with another array `c` inside: never taken for each other."""
    f, g = outer(jnp.ones(3)), outer(jnp.full(3, 5.0))
    a, b = (fixed_point(lambda z, f=f: f(z / 2), Z).z for f in (f, g))
    np.testing.assert_allclose(a, 2, rtol=1e-3)
    np.testing.assert_allclose(b, 10, rtol=1e-3)


def test_literals_differ_in_any_number():
    """JAX may put whole arrays into a program as literals, of which text shows only some numbers."""

    def program(number):
        x = np.zeros(2000)
        x[1000] = number
        jaxpr = jax.make_jaxpr(lambda z: z + 1.0)(Z).jaxpr
        (eqn,) = jaxpr.eqns
        literal = Literal(x, jax.typeof(jnp.asarray(x)))
        return fingerprint(jaxpr.replace(eqns=[eqn.replace(invars=[eqn.invars[0], literal])]))

    assert program(0.0) == program(0.0)
    assert program(0.0) != program(1.0)


def test_the_structure_is_part_of_the_map():
    halve = lambda z: jax.tree.map(lambda x: x / 2, z)
    assert traced(halve, [Z]) != traced(halve, (Z,))
    assert traced(halve, [Z]) == traced(halve, [Z])


def test_without_a_key_a_map_equals_only_itself():
    hoisted = traced(jnp.sin)
    bare = Hoisted(hoisted.jaxpr, hoisted.tree)
    assert bare == bare
    assert bare != Hoisted(hoisted.jaxpr, hoisted.tree)
    assert bare != hoisted
    assert hash(bare) == hash(bare)
