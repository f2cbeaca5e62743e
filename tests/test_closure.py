"""Hoisting: what `f` closes over becomes an argument, and what does not depend on `z` leaves the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdeq import adjoints, fixed_point, solvers
from jaxdeq._closure import hoist, trace_map
from jaxdeq._split import split

W = 0.2 * jax.random.normal(jax.random.key(0), (3, 3))
X = jnp.array([1.0, -2.0, 0.5])
Z = jnp.array([0.3, 0.1, -0.2])


def traced(f, z=Z, args=()):
    _, hoisted, operands = trace_map(f, z, args)
    return hoisted, operands


def names(jaxpr):
    """The operations of a jaxpr, calls opened."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "eqns"):
                yield from names(value)


def loop_body(f, z=Z):
    """The operations inside the while loop of a solve."""

    def loops(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "while":
                yield eqn.params["body_jaxpr"]
            else:
                for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns")):
                    if hasattr(value, "eqns"):
                        yield from loops(value)

    jaxpr = jax.make_jaxpr(lambda z: fixed_point(f, z, solver=solvers.Picard()))(z)
    (body,) = loops(jaxpr)
    return list(names(body)), list(names(jaxpr))


def injected(z):
    """As in the paper: the injection `W x` is the same at every step."""
    return jnp.tanh(W @ z + W @ X)


def shared(z):
    """The transposed weights are read by the part that is hoisted and by the part that is not."""
    v = W.T
    return jnp.tanh(v @ z + v @ X)


def layered(z):
    """Cheap operations of which one reads the other, both also read inside."""
    a = X.reshape(3, 1)
    b = jnp.broadcast_to(a, (3, 3)).T
    return jnp.tanh(b @ z / 9 + a[:, 0] + jnp.sum(b))


def dropout(z):
    mask = jax.random.bernoulli(jax.random.key(1), 0.5, (3,))
    return jnp.where(mask, jnp.tanh(W @ z + X), 0)


def constant(z):
    return jnp.sin(W @ X)


def operand(z):
    return X


def identity(z):
    return z


@jax.jit
def jitted(z):
    """Jitted functions in a jitted one, one of them called twice, one without an operation."""
    push = jax.jit(lambda w, z: w @ jnp.where(z > 0, z, 0.5 * z))
    return jnp.tanh(push(W, jax.jit(identity)(z)) + push(W, X))


MAPS = [injected, shared, layered, jitted, dropout, constant, operand, identity]


@pytest.mark.parametrize("f", MAPS)
def test_the_map_is_unchanged(f):
    hoisted, operands = traced(f)
    rest, left = split(hoisted, operands)
    np.testing.assert_allclose(hoisted(operands, Z), f(Z), rtol=1e-6)
    np.testing.assert_allclose(rest(left, Z), f(Z), rtol=1e-6)


@pytest.mark.parametrize("f", MAPS[:5])
def test_gradients_are_unchanged(f):
    """With respect to everything closed over, through both parts."""
    hoisted, operands = traced(f)

    def through_split(operands):
        rest, left = split(hoisted, operands)
        return jnp.sum(rest(left, Z) ** 2)

    floats = [i for i, x in enumerate(operands) if jnp.issubdtype(x.dtype, jnp.floating)]

    def grads(fun):
        put = lambda values: [values[floats.index(i)] if i in floats else x for i, x in enumerate(operands)]
        return jax.grad(lambda values: fun(put(values)))([operands[i] for i in floats])

    want = grads(lambda operands: jnp.sum(hoisted(operands, Z) ** 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grads(through_split), want)


def test_what_does_not_depend_on_z_is_evaluated_once():
    body, whole = loop_body(injected)
    assert body.count("dot_general") == 1
    assert whole.count("dot_general") == 2
    body, whole = loop_body(dropout)
    assert "random_bits" in whole
    assert "random_bits" not in body
    body, _ = loop_body(constant)
    assert "dot_general" not in body


def test_jitted_functions_are_looked_into():
    body, whole = loop_body(jitted)
    assert (body.count("dot_general"), whole.count("dot_general")) == (1, 2)
    _, operands = traced(jitted)
    assert {operand.shape for operand in operands} == {(3, 3), (3,)}  # `W` and `X` are no constants of the program


def test_jitted_with_a_sharding_stays_a_call():
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    f = jax.jit(injected, out_shardings=alone)
    hoisted, operands = traced(f)
    assert [eqn.primitive.name for eqn in hoisted.jaxpr.eqns] == ["jit"]
    np.testing.assert_allclose(hoisted(operands, Z), injected(Z), rtol=1e-6)


def test_normalised_weights_are_evaluated_once_and_differentiated():
    """`w / |w|` in every step, as weight normalisation has it; its gradient against a fixed `n`."""

    def solve(w, norm):
        return jnp.sum(fixed_point(lambda z: 0.5 * jnp.tanh(w @ z / norm(w) + X), Z, rtol=1e-6).z)

    size = lambda w: jnp.linalg.norm(w, axis=1)
    have = jax.jit(jax.grad(lambda w: solve(w, size)))(W)
    first, vjp = jax.vjp(lambda w: w / size(w)[:, None], W)
    want = vjp(jax.jit(jax.grad(lambda v: solve(v, lambda w: jnp.ones(()))))(first))[0]
    # Division by a vector of length three acts on rows of `w @ z` as division of the rows of `w`.
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-6)
    body, _ = loop_body(lambda z: 0.5 * jnp.tanh(W @ z / size(W) + X))
    assert "sqrt" not in body[: body.index("tanh")]


def test_what_is_cheap_is_not_stored():
    """A transposed or repeated weight would be a second copy; the loop reads the original."""
    hoisted, operands = traced(lambda z: W.T @ z + jnp.broadcast_to(X[:1], (3,)) + jnp.zeros(3))
    _, left = split(hoisted, operands)
    assert {x.shape for x in left} <= {(3, 3), (3,), (1,)}
    assert any(x is W for x in left)
    narrow = W.astype(jnp.bfloat16)
    _, left = split(*traced(lambda z: narrow.astype(jnp.float32) @ z))
    assert [x.dtype for x in left] == [jnp.bfloat16]
    _, left = split(*traced(lambda z: (W.astype(jnp.bfloat16) @ z.astype(jnp.bfloat16)).astype(jnp.float32)))
    assert [x.dtype for x in left] == [jnp.bfloat16]  # half the size: worth keeping


def test_effects_stay_in_the_loop():
    seen = []

    def f(z):
        jax.debug.callback(lambda x: seen.append(float(x)), jnp.sum(X))
        return z / 2 + 1

    stats = fixed_point(f, 0.0, solver=solvers.Picard()).stats
    jax.block_until_ready(stats)
    jax.effects_barrier()
    assert seen == [-0.5] * int(stats.steps)


def test_operands_are_everything_closed_over():
    index, flag, key = jnp.array([2, 0, 1]), jnp.array(True), jax.random.key(0)

    @jax.jit
    def count(index, flag, key, w):
        f = lambda z, a: jnp.where(flag, a * (w @ z)[index] + jax.random.normal(key, (3,)), z)
        _, operands, _ = hoist(f, Z, (2.0,))
        assert sorted(str(jax.typeof(x).dtype) for x in operands) == ["bool", "float32", "float32", "int32", "key<fry>"]
        return w

    count(index, flag, key, W)


OPERATIONS = {
    "sin": jnp.sin,
    "half": lambda v: v / 2,
    "roll": lambda v: jnp.roll(v, 1),
    "weigh": lambda v: W @ v,
    "weigh back": lambda v: W.T @ v,
    "row": lambda v: jnp.broadcast_to(v[:1], (3,)),
    "relu": jax.nn.relu,
}


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=7
    )
)
def test_random_programs(program):
    """A list of values, each from two before it; starts from `z` and an input that is constant."""

    def f(z):
        values = [z, X]
        for name, i, j in program:
            values.append(OPERATIONS[name](values[i % len(values)]) + 0.5 * values[j % len(values)])
        return values[-1]

    hoisted, operands = traced(f)
    rest, left = split(hoisted, operands)
    np.testing.assert_allclose(rest(left, Z), f(Z), rtol=1e-5, atol=1e-6)
    assert hoisted == traced(f)[0]
    assert hash(hoisted) == hash(traced(f)[0])


def test_inner_solves():
    """An `f` that itself solves: closures within closures, gradients through both."""

    def outer_map(z, a):
        inner = fixed_point(lambda y: 0.3 * jnp.sin(y) + a * z, jnp.zeros(3), rtol=1e-6).z
        return 0.4 * jnp.tanh(inner) + a

    value = lambda a: jnp.sum(fixed_point(outer_map, jnp.zeros(3), a, rtol=1e-6, adjoint=adjoints.Implicit()).z)

    def reference(a):
        z = y = np.zeros(3)
        for _ in range(100):
            for _ in range(60):
                y = 0.3 * np.sin(y) + a * z
            z = 0.4 * np.tanh(y) + a
        return np.sum(z)

    np.testing.assert_allclose(value(0.7), reference(0.7), rtol=1e-5)
    have = jax.jit(jax.grad(value))(0.7)
    np.testing.assert_allclose(have, (reference(0.7 + 1e-5) - reference(0.7 - 1e-5)) / 2e-5, rtol=1e-4)


def test_what_nobody_reads_is_dropped():
    """A vjp asked for `z` alone still computes the parameters' part, until it is split."""
    _, pull = jax.vjp(lambda w, z: jnp.tanh(w @ z), W, Z)
    hoisted, operands = traced(lambda u: pull(u)[1] + X)
    rest, _ = split(hoisted, operands)
    assert sum(name == "dot_general" for name in names(hoisted.jaxpr)) == 2
    assert sum(name == "dot_general" for name in names(rest.jaxpr)) == 1


@pytest.mark.parametrize("dims", [1, 2])
def test_convolution_kernels_leave_the_loop_in_the_layout_of_the_fast_routine(dims):
    kernel = jax.random.normal(jax.random.key(0), (4, 4, *(3,) * dims))
    z = jax.random.normal(jax.random.key(1), (2, 4, *(5,) * dims))

    def conv(z):
        return jax.lax.conv_general_dilated(z, kernel, (1,) * dims, "SAME")

    for f in (conv, lambda u: jax.vjp(conv, z)[1](u)[0]):
        hoisted, operands = traced(f, z)
        rest, values = split(hoisted, operands)
        (eqn,) = (e for e in rest.jaxpr.eqns if e.primitive.name == "conv_general_dilated")
        assert eqn.params["dimension_numbers"].rhs_spec == (dims + 1, dims, *range(dims))
        assert "transpose" not in [e.primitive.name for e in rest.jaxpr.eqns if eqn.invars[1] in e.outvars]
        np.testing.assert_allclose(rest(values, z), f(z), rtol=1e-4, atol=1e-5)
