"""How much memory a training step of the paper's models takes; compiled, not run."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.cases import Plan, Row
from benchmarks.timing import exactly
from benchmarks.twins import BATCH, LENGTH, SIDE, SMALL
from jaxdeq.models import (
    DEQTransformerLM,
    LMConfig,
    MDEQClassifier,
    ResNet,
    ResNetConfig,
    TransformerXL,
    TransformerXLConfig,
    mdeq_configs,
    resnet50,
    resnet101,
    transformer_configs,
    transformer_xl_wt103,
)


def training(plan: Plan) -> Iterator[Row]:
    """Temporary bytes of a training step's gradient, in those of a model of layers; compiled, not run."""
    text = SMALL if plan.tiny else replace(transformer_configs.wt103_reg(), memory=LENGTH)
    layers = TransformerXLConfig(layers=18, **common(SMALL)) if plan.tiny else transformer_xl_wt103()
    layers = replace(layers, keep=text.keep, parts=text.parts)  # both compute parts of the wide layer again
    unit = temporaries(*language(TransformerXL, layers))
    for budget in (text.max_steps, 2 * text.max_steps):
        size = temporaries(*language(DEQTransformerLM, replace(text, max_steps=budget))) / unit
        name = f"{BATCH} x {LENGTH} + {text.memory}, beside a Transformer-XL of {layers.layers} layers"
        yield Row("training", name, f"DEQ-Transformer, {budget} steps", exactly(size), 0.5)
    pixels = (2, 16, 16, 3) if plan.tiny else (2 * BATCH, SIDE, SIDE, 3)
    image = mdeq_configs.cifar10_tiny() if plan.tiny else mdeq_configs.imagenet_small_reg()
    small = ResNetConfig((1,), 10, width=8, small_images=True)
    sizes = {
        budget: temporaries(*vision(MDEQClassifier, replace(image, max_steps=budget), pixels))
        for budget in (image.max_steps, 2 * image.max_steps)
    }
    for beside, target in [(small, None)] if plan.tiny else [(resnet101(), 0.5), (resnet50(), None)]:
        unit = temporaries(*vision(ResNet, beside, pixels))
        name = f"{' x '.join(map(str, pixels[:-1]))}, beside a ResNet of {millions(ResNet, beside)} M parameters"
        for budget, size in sizes.items():
            contender = f"MDEQ of {millions(MDEQClassifier, image)} M, {budget} steps"
            yield Row("training", name, contender, exactly(size / unit), target)


def millions(build: Callable[..., Any], config: Any) -> str:
    """Parameters of a model."""
    model = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    return f"{sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) / 1e6:.1f}"


def common(config: LMConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(LMConfig)}


def language(build: Callable[..., Any], config: LMConfig) -> tuple[Any, ...]:
    """A model, its loss, and what that is a function of, but for the numbers."""
    model = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    memory = jax.eval_shape(lambda: model.empty_memory(BATCH))
    loss = lambda model, tokens, memory: jnp.mean(model(tokens, targets=tokens, memory=memory).losses)
    return model, loss, tokens, memory


def vision(build: Callable[..., Any], config: Any, pixels: tuple[int, ...]) -> tuple[Any, ...]:
    """Likewise, of a classifier of images."""
    model = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss = lambda model, images, labels: jnp.mean(cross_entropy(model(images).logits, labels))
    return model, loss, jax.ShapeDtypeStruct(pixels, jnp.float32), jax.ShapeDtypeStruct(pixels[:1], jnp.int32)


def temporaries(model: Any, loss: Callable[..., Any], *inputs: Any) -> int:
    """Bytes that the compiled gradient takes beside parameters, inputs and results."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    of = lambda params, rest, *inputs: loss(nnx.merge(graphdef, params, rest, copy=True), *inputs)
    compiled = jax.jit(jax.value_and_grad(of)).lower(params, rest, *inputs).compile()
    return compiled.memory_analysis().temp_size_in_bytes


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {training.__name__: training}
