"""Multiscale DEQs on 8 simulated devices: the answers of one, and what they send each other."""

import math
import re
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core.spmd import logical_axis_rules
from jax import random
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdeq import adjoints, solvers
from jaxdeq.models import Branch, MDEQClassifier, MDEQConfig
from tests.collectives import collectives
from tests.models.mdeq_recording import cross_entropy

pytestmark = pytest.mark.mesh

BATCH, STEPS = 16, 3
CONFIG = MDEQConfig(
    (Branch(8, 4), Branch(16, 4)),
    classes=3,
    groups=4,
    expansion=2,
    final_channels=8,
    solver=solvers.Picard(),
    adjoint=adjoints.Implicit(),
    rtol=0.0,  # all applications, on every mesh
    max_steps=STEPS,
)


def draw(variable):
    """Some value: what a layer starts from takes longer to make."""
    rng, shape = np.random.default_rng(variable.ndim), variable.shape
    value = rng.uniform(0.5, 1, shape) if variable.ndim < 2 else rng.normal(0, 0.1, shape)
    return jnp.asarray(value).astype(variable.dtype)


MODEL = nnx.eval_shape(lambda: MDEQClassifier(CONFIG, rngs=nnx.Rngs(0)))
GRAPHDEF, PARAMS, REST = nnx.split(MODEL, nnx.Param, ...)
PARAMS, REST = (jax.tree.map(draw, part) for part in (PARAMS, REST))
X, LABELS = random.normal(random.key(0), (BATCH, 8, 8, 3)), jnp.arange(BATCH, dtype=jnp.int32) % 3


def evaluate(params, rest, x):
    model = nnx.merge(GRAPHDEF, params, rest, copy=True)
    model.eval()
    return model(x).logits


def gradient(params, rest, x, labels):
    """With the Jacobian penalty, and the running statistics after it."""

    def loss(params):
        model = nnx.merge(GRAPHDEF, params, rest, copy=True)
        out = model(x, key=random.key(1))
        return cross_entropy(out.logits, labels) + out.penalty, nnx.state(model, nnx.BatchStat)

    return jax.grad(loss, has_aux=True)(params)


def compiled(f, *args):
    return jax.jit(f).lower(*args).compile()


@cache
def alone(f):
    """On one device."""
    args = (PARAMS, REST, X) if f is evaluate else (PARAMS, REST, X, LABELS)
    return jax.device_get(compiled(f, *args)(*args))


def same(got, want):
    chex.assert_trees_all_close(jax.device_get(got), want, rtol=1e-3, atol=1e-5)


def spread_batch(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    everywhere, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    return mesh, (*jax.device_put((PARAMS, REST), everywhere), *jax.device_put((X, LABELS), spread))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_evaluating_a_batch_on_many_devices(kind):
    """They send each other whether to go on, and nothing else."""
    mesh, (*args, _) = spread_batch(kind)
    with jax.set_mesh(mesh):
        program = compiled(evaluate, *args)
        same(program(*args), alone(evaluate))
    assert set(collectives(program.as_text())) <= {("all-reduce", ())}


def test_training_on_a_batch_on_many_devices():
    """Sums that run over the batch, beside these flags: of statistics and gradients."""
    mesh, args = spread_batch(AxisType.Auto)
    with jax.set_mesh(mesh):
        program = compiled(gradient, *args)
        same(program(*args), alone(gradient))
    kernels = {leaf.shape for leaf in jax.tree.leaves(PARAMS) if leaf.ndim > 1}
    widest = max(branch.channels for branch in CONFIG.branches) * CONFIG.expansion
    for what, shape in collectives(program.as_text()):
        assert what == "all-reduce"
        assert shape in kernels or math.prod(shape) <= widest


def test_training_traces_under_explicit_axes():
    """Where every operation has to know how its result lies."""
    mesh, args = spread_batch(AxisType.Explicit)
    with jax.set_mesh(mesh):
        grads, _ = jax.eval_shape(gradient, *args)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(grads))


def place(mesh, **rules):
    """The shardings of parameters under rules for the names of their axes."""
    with logical_axis_rules(tuple(rules.items())):
        return nnx.get_named_sharding(PARAMS, mesh)


@pytest.fixture
def mesh():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def test_the_inside_of_blocks_on_several_devices(mesh):
    """Sums once a block and application, when its width goes back; nothing else is sent."""
    params = jax.device_put(PARAMS, place(mesh, inner="model", channels=None))
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    program = compiled(evaluate, params, REST, x)
    same(program(params, REST, x), alone(evaluate))
    large = {key: n for key, n in collectives(program.as_text()).items() if len(key[1]) > 1}
    assert large == {("all-reduce", (BATCH // 4, 8 >> i, 8 >> i, b.channels)): 1 for i, b in enumerate(CONFIG.branches)}


def test_parameters_in_parts_on_every_device(mesh):
    """FSDP, besides: every kernel is gathered once, before the solve."""
    spread = place(mesh, inner="model", channels="data")
    params = jax.device_put(PARAMS, spread)
    whole = place(mesh, inner="model", channels=None)
    x, labels = jax.device_put((X, LABELS), NamedSharding(mesh, P("data")))

    def gathered(params, *args):
        return gradient(jax.lax.with_sharding_constraint(params, whole), *args)

    program = compiled(gathered, params, REST, x, labels)
    grads, batch_stats = program(params, REST, x, labels)
    same((grads, batch_stats), alone(gradient))
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    assert all(math.prod(leaf.sharding.shard_shape(leaf.shape)) <= leaf.size // 4 for leaf in kernels)
    functions = re.split(r"\n(?=\S)", program.as_text())
    loops = "\n".join(text for text in functions if not text.startswith("ENTRY"))
    assert {what for what, _ in collectives(loops)} == {"all-reduce"}
    gathers = [shape for what, shape in collectives(program.as_text()) if what == "all-gather"]
    assert gathers
    assert not any(len(shape) > 1 and shape[0] == BATCH for shape in gathers)  # parameters, no states
