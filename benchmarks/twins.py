"""DEQs and the explicit models that they are compared with.

On a CPU both are small and have about as many parameters; on a GPU they are the paper's for ImageNet and
WikiText-103, beside ResNet-101 and a Transformer-XL of 18 layers. Tolerances are 0, so that a solve takes its
whole budget.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxdeq import solvers
from jaxdeq.models import (
    DEQTransformerConfig,
    DEQTransformerLM,
    MDEQClassifier,
    ResNet,
    ResNetConfig,
    TransformerXL,
    TransformerXLConfig,
    mdeq_configs,
    resnet101,
    transformer_configs,
    transformer_xl_wt103,
)

LENGTH = 150  # tokens of a segment, as in the paper
BATCH = 14  # sequences a device, as in the paper
SIDE = 224  # of an image of ImageNet, in pixels

SMALL = DEQTransformerConfig(vocab=40, width=16, heads=2, inner=32, embed=16, memory=6)


class Twins(NamedTuple):
    """A DEQ and what it is compared with."""

    name: str
    deq: Callable[[], nnx.Module]
    explicit: Callable[[], nnx.Module]
    budget: int  # evaluations, of the solve and of its adjoint
    inputs: jax.Array  # tokens or images
    targets: jax.Array
    units: int  # images or tokens in a batch
    unit: str
    dtype: str
    target: float  # of the time of a step, at the paper's sizes
    frequency: float  # of steps with the Jacobian penalty, as in the paper's code
    small: bool  # no size of the paper: held to no target, and there is memory to unroll all applications


def pairs(sizes: str) -> list[Twins]:
    if sizes == "gpu":
        return [make(dtype) for make in (imagenet, wikitext) for dtype in ("bfloat16", "float32")]
    return [small_text(sizes == "tiny"), small_images(sizes == "tiny")]


def small_text(tiny: bool) -> Twins:
    batch, length, width, inner = (2, 8, 16, 96) if tiny else (8, 64, 128, 2800)
    common = {"vocab": 200, "width": width, "heads": 4, "embed": width, "memory": length, "dropout": 0.0}
    deq = replace(SMALL, **common, inner=inner, max_steps=3 if tiny else 12)
    explicit = TransformerXLConfig(**common, inner=4 * width, layers=2 if tiny else 4)
    return text(f"language model, {batch} x {length} x {width}", deq, explicit, batch, length)


def small_images(tiny: bool) -> Twins:
    batch = 2 if tiny else 16
    steps = 2 if tiny else 8
    solver = solvers.Broyden(history=steps)  # as long as the budget, as in the paper's models
    deq = replace(mdeq_configs.cifar10_tiny(), solver=solver, max_steps=steps, dropout=0.0)
    explicit = ResNetConfig((1,) if tiny else (2, 2, 2), 10, width=8 if tiny else 16, small_images=True)
    return images(f"images, {batch} x 32 x 32", deq, explicit, batch, 8 if tiny else 32)


def imagenet(dtype: str) -> Twins:
    deq = replace(mdeq_configs.imagenet_small_reg(), dtype=dtype, max_steps=14)
    return images(f"ImageNet, 32 x {SIDE} x {SIDE}, {dtype}", deq, replace(resnet101(), dtype=dtype), 32, SIDE)


def wikitext(dtype: str) -> Twins:
    deq = replace(transformer_configs.wt103_reg(), dtype=dtype, parts=1, memory=LENGTH)
    explicit = replace(transformer_xl_wt103(), dtype=dtype, keep=deq.keep)  # both compute the same anew
    return text(f"WikiText-103, {BATCH} x {LENGTH}, {dtype}", deq, explicit, BATCH, LENGTH)


def text(name: str, deq: Any, explicit: Any, batch: int, length: int) -> Twins:
    tokens = jax.random.randint(jax.random.key(0), (batch, length + 1), 0, deq.vocab)
    builds = building(DEQTransformerLM, deq), lambda: TransformerXL(explicit, rngs=nnx.Rngs(0))
    data, units = (tokens[:, :-1], tokens[:, 1:]), batch * length
    return Twins(name, *builds, deq.max_steps, *data, units, "tokens", deq.dtype, 1.4, 0.35, deq.vocab < 1000)


def images(name: str, deq: Any, explicit: Any, batch: int, side: int) -> Twins:
    pixels = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, deq.classes)
    builds = building(MDEQClassifier, deq), lambda: ResNet(explicit, rngs=nnx.Rngs(0))
    return Twins(name, *builds, deq.max_steps, pixels, labels, batch, "images", deq.dtype, 1.0, 0.08, side < 100)


def building(model: Any, config: Any) -> Callable[[], nnx.Module]:
    adjoint = replace(config.adjoint, rtol=0.0, max_steps=config.max_steps)
    return lambda: model(replace(config, rtol=0.0, adjoint=adjoint), rngs=nnx.Rngs(0))
