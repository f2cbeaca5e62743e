"""The contract of `fixed_point`: what it returns, when it stops, which states it takes."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdeq
from jaxdeq import Status, fixed_point, solvers

PICARD = solvers.Picard()
DOTTIE = 0.7390851332151607  # cos x = x


class Pair(NamedTuple):
    x: jax.Array
    y: jax.Array


def linear(n=3, scale=0.5, seed=0):
    """A matrix of spectral norm `scale`, a shift, and the fixed point of `z = a z + b`, in float64."""
    draw = np.random.default_rng(seed)
    a = draw.normal(size=(n, n))
    a *= scale / np.linalg.norm(a, 2)
    b = draw.normal(size=n)
    return a, b, np.linalg.solve(np.eye(n) - a, b)


def f32(*arrays):
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


def test_types_of_the_result():
    solution = fixed_point(jnp.cos, jnp.ones((2, 3)), trace=5)
    assert isinstance(solution, jaxdeq.Solution)
    assert isinstance(solution.stats, jaxdeq.Stats)
    chex.assert_shape(solution.z, (2, 3))
    chex.assert_shape(solution.stats, [(), (), (), (5,)])
    assert [x.dtype for x in solution.stats] == [jnp.int32, jnp.float32, jnp.int32, jnp.float32]
    np.testing.assert_allclose(solution.z, DOTTIE, rtol=1e-4)
    assert all(not x.weak_type for x in jax.tree.leaves(solution))


@pytest.mark.parametrize(("rtol", "atol"), [(1e-2, 0.0), (1e-5, 0.0), (0.0, 1e-3), (1e-4, 1e-4)])
def test_stops_at_the_first_iterate_within_tolerance(rtol, atol):
    a, b, _ = linear()
    z, stats = fixed_point(lambda z, a, b: a @ z + b, jnp.zeros(3), *f32(a, b), solver=PICARD, rtol=rtol, atol=atol)
    w, steps = np.zeros(3), 1
    while np.linalg.norm(a @ w + b - w) > atol + rtol * np.linalg.norm(a @ w + b):
        w, steps = a @ w + b, steps + 1
    assert stats.steps == steps
    assert stats.status == Status.CONVERGED
    np.testing.assert_allclose(z, w, rtol=1e-5)
    residual = np.linalg.norm(a @ w + b - w) / np.linalg.norm(a @ w + b)
    np.testing.assert_allclose(stats.residual, residual, rtol=1e-2, atol=1e-6)


def test_z_is_the_point_at_which_the_residual_was_taken():
    """Not `f` of it: with a loose tolerance the two differ visibly."""
    z, stats = fixed_point(jnp.cos, 1.0, rtol=0.2, solver=PICARD)
    np.testing.assert_allclose(stats.residual, abs(np.cos(z) - z) / abs(np.cos(z)), rtol=1e-5)


def test_limits_are_values_that_compile_nothing_anew():
    a, b, want = linear()
    a, b = f32(a, b)
    traces = []

    @jax.jit
    def solve(rtol, atol, max_steps):
        def f(z):
            traces.append(z)
            return a @ z + b

        return fixed_point(f, jnp.zeros(3), rtol=rtol, atol=atol, max_steps=max_steps, solver=PICARD)

    assert solve(1e-6, 0.0, 5).stats[::2][:2] == (5, Status.MAX_STEPS)
    before = len(traces)
    assert before == 1
    assert solve(1e-6, 0.0, 100).stats.converged
    assert solve(1e-1, 0.0, 100).stats.steps < solve(1e-3, 0.0, 100).stats.steps
    assert solve(0.0, 1e-1, 100).stats.converged
    assert len(traces) == before
    np.testing.assert_allclose(solve(1e-6, 0.0, 100).z, want, rtol=1e-5)


def test_f_is_traced_once():
    traces = []

    def f(z):
        traces.append(z)
        return jnp.cos(z)

    fixed_point(f, 1.0)
    assert len(traces) == 1
    jax.grad(lambda a: fixed_point(lambda z: f(a * z), 1.0).z)(1.0)
    assert len(traces) == 2


@pytest.mark.parametrize("max_steps", [1, 2, 7])
def test_budget_counts_evaluations(max_steps):
    stats = fixed_point(jnp.cos, 1.0, max_steps=max_steps, rtol=1e-6, solver=PICARD).stats
    assert stats.steps == max_steps
    assert stats.status == Status.MAX_STEPS
    assert not stats.converged


def test_budget_of_one_returns_z0():
    z, stats = fixed_point(jnp.cos, 2.0, max_steps=1)
    assert z == 2.0
    np.testing.assert_allclose(stats.residual, abs(np.cos(2) - 2) / abs(np.cos(2)), rtol=1e-6)


def test_trace_holds_the_residual_of_every_step():
    stats = fixed_point(jnp.cos, 1.0, solver=PICARD, rtol=1e-3, trace=30).stats
    want, z = [], 1.0
    for _ in range(int(stats.steps)):
        want.append(abs(np.cos(z) - z) / np.cos(z))
        z = np.cos(z)
    np.testing.assert_allclose(stats.trace[: len(want)], want, rtol=1e-3)
    assert jnp.all(jnp.isnan(stats.trace[len(want) :]))
    assert stats.residual == jnp.nanmin(stats.trace)


def test_trace_shorter_than_the_run_keeps_the_first_steps():
    long, short = (fixed_point(jnp.cos, 1.0, solver=PICARD, trace=n).stats.trace for n in (20, 4))
    np.testing.assert_array_equal(short, long[:4])


def test_status_nonfinite():
    stats = fixed_point(lambda z: z / 0.0, jnp.ones(2)).stats
    assert stats.status == Status.NONFINITE
    assert stats.steps == 1
    assert stats.residual == jnp.inf


TREES = {
    "array": lambda x: x,
    "dict": lambda x: {"b": x, "a": 2 * x},
    "tuple": lambda x: (x, x[:1]),
    "nested": lambda x: {"a": [x, (x[:2].reshape(2, 1),)], "b": {}, "c": None},
    "namedtuple": lambda x: Pair(x, jnp.sum(x)),
    "list of scalars": lambda x: [x[0], x[1]],
    "empty leaf": lambda x: [x, x[:0]],
}


@pytest.mark.parametrize("build", TREES.values(), ids=TREES)
def test_any_tree(build):
    """Every leaf solves `z = z / 2 + c`, whose answer is `2 c`."""
    c = build(jnp.array([1.0, -2.0, 3.0]))
    z, stats = fixed_point(lambda z, c: jax.tree.map(lambda x, y: x / 2 + y, z, c), jax.tree.map(jnp.zeros_like, c), c)
    assert stats.converged
    chex.assert_trees_all_equal_structs(z, c)
    chex.assert_trees_all_close(z, jax.tree.map(lambda x: 2 * x, c), rtol=1e-3)


@pytest.mark.parametrize("z0", [1.0, np.float32(1), np.ones(()), np.ones(2), jnp.array(1.0) * 1, jnp.full(2, 1.0)])
def test_scalars_numpy_and_weak_types(z0):
    z, stats = fixed_point(lambda z: jnp.cos(z) * 1.0, z0)
    assert stats.converged
    assert (z.dtype, z.shape, z.weak_type) == (jnp.float32, jnp.shape(z0), False)
    np.testing.assert_allclose(z, DOTTIE, rtol=1e-4)


def test_f_may_return_a_weak_constant():
    z, stats = fixed_point(lambda z: 0.5, 1.0)
    assert (z, stats.steps, z.weak_type) == (0.5, 2, False)


def test_complex():
    a = np.array([[0.3 + 0.4j, 0.1], [-0.2j, 0.5j]])
    b = np.array([1 + 1j, -2j])
    f = lambda z, a, b: {"z": a @ z["z"] + b}
    z, stats = fixed_point(f, {"z": jnp.zeros(2, jnp.complex64)}, a.astype("F"), b.astype("F"), rtol=1e-6)
    assert stats.converged
    np.testing.assert_allclose(z["z"], np.linalg.solve(np.eye(2) - a, b), rtol=1e-5)


@pytest.mark.parametrize("solver", [PICARD, solvers.Anderson()])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_precisions(dtype, solver):
    a, b, want = linear()
    with jax.enable_x64(dtype == jnp.float64):
        eps = float(jnp.finfo(dtype).eps)
        a, b = (jnp.asarray(x, dtype) for x in (a, b))
        z, stats = fixed_point(lambda z: a @ z + b, jnp.zeros(3, dtype), solver=solver, rtol=0, max_steps=200)
        assert z.dtype == dtype
        assert stats.residual <= 8 * eps
        assert stats.steps < 100
        np.testing.assert_allclose(np.asarray(z, float), want, rtol=0, atol=16 * eps * np.linalg.norm(want))


def test_leaves_of_different_dtypes():
    z0 = {"half": jnp.zeros(2, jnp.bfloat16), "full": jnp.zeros(3), "complex": jnp.zeros((), jnp.complex64)}
    z, stats = fixed_point(lambda z: jax.tree.map(lambda x: x / 2 + jnp.ones((), x.dtype), z), z0)
    assert stats.converged
    chex.assert_trees_all_equal_shapes_and_dtypes(z, z0)
    for leaf in jax.tree.leaves(z):
        np.testing.assert_allclose(leaf.astype(jnp.complex64), 2, rtol=1e-2)


def test_arguments_that_are_no_arrays_are_passed_as_they_are():
    def f(z, n, flag, name, none, scale):
        assert name == "cos"
        assert none is None
        for _ in range(n):
            z = scale * jnp.cos(z) if flag else z
        return z

    np.testing.assert_allclose(fixed_point(f, 1.0, 2, True, "cos", None, 1.0).z, DOTTIE, rtol=1e-4)


def test_bound_methods_and_callable_objects():
    class Cell:
        def __init__(self, shift):
            self.shift = shift

        def step(self, z):
            return z / 2 + jax.nn.relu(self.shift)

        __call__ = step
        __hash__ = None  # as for objects that hold arrays

    cell = Cell(jnp.ones(2))
    for f in (cell, cell.step):
        np.testing.assert_allclose(fixed_point(f, jnp.zeros(2)).z, 2, rtol=1e-3)


def test_hash_and_equality_of_settings():
    assert solvers.Anderson() == solvers.Anderson(5, 1.0)
    assert hash(jaxdeq.adjoints.Implicit(PICARD)) == hash(jaxdeq.adjoints.Implicit(solvers.Picard()))
    for value in (solvers.Anderson(3), solvers.Picard(0.5)):
        assert eval(repr(value), vars(solvers)) == value
