"""Transformer-XL against its mathematics, the DEQ-Transformer's layer and the published sizes."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeq.models import (
    DEQTransformerConfig,
    DEQTransformerLM,
    TransformerXL,
    TransformerXLConfig,
    load_torch_state_dict,
    to_torch_state_dict,
    transformer_xl_wt103,
)
from tests.models import transformer_by_hand as by_hand

CONFIG = TransformerXLConfig(
    vocab=30, width=8, heads=2, inner=12, embed=8, cutoffs=(10, 20), divisor=2, tie_projections=(False, True, True),
    memory=12, layers=2,
)  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 30, (2, 9)), jnp.int32)


@pytest.fixture(autouse=True)
def quick_draws():
    """Random numbers that compile several times faster; which ones they are is of no matter here."""
    with jax.default_prng_impl("rbg"):
        yield


def build(config=CONFIG, train=False):
    """A model with weights large enough to matter."""
    model = TransformerXL(config, rngs=nnx.Rngs(params=0, dropout=1))
    rng = np.random.default_rng(1)
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param):
            variable[...] = jnp.asarray(rng.normal(scale=0.3, size=variable.shape), variable.dtype)
    if not train:
        model.eval()
    return model


def run(model, tokens=TOKENS, **arguments):
    """A compiled call that leaves the model as it is."""
    return call(*nnx.split(model), tokens, arguments)


# Small programs, run once: compiling them is what takes the time.
jit = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


@partial(jit, static_argnums=0)
def call(graphdef, state, tokens, arguments):
    return nnx.merge(graphdef, state, copy=True)(tokens, **arguments)


def by_numpy(sd, config, words, past):
    """The last layer's output for one sequence, and what came into each layer; `past` is the same of before."""
    z = np.stack([by_hand.embed(sd, config, word) for word in words])
    inputs = []
    for i in range(config.layers):
        inputs.append(z)
        names = {k.replace(f"layers.{i}.", "func."): v for k, v in sd.items() if k.startswith(f"layers.{i}.")}
        nothing = np.zeros((len(past[i]) + len(z), 3 * config.width))
        z = by_hand.layer(names, config, z, nothing, past[i])
    return z, inputs


@pytest.mark.parametrize("settings", [{"layers": 3}, {"pre_norm": True, "window": 3}], ids=str)
def test_two_segments_by_hand(settings):
    config = replace(CONFIG, **settings)
    model = build(config)
    sd = {name: np.float64(array) for name, array in to_torch_state_dict(model).items()}
    first = run(model, TOKENS[:, :4])
    second = run(model, TOKENS[:, 4:], memory=first.memory)
    for b, words in enumerate(np.asarray(TOKENS)):
        z, past = by_numpy(sd, config, words[:4], [np.zeros((0, 8))] * config.layers)
        np.testing.assert_allclose(first.z[b], z, atol=2e-5)
        np.testing.assert_allclose(first.memory.z[b], np.concatenate(past, axis=-1), atol=2e-5)
        z, _ = by_numpy(sd, config, words[4:], past)
        np.testing.assert_allclose(second.z[b], z, atol=2e-5)
        for i, word in enumerate(words[5:]):
            want = by_hand.log_probability(sd, config, z[i], word)
            np.testing.assert_allclose(second.logits[b, i, word], want, atol=5e-5)


def test_equal_layers_are_a_deq_unrolled_without_injection():
    model = build()
    shared = {k: getattr(CONFIG, k) for k in DEQTransformerConfig.__dataclass_fields__ if hasattr(CONFIG, k)}
    deq = DEQTransformerLM(DEQTransformerConfig(**shared), rngs=nnx.Rngs(0))
    deq.eval()
    sd = to_torch_state_dict(model)
    layer = {k.removeprefix("layers.1."): v for k, v in sd.items() if k.startswith("layers.1.")}
    rest = {k: v for k, v in sd.items() if not k.startswith("layers.")}
    load_torch_state_dict(model, {**rest, **{f"layers.{i}.{k}": v for i in range(2) for k, v in layer.items()}})
    injection = {"inject_conv.weight": np.zeros((24, 8, 1)), "inject_conv.bias": np.zeros(24)}
    load_torch_state_dict(deq, {**rest, **injection, **{f"func.{k}": v for k, v in layer.items()}})
    unrolled = jit(lambda: deq(TOKENS, targets=TOKENS, z0=deq.embedding(TOKENS), unroll=2))()
    out = run(model, targets=TOKENS)
    np.testing.assert_allclose(out.z, unrolled.z, atol=1e-5)
    np.testing.assert_allclose(out.losses, unrolled.losses, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"window": 3, "memory": 2}], ids=["whole", "window"])
def test_segments_with_memory_are_one_long_segment(settings):
    model = build(replace(CONFIG, **settings))
    whole, parts, memory = run(model), [], model.empty_memory(2)
    for start in (0, 3, 6):
        out = run(model, TOKENS[:, start : start + 3], memory=memory)
        parts, memory = [*parts, out.logits], out.memory
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole.logits, atol=2e-5)
    kept = min(9, model.config.memory)
    assert memory.z.shape == (2, model.config.memory, 16)
    assert memory.length == kept
    np.testing.assert_allclose(memory.z[:, -kept:], whole.memory.z, atol=2e-5)


def test_no_gradient_flows_into_the_memory():
    model = build()
    memory = run(model, TOKENS[:, :4]).memory

    def loss(z):
        return jnp.sum(model(TOKENS[:, 4:], memory=memory._replace(z=z)).memory.z ** 2)

    assert not jit(jax.grad(loss))(memory.z).any()


def test_losses_are_of_the_targets_in_order():
    model = build()
    chosen = jnp.take_along_axis(run(model).logits, TOKENS[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(run(model, targets=TOKENS).losses, -chosen, atol=1e-5)
    np.testing.assert_allclose(run(model, targets=TOKENS[:, -4:]).losses, -chosen[:, -4:], atol=1e-5)


def test_gradients_reach_every_parameter():
    model = build()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        return jnp.mean(nnx.merge(graphdef, params, rest, copy=True)(TOKENS[:, :-1], targets=TOKENS[:, 1:]).losses)

    grads = nnx.to_pure_dict(jit(jax.grad(loss))(params))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.isfinite(grad).all(), path
        assert jnp.abs(grad).max() > 1e-7, path


def test_what_masks_share_and_that_they_are_drawn_for_every_call():
    model = build(replace(CONFIG, dropout=0.5, attention_dropout=0.5, layers=1), train=True)
    layer = model.layers[0]
    differs = lambda x, axis: bool((x != jnp.take(x, jnp.array([0]), axis)).any())
    for drop in (model.drop_words, model.drop_output, layer.attention.drop_output):
        dropped = drop(jnp.ones((2, 9, 8)))
        assert all(differs(dropped, axis) for axis in range(3))
    inside = layer.feed_forward._inside(jnp.ones((20, 9, 8)))  # all but its mask is the same everywhere
    assert [differs(inside, axis) for axis in range(3)] == [True, False, True]
    read = nnx.jit(lambda model: model(TOKENS).z)
    assert jnp.abs(read(model) - read(model)).max() > 0.1
    model.eval()
    np.testing.assert_array_equal(read(model), read(model))


def test_bfloat16_computes_and_float32_adds_up():
    got, want = run(build(replace(CONFIG, dtype="bfloat16")), targets=TOKENS), run(build(), targets=TOKENS)
    assert got.z.dtype == got.losses.dtype == got.memory.z.dtype == jnp.float32
    np.testing.assert_allclose(got.losses, want.losses, atol=0.1)


def test_both_modes_of_flax():
    want = run(build(), targets=TOKENS).losses
    with nnx.set_graph_mode(False):
        np.testing.assert_allclose(run(build(), targets=TOKENS).losses, want, rtol=1e-6)


def test_greedy_generation_is_reading_all_anew():
    model = build()
    made = jit(lambda prompt: model.generate(prompt, 6))(TOKENS[:, :4])
    text = jnp.concatenate([TOKENS[:, :4], made.tokens], axis=1)
    np.testing.assert_array_equal(made.tokens, jnp.argmax(run(model, text[:, :-1]).logits[:, 3:], axis=-1))
    assert made.memory.z.shape == (2, 12, 16)
    assert made.memory.length == 9


def test_published_sizes():
    def size(config):
        model = nnx.eval_shape(lambda: TransformerXL(config, rngs=nnx.Rngs(0)))
        return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))

    config = transformer_xl_wt103()
    assert config.layers == 18
    assert round(size(config) / 1e6) == 110
    # The standard model of the Transformer-XL paper: 151 M.
    standard = replace(config, layers=16, width=410, embed=410, inner=2100, divisor=1, tie_projections=())
    assert round(size(standard) / 1e6) == 151


def test_configurations_print_as_they_are():
    assert eval(repr(CONFIG)) == CONFIG
    assert eval(repr(transformer_xl_wt103())) == transformer_xl_wt103()


def test_what_it_refuses(unchecked):
    with pytest.raises(ValueError, match="layers must be at least 1; got 0"):
        replace(CONFIG, layers=0)
    with pytest.raises(ValueError, match="memory must be at least 1"):
        replace(CONFIG, memory=0)
    model = build()
    with pytest.raises(ValueError, match=r"memory must be of 2 sequences and width 16; got z of shape \(3, 12, 16\)"):
        model(TOKENS, memory=model.empty_memory(3))
    with pytest.raises(ValueError, match=r"targets must be \[2, at most 3\]"):
        model(TOKENS[:, :3], targets=TOKENS)
    with pytest.raises(TypeError, match="length must be an int"):
        model.generate(TOKENS, 2.0)
    model.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        model.generate(TOKENS, 2)
