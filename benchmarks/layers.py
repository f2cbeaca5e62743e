"""What the models' layers cost beside their products.

A layer's time is that of a solve with a few steps: with the solver and the residual tests, and in training
mode, so with dropout's masks, but without normalising weights, which a solve does once. Its products are the
same ones in shape and dtype, matrix products or convolutions, each fed by the one before so that none can be
left out, and nothing else: no biases, no rectifiers, no normalisation, no softmax, no transposition, no
resizing and no sums of branches.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from itertools import combinations, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from benchmarks.cases import Plan, Row
from benchmarks.timing import interleave, ratio
from benchmarks.twins import BATCH, LENGTH, SIDE, SMALL
from jaxdeq import solvers
from jaxdeq.models import (
    DEQTransformerConfig,
    DEQTransformerLM,
    MDEQClassifier,
    MDEQConfig,
    mdeq_configs,
    transformer_configs,
)

STEPS = 2  # of a timed solve
ROUNDS = 5  # at most: one takes half a minute
IMAGES = 4  # in a batch


def layer(plan: Plan) -> Iterator[Row]:
    """Time of one application of a model's layer, in that of its matrix products and convolutions alone."""
    config, batch = (replace(SMALL, dropout=0.05), 2) if plan.tiny else (transformer_configs.wt103(), BATCH)
    for pre_norm in (False, True):
        each = replace(config, pre_norm=pre_norm, solver=solvers.Picard())
        name = (
            f"{'pre' if pre_norm else 'post'}-LN {each.width}, inside {each.inner}, {batch} x {LENGTH} + {each.memory}"
        )
        runs = {"layer": solve(each, batch), "products": products(each, batch)}
        times = interleave(runs, min(plan.repetitions, ROUNDS))
        yield Row("layer", name, each.dtype, ratio(times["layer"], times["products"]), 1.1)
    make, images, side = (
        (mdeq_configs.cifar10_tiny, 2, 16) if plan.tiny else (mdeq_configs.imagenet_small, IMAGES, SIDE)
    )
    config = replace(make(), solver=solvers.Picard(), rtol=0.0, max_steps=STEPS)
    runs = {"layer": solve_images(config, images, side), "products": convolutions(config, images, side)}
    times = interleave(runs, min(plan.repetitions, 4 * ROUNDS))
    name = f"{make.__name__}, {images} x {side} x {side}"
    yield Row("layer", name, config.dtype, ratio(times["layer"], times["products"]), 1.1)


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
    """The layer's seven matrix products so many times over, the wide ones in as many parts as there."""
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
            parts = (x @ output).reshape(config.parts, -1, d)
            inside = lax.map(lambda rows: (rows @ widen) @ narrow, parts).reshape(x.shape)
            attended = jnp.einsum("bhqk,bhkd->bhqd", jnp.einsum("bhqd,bhdk->bhqk", q, k), v)
            by_distance = jnp.einsum("bhqd,hdk->bhqk", q, r)
            return inside, x @ inputs, attended, by_distance

        by_distance = jnp.zeros((batch, heads, LENGTH, keys), dtype)
        return lax.fori_loop(0, STEPS, body, (*start, by_distance))

    return lambda: repeat(start, weights, k, r, v)


def solve_images(config: MDEQConfig, batch: int, side: int) -> Callable[[], Any]:
    """Applies the multiscale layer `STEPS` times."""
    deq = MDEQClassifier(replace(config, weight_norm=False), rngs=nnx.Rngs(0)).deq
    graphdef, state = nnx.split(deq)
    size = side >> config.downsample
    x = jax.random.normal(jax.random.key(0), (batch, size, size, config.branches[0].channels))

    @jax.jit
    def run(state):
        z, stats, _ = nnx.merge(graphdef, state)(x)
        return z, stats.steps

    assert (run(state)[1] == STEPS).all(), "converged before the last step that is timed"
    return lambda: run(state)


def convolutions(config: MDEQConfig, batch: int, side: int) -> Callable[[], Any]:
    """The convolutions of the multiscale layer so many times over: of blocks, between branches, and last."""
    draw, size = np.random.default_rng(0).standard_normal, side >> config.downsample
    widths = [branch.channels for branch in config.branches]
    kernel = lambda n, a, b: jnp.asarray(draw((n, n, a, b)) / (n * n * a) ** 0.5, config.dtype)
    blocks = [
        [
            kernel(n, a, b)
            for _ in range(branch.blocks)
            for n, (a, b) in zip(branch.kernels, ((c, k * c), (k * c, c)), strict=True)
        ]
        for branch, c, k in ((branch, branch.channels, config.expansion) for branch in config.branches)
    ]
    downs = {
        (i, j): [kernel(3, a, b) for a, b in pairwise([widths[i]] * (j - i) + [widths[j]])]
        for i, j in combinations(range(len(widths)), 2)
    }
    ups = {(i, j): kernel(1, widths[i], widths[j]) for j, i in combinations(range(len(widths)), 2)}
    lasts = [kernel(1, c, c) for c in widths]
    start = [jnp.asarray(draw((batch, size >> i, size >> i, c)), config.dtype) for i, c in enumerate(widths)]

    def convolve(y, kernel, stride=1):
        edge = (kernel.shape[0] // 2,) * 2
        return lax.conv_general_dilated(
            y, kernel, (stride, stride), (edge, edge), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    @jax.jit
    def repeat(z, blocks, downs, ups, lasts):
        between = []
        for _ in range(STEPS):  # not a loop: XLA compiles convolutions in loops less well on CPU
            z = [reduce(convolve, kernels, y) for kernels, y in zip(blocks, z, strict=True)]
            for (i, _), kernels in downs.items():
                between.append(reduce(lambda y, kernel: convolve(y, kernel, 2), kernels, z[i]))
            between += [convolve(z[i], kernel) for (i, _), kernel in ups.items()]
            z = [convolve(y, kernel) for y, kernel in zip(z, lasts, strict=True)]
        return z, between

    return lambda: repeat(start, blocks, downs, ups, lasts)


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {layer.__name__: layer}
