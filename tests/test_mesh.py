"""On a simulated 4 x 2 mesh: the answers of one device, kept where they are, and next to no communication."""

import math
from collections import Counter
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxdeq
from jaxdeq import adjoints, solvers
from tests.collectives import collectives
from tests.pairs import pairs, solver_for

pytestmark = pytest.mark.mesh

BATCH, SIZE, HISTORY = 8, 32, 3
SHORT = {
    "Anderson": {"history": HISTORY},
    "Broyden": {"history": HISTORY},
    "NewtonKrylov": {"krylov": HISTORY},
}  # short memories compile fast
SOLVERS = [getattr(solvers, name)(**SHORT.get(name, {})) for name in solvers.__all__]
SEVERAL_A_STEP = {"NewtonKrylov"}  # evaluations of `f`
SOLVERS += [solvers.Anderson(HISTORY, every=2)]
CASES = [(s, False) for s in SOLVERS] + [(solvers.Picard(), True), (solvers.Anderson(HISTORY), True)]
ADJOINTS = [
    adjoints.Implicit(),
    adjoints.ImplicitJVP(),
    adjoints.OneStep(),
    adjoints.Phantom(3, 1.0),
    adjoints.Neumann(3, 1.0),
    adjoints.Reversible(length=32),
    adjoints.Shine(refine=30),
    adjoints.Unrolled(length=32, segment=8),
]
W = 0.4 * jax.random.normal(jax.random.key(0), (SIZE, SIZE)) / SIZE**0.5
X = jax.random.normal(jax.random.key(1), (BATCH, SIZE))
STATE = P("data", "model")
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


@pytest.fixture(params=KINDS)
def mesh(request):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(KINDS[request.param],) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def f(z, w, x):
    """With explicit axes a product of two sharded arrays has to say where its result goes."""
    here = jax.typeof(x).sharding
    explicit = None if here.mesh.empty or not here.mesh.explicit_axes else here
    return jnp.tanh(jnp.einsum("bi,ij->bj", z, w, out_sharding=explicit) + x)


def place(mesh):
    """The problem with its batch and its features spread."""
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    return put(W, None, "model"), put(X, *STATE)


def solve(w, x, z0=None, **settings):
    settings = {"solver": solver_for(settings.get("adjoint"), solvers.Picard()), "rtol": 1e-6, **settings}
    return jaxdeq.fixed_point(f, jnp.zeros_like(x) if z0 is None else z0, w, x, **settings).z


def loss(w, x, **settings):
    z = solve(w, x, **settings)
    return jnp.sum(z**2), z


def gradient(**settings):
    return jax.jit(jax.grad(partial(loss, **settings), (0, 1), has_aux=True))


@cache
def alone(adjoint=ADJOINTS[0]):
    """Gradients and equilibrium on one device."""
    return gradient(adjoint=adjoint)(W, X)


def check(mesh, adjoint=ADJOINTS[0], **settings):
    """Compares with one device, and returns the compiled text."""
    w, x = place(mesh)
    compiled = gradient(adjoint=adjoint, **settings).lower(w, x).compile()
    (by_w, by_x), z = compiled(w, x)
    for got, like in ((by_w, w), (by_x, x), (z, x)):
        assert got.sharding.is_equivalent_to(like.sharding, 2)
    want = alone(adjoint)
    chex.assert_trees_all_close(jax.device_get(((by_w, by_x), z)), jax.device_get(want), rtol=1e-3, atol=1e-4)
    return compiled.as_text()


def large(text):
    """The collectives of a compiled program by kind and shape, but for all-reduces of a few numbers a problem."""
    few = (HISTORY + 3) * BATCH // 4
    found = collectives(text)
    return Counter({what: n for what, n in found.items() if what[0] != "all-reduce" or math.prod(what[1]) > few})


@pytest.mark.parametrize(("solver", "batched"), CASES)
def test_every_solver(mesh, solver, batched):
    """And no collective of any size but one `f` forward, one `f` with its pullback backward."""
    found = large(check(mesh, solver=solver, batched=batched))
    w, x = place(mesh)
    text = lambda function: jax.jit(function).lower(x, w, x).compile().as_text()
    of_f, of_pullback = large(text(f)), large(text(lambda z, w, x: jax.vjp(f, z, w, x)[1](z)))
    assert of_f, "f itself communicates here"
    if type(solver).__name__ in SEVERAL_A_STEP:
        assert set(found) == set(of_f + of_pullback)
    else:
        assert found == of_f + of_pullback


@pytest.mark.parametrize("adjoint", ADJOINTS[1:], ids=str)
def test_every_adjoint(mesh, adjoint):
    check(mesh, adjoint)


def test_a_guess_that_is_not_spread(mesh):
    """`f` spreads what `z0` is not: the loop runs on what `f` returns."""
    w, x = place(mesh)
    z = jax.jit(lambda w, x: solve(w, x, jnp.zeros((BATCH, SIZE)), solver=solvers.Anderson(HISTORY)))(w, x)
    assert z.sharding.is_equivalent_to(x.sharding, 2)
    chex.assert_trees_all_close(jax.device_get(z), jax.device_get(alone()[1]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_without_a_mesh_in_context(kind):
    check(jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2), solver=solvers.Anderson(HISTORY))


def local(mesh, **settings):
    """The gradient of a solve inside `shard_map`: each device its own samples."""

    def run(w, x):
        return jaxdeq.fixed_point(lambda z: jnp.tanh(z @ w + x), jnp.zeros(x.shape), rtol=1e-6, **settings).z

    spread = jax.shard_map(run, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    return jax.grad(lambda w, x: jnp.sum(spread(w, x) ** 2))


def test_the_backward_solve_can_be_seen(mesh):
    """The tap is not spread over the mesh, and what it hears is."""
    w, x = place(mesh)
    solve = lambda tap: jaxdeq.fixed_point(f, jnp.zeros(X.shape), w, x, batched=True, tap=tap).z.sum()
    stats = jax.jit(jax.grad(solve))(jaxdeq.BackwardStats.empty(BATCH))
    assert jnp.all(stats.steps > 1)
    assert jnp.all(stats.residual < 1e-2)


def test_the_backward_solve_can_be_seen_inside_shard_map():
    """The sum over devices: statistics add up."""
    mesh = jax.make_mesh((4,), ("data",))
    run = lambda x, tap: jaxdeq.fixed_point(lambda z: 0.5 * z + x, jnp.zeros(x.shape), tap=tap).z
    spread = jax.shard_map(run, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    alone, tap = jax.grad(lambda tap: run(X[:2], tap).sum()), jaxdeq.BackwardStats.empty()
    x = jax.device_put(jnp.tile(X[:2], (4, 1)), NamedSharding(mesh, P("data")))
    got = jax.jit(jax.grad(lambda tap, x: spread(x, tap).sum()))(tap, x)
    assert got.steps == 4 * alone(tap).steps > 0


@pytest.mark.parametrize("start", [lambda x: jnp.zeros(SIZE), lambda x: 0 * x], ids=["one", "each"])
def test_vmap(mesh, start):
    """A lane on each device, from a start that all share or from their own."""
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    one = lambda x: jaxdeq.fixed_point(lambda z: 0.5 * jnp.tanh(z) + x, start(x), rtol=1e-6).z
    got = jax.jit(jax.vmap(jax.value_and_grad(lambda x: one(x).sum())))(x)
    want = jax.vmap(jax.value_and_grad(lambda x: one(x).sum()))(jax.device_get(X))
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), rtol=1e-4)


@pytest.mark.parametrize("talk", [jax.lax.pmean, partial(jax.lax.ppermute, perm=[(0, 1), (1, 0)])])
def test_maps_that_wait_for_others_are_refused(talk):
    """They would wait for ever: in `shard_map` each device stops by itself."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    solve = lambda x: jaxdeq.fixed_point(lambda z: jnp.tanh(0.3 * jax.jit(lambda z: talk(z, "data"))(z)) + x, 0 * x).z
    with pytest.raises(ValueError, match=r"mesh axes \['data'\], over which z varies"):
        jax.shard_map(solve, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(X)
    with pytest.raises(ValueError, match="an axis of a vmap: solve the whole batch at once"):
        jax.vmap(solve, axis_name="data")(X[:2])


def test_a_state_that_all_devices_share_may_use_a_collective():
    """Layers in parts: what each device computes is added up, and all take the same steps."""
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))

    def solve(w, x):
        layer = lambda z: jnp.tanh(jax.lax.psum(z[:, rows()] @ w, "model") + x)
        rows = lambda: jax.lax.axis_index("model") * len(w) + jnp.arange(len(w))
        return jaxdeq.fixed_point(layer, jnp.zeros(x.shape), rtol=1e-6, solver=solvers.Picard()).z

    got = jax.jit(jax.shard_map(solve, mesh=mesh, in_specs=(P("model"), P()), out_specs=P()))(W, X)
    want = jaxdeq.fixed_point(lambda z: jnp.tanh(z @ W + X), jnp.zeros(X.shape), rtol=1e-6, solver=solvers.Picard()).z
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(("solver", "adjoint"), pairs(SOLVERS, ADJOINTS), ids=str)
def test_traces_inside_shard_map(solver, adjoint, batched):
    """Where a carry must vary over the mesh from its first value on."""
    mesh = jax.make_mesh((4,), ("data",))
    like = lambda x, *spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P(*spec)))
    gradient = local(mesh, solver=solver, adjoint=adjoint, batched=batched)
    assert jax.eval_shape(gradient, like(W), like(X, "data")).shape == W.shape


@pytest.mark.parametrize(("solver", "adjoint"), pairs([solvers.Picard(), solvers.Anderson(HISTORY)], ADJOINTS), ids=str)
def test_answers_inside_shard_map(solver, adjoint):
    if isinstance(adjoint, adjoints.Unrolled) and solver != solvers.Picard():
        return  # compiles for long, and the steps are those of the other solvers
    mesh = jax.make_mesh((4,), ("data",))
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    got = jax.jit(local(mesh, solver=solver, adjoint=adjoint, batched=True))(put(W), put(X, "data"))
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(alone(adjoint)[0][0]), rtol=1e-3, atol=1e-4)
