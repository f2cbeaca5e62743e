"""The DEQ-Transformer at small sizes: what it computes, what it hands on, what it refuses."""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeq import solvers
from jaxdeq.models import (
    DEQTransformerConfig,
    DEQTransformerLM,
    Memory,
    _lm_vocabulary,
    load_torch_state_dict,
    to_torch_state_dict,
    transformer_configs,
)
from jaxdeq.models._lm_config import KEEP
from tests.models import transformer_by_hand as by_hand

CONFIG = DEQTransformerConfig(
    vocab=30, width=8, heads=2, inner=12, embed=8, cutoffs=(10, 20), divisor=2, tie_projections=(False, True, True),
    memory=12, solver=solvers.Picard(), rtol=1e-6, max_steps=300,
)  # fmt: skip
PLAIN = replace(CONFIG, cutoffs=(), divisor=1, tie_projections=(), embed=8)
KEY = jax.random.key(0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 30, (2, 9)), jnp.int32)


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
    """Programs run once here: compiling them takes longer than running them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def build(config, scale=0.3, train=False):
    """A model with weights large enough to matter, biases too, and small enough to converge."""
    model = DEQTransformerLM(config, rngs=nnx.Rngs(params=0, dropout=1))
    rng = np.random.default_rng(1)
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param):
            variable[...] = jnp.asarray(rng.normal(scale=scale, size=variable.shape), variable.dtype)
    return model if train else evaluate(model)


def evaluate(model):
    model.eval()
    return model


def run(model, tokens=TOKENS, **arguments):
    """A compiled call that leaves the model as it is."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, tokens, arguments: nnx.merge(graphdef, state, copy=True)(tokens, **arguments))(
        state, tokens, arguments
    )


LAYERS = {
    "post-LN": CONFIG,
    "pre-LN": replace(CONFIG, pre_norm=True),
    "narrow": replace(CONFIG, window=3, weight_norm=False),
    "pre-LN, narrow": replace(CONFIG, window=2, pre_norm=True, heads=4),
}


@pytest.mark.parametrize("memory", [0, 5])
@pytest.mark.parametrize("config", LAYERS.values(), ids=LAYERS)
def test_one_application_by_hand(config, memory):
    model = build(config)
    sd = to_torch_state_dict(model)
    z, us, past = draw(2, 4, 8), draw(2, memory + 4, 24), draw(2, memory, 8)
    positions = model.positions(memory + 4)
    nothing = Memory(past[:, :0], us[:, :0], jnp.int32(0))
    context = nothing.extend(past, us[:, :memory], memory) if memory else nothing
    got = jax.jit(model.deq.cell)(z, us[:, memory:], context, positions)
    want = [by_hand.layer(sd, config, *map(np.asarray, each)) for each in zip(z, us, past, strict=True)]
    np.testing.assert_allclose(got, want, atol=2e-5)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


WORDS = {
    "one table": PLAIN,
    "one table, projected, tied": replace(PLAIN, embed=6, tie_projections=(True,)),
    "clusters of one table": replace(PLAIN, cutoffs=(10, 20)),
    "clusters of one table, untied": replace(CONFIG, divisor=1, embed=6, tie_tables=False),
    "clusters of their own width": CONFIG,
    "nothing tied": replace(CONFIG, tie_tables=False, tie_projections=()),
}


@pytest.mark.parametrize("config", WORDS.values(), ids=WORDS)
def test_words_by_hand(config):
    model = build(config)
    sd = to_torch_state_dict(model)
    h = draw(2, 9, 8)
    vectors, everything, losses = jax.jit(
        lambda h: (
            model.embedding(TOKENS),
            model.softmax.log_probabilities(h, model.embedding),
            model.softmax.losses(h, TOKENS, model.embedding),
        )
    )(h)
    np.testing.assert_allclose(np.exp(everything).sum(-1), 1, rtol=1e-5)
    for index in np.ndindex(TOKENS.shape):
        word = int(TOKENS[index])
        np.testing.assert_allclose(vectors[index], by_hand.embed(sd, config, word), rtol=1e-5, atol=1e-5)
        want = by_hand.log_probability(sd, config, np.asarray(h[index]), word)
        np.testing.assert_allclose(everything[index][word], want, atol=1e-5)
        np.testing.assert_allclose(-losses[index], want, atol=1e-5)


def test_losses_in_parts_are_the_same_losses(monkeypatch):
    model, h = build(CONFIG), draw(2, 9, 8)

    def value_and_gradient():
        loss = lambda h: jnp.sum(jnp.sin(model.softmax.losses(h, TOKENS, model.embedding)))
        return jax.jit(jax.value_and_grad(loss))(h)

    whole = value_and_gradient()
    monkeypatch.setattr(_lm_vocabulary, "ROOM", 4 * 2 * 30)  # 4 of 9 positions at a time
    chex.assert_trees_all_close(value_and_gradient(), whole, rtol=1e-5, atol=1e-6)


def test_of_rare_words_only_what_is_asked_for_is_computed():
    """Elsewhere their vectors, NaN here, reach neither a loss nor a gradient."""
    model, h = build(CONFIG), draw(2, 9, 8)
    rare = CONFIG.cutoffs[0] <= TOKENS
    assert rare[0].any()
    common = jnp.where(rare, 0, TOKENS)
    for table in model.embedding.tables[1:]:
        table[...] = jnp.full_like(table[...], jnp.nan)
    loss = lambda h, words: jnp.sum(model.softmax.losses(h, words, model.embedding))
    assert np.isfinite(jax.grad(loss)(h, common)).all()
    few = common.at[0, 3].set(CONFIG.vocab - 1)
    assert np.isnan(jax.grad(loss)(h, few)).any(axis=-1).sum() <= 2 * -(-9 // _lm_vocabulary.PARTS)


def test_segments_with_memory_are_one_long_segment():
    model = build(PLAIN)
    whole = run(model)
    assert whole.stats.converged.all()
    np.testing.assert_allclose(jax.nn.logsumexp(whole.logits, -1), 0, atol=1e-5)
    for start in (None, model.empty_memory(2)):
        first = run(model, TOKENS[:, :5], memory=start)
        second = run(model, TOKENS[:, 5:], memory=first.memory)
        np.testing.assert_allclose(jnp.concatenate([first.z, second.z], 1), whole.z, atol=1e-4)
        np.testing.assert_allclose(second.logits, whole.logits[:, 5:], atol=1e-4)
        assert second.memory.length == 9
        np.testing.assert_allclose(second.memory.z[:, -9:], whole.memory.z, atol=1e-4)
        np.testing.assert_allclose(second.memory.u[:, -9:], whole.memory.u, atol=1e-5)


def test_memory_is_bounded_and_constant():
    model = build(replace(PLAIN, memory=4))
    first = run(model, TOKENS[:, :3])
    assert first.memory.z.shape == (2, 3, 8)
    second = run(model, TOKENS[:, 3:], memory=first.memory)
    assert second.memory.z.shape == (2, 4, 8)
    assert second.memory.u.shape == (2, 4, 24)
    assert second.memory.length == 4
    np.testing.assert_array_equal(second.memory.z, second.z[:, -4:])
    kept = lambda scale: jnp.sum(first.memory.extend(scale * first.z, first.memory.u, 4).z)
    assert jax.grad(kept)(1.0) == 0


def test_targets_of_the_last_positions():
    model = build(PLAIN)
    out = run(model, targets=TOKENS)
    few = run(model, targets=TOKENS[:, -4:])
    assert out.logits is None
    np.testing.assert_allclose(few.losses, out.losses[:, -4:], atol=1e-5)


def test_unrolled():
    """Pre-training: so many layers with the same weights, and ordinary back-propagation through all."""
    model, start = build(CONFIG), draw(2, 9, 8)
    unrolled = lambda z0: model(TOKENS, targets=TOKENS, z0=z0, unroll=3, key=KEY)

    def layers(z):
        f = model.bind(TOKENS)
        return f(f(f(z)))

    (value, out), slope = jax.jit(
        jax.value_and_grad(lambda z0: (jnp.sum(unrolled(z0).z ** 3), unrolled(z0)), has_aux=True)
    )(start)
    want, want_slope = jax.jit(jax.value_and_grad(lambda z: jnp.sum(layers(z) ** 3)))(start)
    np.testing.assert_allclose(value, want, rtol=1e-4)
    np.testing.assert_allclose(slope, want_slope, atol=1e-3 * jnp.abs(want_slope).max())
    assert jnp.abs(slope).max() > 0.01
    assert out.stats is None
    assert out.penalty > 0
    np.testing.assert_array_equal(out.memory.z, out.z)


DROPPING = replace(CONFIG, dropout=0.2, attention_dropout=0.1)


def test_masks_are_fixed_in_a_solve_and_drawn_for_each():
    model = build(DROPPING, train=True)
    call = nnx.jit(lambda model, tokens: model(tokens, targets=tokens))
    first, second = call(model, TOKENS), call(model, TOKENS)
    assert first.stats.converged.all(), "with a mask for each application there is no equilibrium"
    assert jnp.abs(first.z - second.z).max() > 0.1
    model.eval()
    first, second = call(model, TOKENS), call(model, TOKENS)
    np.testing.assert_array_equal(first.losses, second.losses)
    plain = build(CONFIG)
    nnx.update(plain, nnx.state(model, nnx.Param))
    np.testing.assert_allclose(run(plain, targets=TOKENS).losses, first.losses, atol=1e-4)


def test_what_the_masks_share():
    model = build(replace(CONFIG, dropout=0.5, attention_dropout=0.5), train=True)
    cell = model.deq.cell
    ones = jnp.ones((2, 9, 8))
    same = lambda x, axis: bool((x == jnp.take(x, jnp.array([0]), axis)).all())
    for layer in (model.drop_words, cell.attention.drop_output, cell.feed_forward.drop_inner):
        dropped = layer(ones)
        assert same(dropped, 1)
        assert not same(dropped, 2)
    positions, output = model.drop_positions(jnp.ones((9, 8))), model.drop_output(ones)
    assert same(positions, 0)
    assert not same(positions, 1)
    assert same(output, 2), "the reference drops whole positions"
    assert not same(output, 1)
    weights = cell.attention.drop_weights(jnp.ones((2, 2, 9, 9)))
    assert not any(same(weights, axis) for axis in range(4))


def gradients(config):
    model = build(config, train=True)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest):
        out = nnx.merge(graphdef, params, rest, copy=True)(TOKENS[:, :-1], targets=TOKENS[:, 1:])
        return jnp.mean(out.losses), out.stats

    (_, stats), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, rest)
    assert stats.converged.all()
    return nnx.to_pure_dict(grads)


def test_gradients_reach_every_parameter_and_are_the_same_in_parts():
    """The mask of a part is that of all positions."""
    whole = gradients(DROPPING)
    for path, grad in jax.tree_util.tree_leaves_with_path(whole):
        assert jnp.isfinite(grad).all(), path
        assert jnp.abs(grad).max() > 1e-7, path
    for settings in ({"parts": 3}, {"keep": "active"}, {"keep": "nothing", "parts": 3}):  # 8 positions: 3, 3 and 2
        chex.assert_trees_all_close(gradients(replace(DROPPING, **settings)), whole, rtol=1e-3, atol=1e-4)


def test_a_gradient_keeps_less_of_a_wide_layer():
    """Unrolled, every application is kept: 8 of them, of 2 x 64 positions with 256 numbers inside."""

    def held(keep):
        """Bytes between the forward and the backward pass."""
        config = replace(CONFIG, inner=256, dropout=0.1, keep=keep)
        model = nnx.eval_shape(lambda: DEQTransformerLM(config, rngs=nnx.Rngs(0)))
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def pullback(params, rest, tokens):
            apply = lambda params: nnx.merge(graphdef, params, rest, copy=True)(tokens, targets=tokens, unroll=8).losses
            return jax.vjp(apply, params)[1]

        tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(pullback, params, rest, tokens)))

    inside = 8 * 2 * 64 * 256
    every, active, nothing = map(held, KEEP)
    assert every - active >= 4 * inside, "no float32"
    assert active - nothing == inside, "a byte"


def test_bfloat16_computes_and_float32_adds_up():
    model = build(replace(CONFIG, dtype="bfloat16", rtol=1e-3))
    exact = build(CONFIG)
    got, want = run(model, targets=TOKENS), run(exact, targets=TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype("float32")}
    assert got.stats.converged.all()
    assert got.z.dtype == got.losses.dtype == jnp.float32
    assert got.memory.u.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.z, want.z, atol=0.1)
    np.testing.assert_allclose(got.losses, want.losses, atol=0.1)
    text = jax.jit(model.deq.cell).lower(want.z, *model._inject(TOKENS, None)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("bf16>, tensor<" in line for line in products), "every product takes bfloat16"
    assert not any(op in line for line in text.splitlines() if "bf16" in line for op in ("exponential", "rsqrt"))


def test_half_precision_parameters_leave_positions_exact():
    frequencies = build(replace(CONFIG, param_dtype="bfloat16")).positions.frequencies
    np.testing.assert_array_equal(frequencies[...], build(CONFIG).positions.frequencies[...])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16"])
def test_narrow_integers_are_words_too(dtype):
    """Where the size of the vocabulary does not fit in them; files of words often hold unsigned ones."""
    model = build(replace(CONFIG, vocab=128, cutoffs=(50, 100)))
    words = jnp.asarray([[3, 70, 127, 101]])
    want = run(model, words, targets=words).losses
    narrow = words.astype(dtype)
    np.testing.assert_array_equal(run(model, narrow, targets=narrow).losses, want)
    assert jax.eval_shape(lambda words: model.generate(words, 2).tokens, narrow).dtype == jnp.int32


def test_what_is_not_a_number_stays_so():
    model = build(CONFIG)
    kernel = model.deq.cell.feed_forward.widen.layer.kernel
    kernel[...] = jnp.full_like(kernel[...], jnp.nan)
    assert jnp.isnan(model.deq.cell.feed_forward(jnp.ones((1, 2, 8)))).all()


def test_both_modes_of_flax():
    want = run(build(CONFIG), targets=TOKENS).losses
    with nnx.set_graph_mode(False):
        np.testing.assert_allclose(run(build(CONFIG), targets=TOKENS).losses, want, rtol=1e-6)


def test_greedy_generation_is_solving_all_anew_and_goes_on_where_it_ended():
    model = build(PLAIN)
    generate = jax.jit(model.generate, static_argnums=1)
    made = generate(TOKENS[:, :4], 6)
    assert made.tokens.shape == (2, 6)
    assert made.stats.converged.all()
    text = jnp.concatenate([TOKENS[:, :4], made.tokens], axis=1)
    whole = run(model, text[:, :-1])
    np.testing.assert_array_equal(made.tokens, jnp.argmax(whole.logits[:, 3:], axis=-1))
    assert made.memory.length == 9
    np.testing.assert_allclose(made.memory.z[:, -9:], whole.z, atol=1e-4)
    rest = generate(made.tokens[:, :1], 5, memory=run(model, TOKENS[:, :4], memory=model.empty_memory(2)).memory)
    np.testing.assert_array_equal(rest.tokens, made.tokens[:, 1:])
    np.testing.assert_allclose(rest.memory.z, made.memory.z, atol=1e-4)


def test_drawing_tokens():
    model = build(PLAIN)
    prompt = jnp.tile(TOKENS[:1, :2], (500, 1))
    generate = jax.jit(partial(model.generate, rtol=1e-4), static_argnums=1, static_argnames="top_k")
    once = lambda temperature=1.0, **settings: generate(prompt, 1, key=KEY, temperature=temperature, **settings).tokens[
        :, 0
    ]
    p = jax.nn.softmax(run(model, prompt[:1]).logits[0, -1])
    np.testing.assert_allclose(np.bincount(once(), minlength=30) / 500, p, atol=0.08)
    np.testing.assert_array_equal(once(temperature=1e-3), jnp.argmax(p))
    best = jax.lax.top_k(p, 3)[1]
    assert set(np.unique(once(top_k=3, temperature=5.0))) == set(np.asarray(best).tolist())
    np.testing.assert_array_equal(once(), once())


def test_spectral_radius_of_the_bound_map():
    model, z = build(PLAIN), draw(2, 2, 8)
    f = model.bind(TOKENS[:, :2])
    jacobian = jax.jit(jax.jacfwd(f))(z).reshape(2, 16, 2, 16)
    want = [np.abs(np.linalg.eigvals(jacobian[i, :, i])).max() for i in range(2)]
    got = jax.jit(lambda z: model.spectral_radius(TOKENS[:, :2], z, KEY))(z)
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_torch_names_there_and_back():
    for config in (CONFIG, replace(PLAIN, weight_norm=False, tie_tables=False)):
        sd = to_torch_state_dict(build(config))
        model = evaluate(DEQTransformerLM(config, rngs=nnx.Rngs(5)))
        load_torch_state_dict(model, {f"module.{name}": array for name, array in sd.items()})
        chex.assert_trees_all_equal(to_torch_state_dict(model), sd)
    sd = to_torch_state_dict(build(CONFIG))
    sd["crit.out_projs.1.weight"] = sd["crit.out_projs.1.weight"] + 1
    with pytest.raises(
        ValueError, match=r"shared: crit.out_projs.1.weight must be equal to word_emb.emb_projs.1.weight"
    ):
        load_torch_state_dict(build(CONFIG), sd)


def test_tied_tensors_are_one_variable():
    """So that neither an optimiser nor a change of their dtype can part them."""
    names = {entry.name: entry.variable for entry in build(CONFIG).torch_entries()}
    shared = [("out_layers", "emb_layers", 0), ("out_layers", "emb_layers", 2), ("out_projs", "emb_projs", 1)]
    for softmax, embedding, i in shared:
        assert names[f"crit.{softmax}.{i}.weight"] is names[f"word_emb.{embedding}.{i}.weight"]
    assert names["crit.out_projs.0.weight"] is not names["word_emb.emb_projs.0.weight"]
    size = lambda config: sum(x.size for x in jax.tree.leaves(nnx.state(build(config), nnx.Param)))
    tables, projections = 10 * 8 + 10 * 4 + 10 * 2, 8 * 4 + 8 * 2  # of words; of the two tied ones
    assert size(replace(CONFIG, tie_tables=False)) - size(CONFIG) == tables
    assert size(replace(CONFIG, tie_projections=())) - size(CONFIG) == projections


def test_parameters_of_the_paper():
    model = nnx.eval_shape(lambda: DEQTransformerLM(transformer_configs.wt103(), rngs=nnx.Rngs(0)))
    size = lambda tree: sum(x.size for x in jax.tree.leaves(nnx.state(tree, nnx.Param)))
    # Tensors that the reference has apart: tied tables are one parameter, tied projections two.
    entries = [e for e in model.torch_entries() if isinstance(e.variable, nnx.Param)]
    apart = [e for e in entries if not (e.name.startswith("crit.out_layers") and e.name.endswith("weight"))]
    assert sum(e.variable.size for e in apart) == 97_851_488
    assert size(model) == 97_691_888
    assert round(size(model.deq.cell) / 1e6, 2) == 69.75
    for name in ("wt103_reg", "wt103_preln_reg"):
        config = getattr(transformer_configs, name)()
        assert size(nnx.eval_shape(lambda c=config: DEQTransformerLM(c, rngs=nnx.Rngs(0)))) == 97_691_888


@pytest.mark.parametrize("init_std", [0.01, 0.05])
def test_where_weights_start(init_std):
    config = replace(PLAIN, width=64, embed=64, inner=256, init_std=init_std)
    model = DEQTransformerLM(config, rngs=nnx.Rngs(0))
    attention, feed_forward = model.deq.cell.attention, model.deq.cell.feed_forward
    for layer, fan_in in ((attention.inputs, 64), (feed_forward.narrow, 256)):
        kernel = layer.kernel()
        assert 0.95 < jnp.abs(kernel).max() * fan_in**0.5 <= 1.0001
        np.testing.assert_allclose(kernel.std() * fan_in**0.5, 3**-0.5, rtol=0.05)
    for variable in (model.injection.kernel, model.embedding.tables[0], attention.content_bias):
        np.testing.assert_allclose(variable[...].std(), init_std, rtol=0.2)
    assert not feed_forward.widen.layer.bias[...].any()
    assert not model.softmax.biases[0][...].any()


def test_what_it_refuses(unchecked):
    for settings, text in (
        ({"heads": 3}, r"multiple of heads; got width 8 and 3 heads"),
        ({"cutoffs": (20, 10)}, r"cutoffs must increase.*got \(20, 10\) for 30 words"),
        ({"cutoffs": (10, 30)}, r"cutoffs must increase.*below vocab"),
        ({"embed": 3}, r"embed must leave the last of 3 clusters a width of at least 1; got 3 for divisor 2"),
        ({"tie_projections": (True,)}, r"one bool for each of 3 clusters; got \(True,\)"),
        ({"divisor": 1}, r"tie_projections needs projections"),
        ({"dropout": 1.0}, r"dropout must be below 1"),
        ({"keep": "some"}, r"keep must be one of 'all', 'active', 'nothing'; got 'some'"),
        ({"memory": 0}, r"memory must be at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            replace(CONFIG, **settings)
    for settings, text in (
        ({"dtype": "float33"}, "dtype must be the name of a floating dtype.*'float33'"),
        ({"param_dtype": "int32"}, "param_dtype must be the name of a floating dtype.*'int32'"),
        ({"cutoffs": (10.5, 20)}, r"cutoffs must be an int of at least 1; got 10\.5"),
    ):
        with pytest.raises(TypeError, match=text):
            replace(CONFIG, **settings)
    model = build(PLAIN)
    with pytest.raises(ValueError, match=r"targets must be \[2, at most 3\].*got \(2, 9\)"):
        model(TOKENS[:, :3], targets=TOKENS)
    with pytest.raises(ValueError, match=r"tokens must be integers of shape \[batch, length\]; got float32"):
        model(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"memory must be of 2 sequences and width 8; got z of shape \(3, 12, 8\)"):
        model(TOKENS, memory=model.empty_memory(3))
    with pytest.raises(ValueError, match="temperature and top_k need a key"):
        model.generate(TOKENS, 3, top_k=5)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0; got 0"):
        model.generate(TOKENS, 3, key=KEY, temperature=0)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0; got -1"):
        model.generate(TOKENS, 3, key=KEY, temperature=np.float32(-1))
    with pytest.raises(TypeError, match="length must be an int"):
        model.generate(TOKENS, 3.0)
    model.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        model.generate(TOKENS, 3)
