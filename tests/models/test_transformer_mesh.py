"""DEQ-Transformers on 8 simulated devices: the answers of one, and what they send each other."""

import math
import re
from dataclasses import replace
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core.spmd import logical_axis_rules
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdeq import adjoints, solvers
from jaxdeq.models import DEQTransformerConfig, DEQTransformerLM, Memory, TransformerXL, TransformerXLConfig
from tests.collectives import collectives

pytestmark = pytest.mark.mesh

BATCH, LENGTH, MEMORY, WIDTH, HEADS, INNER = 8, 12, 4, 16, 4, 40
CONFIG = DEQTransformerConfig(
    vocab=48, width=WIDTH, heads=HEADS, inner=INNER, embed=WIDTH, memory=MEMORY, parts=3,
    solver=solvers.Picard(), adjoint=adjoints.Implicit(), rtol=0.0, max_steps=3,
)  # fmt: skip

FEW_LAYERS = TransformerXLConfig(vocab=48, width=WIDTH, heads=HEADS, inner=INNER, embed=WIDTH, memory=MEMORY, layers=2)


def draw(variable):
    rng = np.random.default_rng(variable.size)
    return jnp.asarray(rng.normal(0, 0.2, variable.shape)).astype(variable.dtype)


MODEL = nnx.eval_shape(lambda: DEQTransformerLM(CONFIG, rngs=nnx.Rngs(0)))
GRAPHDEF, PARAMS, REST = nnx.split(MODEL, nnx.Param, ...)
PARAMS, REST = (jax.tree.map(draw, part) for part in (PARAMS, REST))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 48, (BATCH, LENGTH)), jnp.int32)
PAST = jax.tree.map(
    draw, Memory(*(jax.ShapeDtypeStruct((BATCH, MEMORY, n * WIDTH), jnp.float32) for n in (1, 3)), None)
)
PAST = PAST._replace(length=jnp.int32(MEMORY))


def evaluate(params, rest, tokens, memory):
    model = nnx.merge(GRAPHDEF, params, rest, copy=True)
    model.eval()
    return model(tokens, memory=memory).z


def gradient(params, rest, tokens, memory):
    def loss(params):
        model = nnx.merge(GRAPHDEF, params, rest, copy=True)
        return jnp.mean(model(tokens, targets=tokens, memory=memory).losses)

    return jax.grad(loss)(params)


def compiled(f, *args):
    return jax.jit(f).lower(*args).compile()


@cache
def alone(f):
    """On one device."""
    args = (PARAMS, REST, TOKENS, PAST)
    return jax.device_get(compiled(f, *args)(*args))


def same(got, want):
    chex.assert_trees_all_close(jax.device_get(got), want, rtol=1e-3, atol=1e-5)


def place(mesh, **rules):
    """The shardings of parameters under rules for the names of their axes."""
    with logical_axis_rules(tuple(rules.items())):
        return nnx.get_named_sharding(PARAMS, mesh)


def spread(kind, shape, names, tokens=P("data"), **rules):
    """A mesh, and all arguments on it: parameters whole, or by rules for the names of their axes."""
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
    put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    past = Memory(put(PAST.z, P("data")), put(PAST.u, P("data")), put(PAST.length, P()))
    params = jax.device_put(PARAMS, place(mesh, **rules)) if rules else put(PARAMS, P())
    return mesh, (params, put(REST, P()), put(TOKENS, tokens), past)


LAYOUTS = {
    "batch": ((8,), ("data",)),
    "heads and inside": ((4, 2), ("data", "model")),
    "positions": ((4, 2), ("data", "seq"), P("data", "seq")),
}
MODEL_RULES = {"inner": "model", "channels": None}
KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


def evaluated(mesh, args):
    """What devices send each other in evaluation, once the answer is seen to be that of one device."""
    with jax.set_mesh(mesh):
        program = compiled(evaluate, *args)
        same(program(*args), alone(evaluate))
    return collectives(program.as_text())


@KINDS
def test_evaluating_a_batch(kind):
    """They send each other whether to go on, and nothing else."""
    sent = evaluated(*spread(kind, *LAYOUTS["batch"]))
    assert set(sent) == {("all-reduce", ())}


@KINDS
def test_the_inside_of_a_layer_on_several_devices(kind):
    """One sum a product that leads out of it: of attention, and of each part of the feed-forward layer.

    Under Explicit axes attention is whole on each of these devices, and asks for its kernel once.
    """
    sent = evaluated(*spread(kind, *LAYOUTS["heads and inside"], **MODEL_RULES))
    large = {what: n for what, n in sent.items() if len(what[1]) > 1}
    attention = ("all-reduce", (BATCH // 4, LENGTH, WIDTH))
    part = ("all-reduce", (BATCH // 4, LENGTH // CONFIG.parts, WIDTH))
    assert large == {part: 1, (attention if kind == AxisType.Auto else ("all-gather", (WIDTH, WIDTH))): 1}


@KINDS
def test_positions_on_several_devices(kind):
    """Keys and values of all positions are gathered; norms are summed."""
    sent = evaluated(*spread(kind, *LAYOUTS["positions"]))
    keys = ("all-gather", (BATCH // 4, LENGTH, HEADS, WIDTH // HEADS))
    assert sent.pop(keys) == 2
    assert {(what, len(shape)) for what, shape in sent} <= {("all-reduce", 0), ("all-reduce", 1)}


def test_training_on_a_batch():
    """Sums that run over the batch, beside the flags: gradients."""
    mesh, args = spread(AxisType.Auto, *LAYOUTS["batch"])
    with jax.set_mesh(mesh):
        program = compiled(gradient, *args)
        same(program(*args), alone(gradient))
    sizes = {1, *(leaf.size for leaf in jax.tree.leaves(PARAMS))}
    for what, shape in collectives(program.as_text()):
        assert what == "all-reduce"
        assert math.prod(shape) in sizes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_traces_under_explicit_axes(layout):
    """Where every operation has to know how its result lies."""
    rules = MODEL_RULES if layout == "heads and inside" else {}
    mesh, args = spread(AxisType.Explicit, *LAYOUTS[layout], **rules)
    with jax.set_mesh(mesh):
        grads = jax.eval_shape(gradient, *args)
    part = lambda leaf: leaf.sharding.shard_shape(leaf.shape)
    assert [part(leaf) for leaf in jax.tree.leaves(grads)] == [part(leaf) for leaf in jax.tree.leaves(args[0])]


@pytest.mark.parametrize("layout", ["batch", "positions"])
@pytest.mark.parametrize("begin", [lambda model: None, lambda model: model.empty_memory(BATCH)], ids=["none", "empty"])
@pytest.mark.parametrize("config", [CONFIG, FEW_LAYERS], ids=["DEQ", "Transformer-XL"])
def test_the_first_segment_under_explicit_axes(config, begin, layout):
    """Which has no memory that lies as the tokens do; what follows it then has."""
    build = {DEQTransformerConfig: DEQTransformerLM, TransformerXLConfig: TransformerXL}[type(config)]
    mesh, (*_, tokens, _) = spread(AxisType.Explicit, *LAYOUTS[layout])

    def read(tokens):
        model = build(config, rngs=nnx.Rngs(0))
        model.eval()
        memory = model(tokens, targets=tokens, memory=begin(model)).memory
        return memory, model.generate(tokens, 3, memory=begin(model)).tokens if layout == "batch" else tokens

    with jax.set_mesh(mesh):
        memory, following = jax.eval_shape(read, tokens)
    assert memory.z.sharding.spec[0] == following.sharding.spec[0] == "data"


def test_parameters_in_parts_on_every_device():
    """FSDP, besides: every parameter is gathered before the solve, and none in a loop."""
    mesh, args = spread(AxisType.Auto, *LAYOUTS["heads and inside"], inner="model", channels="data")
    whole = place(mesh, **MODEL_RULES)

    def gathered(params, *args):
        return gradient(jax.lax.with_sharding_constraint(params, whole), *args)

    with jax.set_mesh(mesh):
        program = compiled(gathered, *args)
        same(program(*args), alone(gradient))
    kernels = [leaf for leaf in jax.tree.leaves(args[0]) if leaf.ndim > 1 and leaf.shape != (HEADS, WIDTH // HEADS)]
    assert all(math.prod(leaf.sharding.shard_shape(leaf.shape)) <= leaf.size // 4 for leaf in kernels)
    functions = re.split(r"\n(?=\S)", program.as_text())
    loops = "\n".join(text for text in functions if not text.startswith("ENTRY"))
    assert {what for what, _ in collectives(loops)} == {"all-reduce"}
    gathers = {shape for what, shape in collectives(program.as_text()) if what == "all-gather"}
    injected = (BATCH // 4, LENGTH, 3, HEADS, WIDTH // HEADS)  # its cotangent, for a kernel that is whole
    sizes = {leaf.size // n for leaf in jax.tree.leaves(args[0]) for n in (1, 2)}
    assert gathers
    assert {math.prod(shape) for shape in gathers - {injected}} <= sizes


RARE = replace(CONFIG, cutoffs=(16, 32), divisor=2, tie_projections=(False, True, True))
HIDDEN = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, LENGTH, WIDTH)), jnp.float32)


@KINDS
@pytest.mark.parametrize("layout", ["batch", "positions"])
def test_rare_words_on_several_devices(layout, kind):
    """Each finds those of its own rows. Of a row's parts on several devices each has the whole."""
    model = nnx.eval_shape(lambda: DEQTransformerLM(RARE, rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = (jax.tree.map(draw, part) for part in (params, rest))

    def losses(params, h, words):
        model = nnx.merge(graphdef, params, rest, copy=True)
        return jnp.mean(model.softmax.losses(h, words, model.embedding))

    gradient = jax.value_and_grad(losses, (0, 1))
    want = jax.device_get(compiled(gradient, params, HIDDEN, TOKENS)(params, HIDDEN, TOKENS))
    shape, names, *tokens = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
    rows = NamedSharding(mesh, tokens[0] if tokens else P("data"))
    with jax.set_mesh(mesh):
        args = jax.device_put(params, NamedSharding(mesh, P())), *jax.device_put((HIDDEN, TOKENS), rows)
        program = compiled(gradient, *args)
        same(program(*args), want)
    sent = collectives(program.as_text())
    assert layout == "positions" or {what for what, _ in sent} == {"all-reduce"}
