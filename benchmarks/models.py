"""What the models' layers cost beside their matrix products, and how much memory a training step takes.

A layer's time is that of a solve with a few steps: with the solver and the residual tests, and in training
mode, so with dropout's masks, but without normalising weights, which a solve does once. Its products are the
same ones in shape and dtype, each fed by the one before so that none can be left out, and nothing else: no
biases, no rectifiers, no normalisation, no softmax, no transposition.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from benchmarks.cases import Plan, Row
from benchmarks.timing import Ratio, interleave, ratio
from jaxdeq import solvers
from jaxdeq.models import (
    DEQTransformerConfig,
    DEQTransformerLM,
    LMConfig,
    TransformerXL,
    TransformerXLConfig,
    transformer_configs,
    transformer_xl_wt103,
)

LENGTH = 150  # tokens of a segment, as in the paper
BATCH = 14  # sequences a device, as in the paper
STEPS = 2  # of a timed solve
ROUNDS = 5  # at most: one takes half a minute

SMALL = DEQTransformerConfig(vocab=40, width=16, heads=2, inner=32, embed=16, memory=6)


def layer(plan: Plan) -> Iterator[Row]:
    """Time of one application of a model's layer, in that of its matrix products alone."""
    config, batch = (replace(SMALL, dropout=0.05), 2) if plan.tiny else (transformer_configs.wt103(), BATCH)
    for pre_norm in (False, True):
        each = replace(config, pre_norm=pre_norm, solver=solvers.Picard())
        name = (
            f"{'pre' if pre_norm else 'post'}-LN {each.width}, inside {each.inner}, {batch} x {LENGTH} + {each.memory}"
        )
        runs = {"layer": solve(each, batch), "products": products(each, batch)}
        times = interleave(runs, min(plan.repetitions, ROUNDS))
        yield Row("layer", name, each.dtype, ratio(times["layer"], times["products"]), 1.1)


def training(plan: Plan) -> Iterator[Row]:
    """Temporary bytes of a training step's gradient, in those of a Transformer-XL of 18 layers; compiled, not run."""
    config = SMALL if plan.tiny else replace(transformer_configs.wt103_reg(), memory=LENGTH)
    baseline = TransformerXLConfig(layers=18, **common(SMALL)) if plan.tiny else transformer_xl_wt103()
    unit = temporaries(TransformerXL, baseline)
    for budget in (config.max_steps, 2 * config.max_steps):
        size = temporaries(DEQTransformerLM, replace(config, max_steps=budget)) / unit
        name = f"{BATCH} x {LENGTH} + {config.memory}"
        yield Row("training", name, f"DEQ-Transformer, {budget} steps", Ratio(size, size, size, size), 0.5)


def common(config: LMConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(LMConfig)}


def temporaries(build: Callable[..., Any], config: LMConfig) -> int:
    model = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, tokens, memory):
        return jnp.mean(nnx.merge(graphdef, params, rest, copy=True)(tokens, targets=tokens, memory=memory).losses)

    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    memory = jax.eval_shape(lambda: model.empty_memory(BATCH))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(params, rest, tokens, memory).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def solve(config: DEQTransformerConfig, batch: int) -> Callable[[], Any]:
    """Applies the layer `STEPS` times, with a full memory."""
    few = replace(config, weight_norm=False, vocab=100, cutoffs=(), divisor=1, tie_projections=())
    model = DEQTransformerLM(few, rngs=nnx.Rngs(0))
    memory = model.empty_memory(batch)
    draw = np.random.default_rng(0).standard_normal
    past = memory._replace(z=jnp.asarray(draw(memory.z.shape), memory.z.dtype), length=jnp.int32(config.memory))
    graphdef, state = nnx.split(model)
    tokens = jnp.arange(batch * LENGTH).reshape(batch, LENGTH) % 100

    @jax.jit
    def run(state):
        out = nnx.merge(graphdef, state)(tokens, targets=tokens[:, :1], memory=past, rtol=0.0, max_steps=STEPS)
        return out.z, out.stats.steps

    assert (run(state)[1] == STEPS).all(), "converged before the last step that is timed"
    return lambda: run(state)


def products(config: DEQTransformerConfig, batch: int) -> Callable[[], Any]:
    """The layer's seven matrix products so many times over."""
    d, heads, keys = config.width, config.heads, LENGTH + config.memory
    dtype, draw = jnp.dtype(config.dtype), np.random.default_rng(0).standard_normal
    matrix = lambda *shape: jnp.asarray(draw(shape) / shape[-2] ** 0.5, dtype)
    weights = matrix(d, 3 * d), matrix(d, d), matrix(d, config.inner), matrix(config.inner, d)
    each = d // heads
    k, r, v = matrix(batch, heads, each, keys), matrix(heads, each, keys), matrix(batch, heads, keys, each)
    start = (matrix(batch, LENGTH, d), matrix(batch, LENGTH, 3 * d), matrix(batch, heads, LENGTH, each))

    @jax.jit
    def repeat(start, weights, k, r, v):
        def body(_, carry):
            x, _, q, _ = carry
            inputs, output, widen, narrow = weights
            attended = jnp.einsum("bhqk,bhkd->bhqd", jnp.einsum("bhqd,bhdk->bhqk", q, k), v)
            by_distance = jnp.einsum("bhqd,hdk->bhqk", q, r)
            return ((x @ output) @ widen) @ narrow, x @ inputs, attended, by_distance

        by_distance = jnp.zeros((batch, heads, LENGTH, keys), dtype)
        return lax.fori_loop(0, STEPS, body, (*start, by_distance))

    return lambda: repeat(start, weights, k, r, v)


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {case.__name__: case for case in (layer, training)}
