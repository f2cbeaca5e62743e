"""The equilibrium layer: against `fixed_point` by hand, and what is done once a solve."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdeq
from jaxdeq import adjoints, solvers
from jaxdeq.nn import DEQ
from tests.nn.cells import Busy, Cell, equations, functional, inputs, names

# On one worker: the fixture is made once.
pytestmark = pytest.mark.xdist_group("deq")

KEY = jax.random.key(7)
TIGHT = {"rtol": 1e-6, "max_steps": 60}


@pytest.fixture(params=[True, False], ids=["graph", "tree"])
def mode(request):
    """Both modes of Flax NNX."""
    with nnx.set_graph_mode(request.param):
        yield


@pytest.fixture
def cell():
    return Cell(6, rngs=nnx.Rngs(0))


def test_it_is_fixed_point_around_a_cell(cell):
    x = inputs(3, 6)
    z, stats, penalty = DEQ(cell, **TIGHT)(x)
    want = jaxdeq.fixed_point(lambda z: cell(z, x), jnp.zeros_like(x), **TIGHT)
    chex.assert_trees_all_close((z, stats), tuple(want), rtol=1e-6)
    assert penalty is None
    np.testing.assert_allclose(z, cell(z, x), atol=1e-6)


def test_gradients_are_those_of_the_unrolled_iteration(mode, cell):
    def unrolled(cell, x):
        return jax.lax.fori_loop(0, 40, lambda _, z: cell(z, x), jnp.zeros_like(x))

    def gradients(solve):
        loss, params = functional(cell, lambda cell: lambda x: jnp.sum(jnp.sin(solve(cell, x))))
        return jax.jit(jax.grad(lambda params, x: loss(params)(x), argnums=(0, 1)))(params, inputs(3, 6))

    got = gradients(lambda cell, x: DEQ(cell, **TIGHT)(x).z)
    want = gradients(lambda cell, x: unrolled(cell, x))
    chex.assert_trees_all_close(nnx.to_pure_dict(got[0]), nnx.to_pure_dict(want[0]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-6)


def test_the_penalty_is_that_of_the_same_map(cell):
    x = inputs(3, 6)
    deq = DEQ(cell, **TIGHT)
    for settings in ({}, {"probes": 3, "mode": "vjp"}):
        z, _, penalty = deq(x, key=KEY, **settings)
        want = jaxdeq.jacobian_penalty(lambda z: cell(z, x), z, KEY, **settings)
        np.testing.assert_allclose(penalty, want, rtol=1e-5)


def test_the_penalty_has_the_gradient_of_the_penalty(cell):
    x = inputs(3, 6)
    z = DEQ(cell, **TIGHT)(x).z
    call, params = functional(cell, lambda cell: DEQ(cell, **TIGHT)(x, key=KEY).penalty)
    hand, _ = functional(cell, lambda cell: jaxdeq.jacobian_penalty(cell, z, KEY, x))
    got, want = jax.grad(call)(params), jax.grad(hand)(params)
    chex.assert_trees_all_close(nnx.to_pure_dict(got), nnx.to_pure_dict(want), rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def busy():
    """A training step of a cell with everything in it: value, gradients, and the model after."""
    model = DEQ(Busy(6, rngs=nnx.Rngs(0)), **TIGHT)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def step(params, rest, x, key):
        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            out = model(x, key=key)
            return jnp.sum(out.z**2) + out.penalty, (out, nnx.state(model, nnx.Not(nnx.Param)))

        return jax.value_and_grad(loss, has_aux=True)(params)

    return step, params, rest


def test_gradient_reaches_every_parameter(busy):
    step, params, rest = busy
    (_, (out, _)), grads = jax.jit(step)(params, rest, inputs(4, 6), KEY)
    assert out.stats.converged
    for path, grad in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(grads)):
        assert jnp.isfinite(grad).all(), path
        assert jnp.abs(grad).max() > 1e-6, path


def test_masks_and_weights_are_made_once_a_solve(busy):
    """No random bits and no work on the weights inside any loop, forward or backward."""
    step, params, rest = busy
    jaxpr = jax.make_jaxpr(step)(params, rest, inputs(4, 6), KEY).jaxpr
    everywhere, loops = equations(jaxpr), equations(jaxpr, inside="while")
    drawing = {"random_bits", "threefry2x32", "random_fold_in"}
    assert drawing & set(names(everywhere))
    assert not drawing & set(names(loops))
    assert names(loops).count("tanh") == 1, "one instance of the cell in the forward loop, none in the backward"
    kernels = [eqn for eqn in loops if any(v.aval.shape == (6, 6) for v in eqn.outvars)]
    # Normalising would multiply and divide. The products are the parameters' gradients, which the
    # transposed map computes beside that of z and which the compiler drops.
    assert set(names(kernels)) <= {"transpose", "dot_general"}
    # One mask for the solve, and one, the same, for the call that updates the statistics; probes.
    assert names(everywhere).count("random_bits") <= 3


def test_each_solve_draws_one_mask_anew(mode):
    deq = DEQ(Busy(6, rngs=nnx.Rngs(0)), **TIGHT)
    x = inputs(4, 6)
    solve = nnx.jit(lambda deq, x: deq(x))
    (z1, stats1, _), (z2, stats2, _) = solve(deq, x), solve(deq, x)
    assert stats1.converged, "a mask that changed from step to step has no equilibrium"
    assert stats2.converged
    assert jnp.abs(z1 - z2).max() > 0.1
    assert deq.cell.dropout.rngs.count[...] == 2, "the live stream moves by one a solve"


def test_evaluation_changes_nothing():
    deq = DEQ(Busy(6, rngs=nnx.Rngs(0)), **TIGHT)
    deq(inputs(4, 6))
    deq.eval()
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(deq, nnx.Not(nnx.RngKey))))
    z1, z2 = deq(inputs(4, 6)).z, deq(inputs(4, 6)).z
    np.testing.assert_array_equal(z1, z2)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(deq, nnx.Not(nnx.RngKey))), before)
    np.testing.assert_allclose(z1, deq.cell(z1, inputs(4, 6)), atol=1e-5)
    deq.train()
    deq(inputs(4, 6))
    assert deq.cell.dropout.rngs.count[...] == 2


def test_the_mask_of_a_key_is_the_mask_of_its_gradient():
    """The implicit gradient matches finite differences of the solve with the same random state."""
    deq = DEQ(Busy(4, rngs=nnx.Rngs(3)), rtol=1e-7, max_steps=80)
    graphdef, state = nnx.split(deq)
    loss = jax.jit(lambda x: jnp.sum(jnp.sin(nnx.merge(graphdef, state, copy=True)(x).z)))
    x, v = inputs(3, 4), inputs(3, 4, seed=1)
    slope = (loss(x + 1e-2 * v) - loss(x - 1e-2 * v)) / 2e-2
    np.testing.assert_allclose(jnp.sum(jax.grad(loss)(x) * v), slope, rtol=1e-2)


def test_batch_statistics_come_from_the_equilibrium():
    cell = nnx.BatchNorm(6, momentum=0.9, rngs=nnx.Rngs(0))
    deq = DEQ(Normed(cell), **TIGHT)
    x = inputs(5, 6)
    z = deq(x).z
    np.testing.assert_allclose(cell.mean[...], 0.1 * jnp.mean(0.5 * z + x, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cell.var[...], 0.9 + 0.1 * jnp.var(0.5 * z + x, 0), rtol=1e-4)


class Normed(nnx.Module):
    def __init__(self, norm):
        self.norm = norm

    def __call__(self, z, x):
        return 0.3 * jnp.tanh(self.norm(0.5 * z + x))


def test_a_cell_without_random_numbers_works_in_plain_transformations(cell):
    deq = DEQ(cell)
    x = inputs(3, 6)
    want = deq(x).z
    np.testing.assert_allclose(jax.jit(lambda x: deq(x).z)(x), want, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda x: deq(x).z)(x), want, atol=1e-3)
    assert jnp.isfinite(jax.grad(lambda x: deq(x).z.sum())(x)).all()


def test_where_a_solve_starts(cell):
    x = inputs(3, 6)

    class Two(nnx.Module):
        def initial_state(self, x, scale):
            return {"a": jnp.zeros(x.shape[:1]), "b": jnp.full(4, scale)}

        def __call__(self, z, x, scale):
            return {"a": 0.5 * z["a"] + x.sum(1), "b": 0.1 * z["b"] * scale}

    z = DEQ(Two())(x, 2.0).z
    chex.assert_trees_all_close(z, {"a": 2 * x.sum(1), "b": jnp.zeros(4)}, atol=1e-2)
    exact = DEQ(cell, **TIGHT)(x).z
    assert DEQ(cell)(x, z0=exact).stats.steps == 1


def test_unroll_applies_the_cell(cell):
    x = inputs(3, 6)
    z, stats, penalty = DEQ(cell).unroll(x, steps=3, key=KEY)
    want = cell(cell(cell(jnp.zeros_like(x), x), x), x)
    np.testing.assert_allclose(z, want, rtol=1e-5, atol=1e-6)
    assert stats is None
    np.testing.assert_allclose(penalty, jaxdeq.jacobian_penalty(cell, z, KEY, x), rtol=1e-5)


def test_arguments_that_are_not_arrays(cell):
    def call(z, x, twice, mask):
        assert mask is None
        return jnp.tanh(0.1 * z + x) * (2.0 if twice else 1.0)

    once, twice = (DEQ(call, **TIGHT)(inputs(3, 6), flag, None).z for flag in (False, True))
    assert jnp.abs(once - twice).max() > 0.1


def test_arguments_that_are_not_arrays_beside_batch_statistics():
    class Cell(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(6, rngs=nnx.Rngs(0))

        def __call__(self, z, x, activation):
            return 0.3 * getattr(jnp, activation)(self.norm(z)) + x

    cell = Cell()
    assert DEQ(cell)(inputs(3, 6), "tanh").z.shape == (3, 6)
    assert jnp.any(cell.norm.mean[...] != 0)


def test_settings_reach_the_solve(cell):
    x = inputs(3, 6)
    out = DEQ(cell, solver=solvers.Picard(), rtol=1e-5, atol=0.0, max_steps=9, batched=True, trace=12)(x)
    want = jaxdeq.fixed_point(
        cell, jnp.zeros_like(x), x, solver=solvers.Picard(), rtol=1e-5, max_steps=9, batched=True, trace=12
    )
    chex.assert_trees_all_close(out.stats, want.stats, rtol=1e-3)
    assert out.stats.trace.shape == (3, 12)
    one_step = jax.grad(lambda x: DEQ(cell, adjoint=adjoints.OneStep(), **TIGHT)(x).z.sum())(x)
    z = DEQ(cell, **TIGHT)(x).z
    np.testing.assert_allclose(one_step, jax.grad(lambda x: cell(z, x).sum())(x), rtol=1e-4)


def test_limits_of_a_call_compile_nothing_anew(cell):
    deq = DEQ(cell, solver=solvers.Picard(), max_steps=2, rtol=1e-9)
    traces = []

    @jax.jit
    def solve(x, max_steps, rtol):
        traces.append(None)
        return deq(x, max_steps=max_steps, rtol=rtol, atol=0.0).stats.steps

    x = inputs(3, 6)
    assert [int(solve(x, n, 1e-9)) for n in (1, 3, 5)] == [1, 3, 5]
    assert solve(x, 50, 1e-2) < solve(x, 50, 1e-4) < 50
    assert len(traces) == 1


@pytest.mark.parametrize("activation", [jnp.tanh, nnx.relu])
def test_eager_calls_trace_and_compile_once(cell, activation):
    """`relu` has a derivative of its own, which each trace wraps anew."""
    traces = []

    def call(z, x):
        traces.append(None)
        return activation(0.5 * cell(z, x))

    deq = DEQ(call)
    deq(inputs(3, 6))
    before = jaxdeq._fixed_point._solve._cache_size()
    for seed in range(3):
        deq(inputs(3, 6, seed))
    assert jaxdeq._fixed_point._solve._cache_size() == before
    assert len(traces) == 4


def test_the_backward_solve_can_be_seen(cell):
    deq = DEQ(cell)
    loss = lambda x, tap: deq(x, tap=tap).z.sum()
    _, backward = jax.grad(loss, argnums=(0, 1))(inputs(3, 6), jaxdeq.BackwardStats.empty())
    assert backward.steps > 1
    assert backward.status == jaxdeq.Status.CONVERGED


def test_bind_gives_the_map_of_a_solve(cell):
    deq, x = DEQ(cell, **TIGHT), inputs(1, 6)
    z = deq(x).z
    np.testing.assert_allclose(deq.bind(x)(z), cell(z, x), rtol=1e-6)
    jacobian = jax.jacobian(lambda z: cell(z, x[0]))(z[0])
    rho = jaxdeq.spectral_radius(deq.bind(x), z, KEY)
    np.testing.assert_allclose(rho, np.abs(np.linalg.eigvals(jacobian)).max(), rtol=1e-4)


def test_inside_a_model_that_is_trained(mode):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.deq = DEQ(Busy(6, rngs=rngs), rtol=1e-3, max_steps=20)
            self.head = nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.deq(x).z)

    model = Model(nnx.Rngs(0))
    model.eval()
    assert model.deq.deterministic
    model.train()
    assert not model.deq.deterministic
    assert nnx.jit(lambda model, x: model(x))(model, inputs(4, 6)).shape == (4, 2)


def test_what_it_refuses(unchecked, cell):
    with pytest.raises(TypeError, match=r"cell must be a module or a function.*got 3"):
        DEQ(3)
    with pytest.raises(ValueError, match="shapes of z0"):
        DEQ(lambda z, x: z[:1])(inputs(3, 6))
    with pytest.raises(TypeError, match="floating or complex"):
        DEQ(lambda z, x: z)(jnp.arange(3))
    with pytest.raises(ValueError, match="mode must be one of"):
        DEQ(cell)(inputs(3, 6), key=KEY, mode="both")
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        DEQ(cell).unroll(inputs(3, 6), steps=0)
