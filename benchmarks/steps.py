"""Whole training steps of models beside those of explicit ones: forward, backward and Adam, on any device.

On a CPU the models are small, and of about as many parameters; on a GPU they are the paper's for ImageNet
and WikiText-103 beside ResNet-101 and the Transformer-XL of 18 layers. Tolerances are 0, so that a solve
takes its whole budget in every step. Learning rates are so small that the models stay as they were made.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks import models, problems
from benchmarks.cases import Plan, Row
from benchmarks.timing import Ratio, exactly, interleave, ratio
from jaxdeq import fixed_point, solvers
from jaxdeq.models import (
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

FREQUENCY = 0.35  # of steps with the Jacobian penalty, as in the paper
RATE = 1e-9
PEAKS = {  # dense FLOP/s of a device, by what its kind begins with: bfloat16, and TF32, which float32 products use
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989e12, "float32": 494e12},
    "NVIDIA H100 PCIe": {"bfloat16": 756e12, "float32": 378e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float32": 494e12},
    "NVIDIA A100": {"bfloat16": 312e12, "float32": 156e12},
    "NVIDIA L4": {"bfloat16": 121e12, "float32": 60e12},
}


class Twins(NamedTuple):
    """A DEQ and what it is compared with."""

    name: str
    build: dict[str, Callable[[], nnx.Module]]  # the DEQ first, then the explicit model
    batch: tuple[jax.Array, jax.Array]  # tokens or images, and targets
    units: int  # images or tokens in it
    unit: str
    dtype: str
    target: float  # of the time


class Trained(NamedTuple):
    """A step, compiled."""

    run: Callable[[], Any]
    temporaries: int  # bytes
    peak: int | None  # bytes that the device held beyond what it did before; None: not told
    flops: float | None  # of the model, without what is computed again


class Measured(NamedTuple):
    times: dict[str, Any]  # seconds, by name of the contender
    steps: dict[str, Trained]


def training_step(plan: Plan) -> Iterator[Row]:
    """Time of a whole training step, in that of the explicit model's."""
    for twins in pairs(plan.sizes):
        times = measured(twins, plan.repetitions).times
        *ours, other = times
        for name in ours:
            target = twins.target if name.startswith("DEQ, ") else None
            yield Row("training_step", twins.name, name, ratio(times[name], times[other]), target)


def step_memory(plan: Plan) -> Iterator[Row]:
    """Temporary bytes of a whole training step, in those of the explicit model's; not a time."""
    for twins in pairs(plan.sizes):
        steps = measured(twins, plan.repetitions).steps
        *ours, other = steps
        for name in ours:
            size = exactly(steps[name].temporaries / steps[other].temporaries)
            yield Row("step_memory", twins.name, name, size, 0.5 if name == "DEQ" else None)


def penalty(plan: Plan) -> Iterator[Row]:
    """Time of a training step with the Jacobian penalty in 35 % of them, in that of one without; equal evaluations."""
    for twins in pairs(plan.sizes):
        times = measured(twins, plan.repetitions).times
        yield Row("penalty", twins.name, "on average", ratio(times["DEQ, penalty in 35 %"], times["DEQ"]), 1.1)
        yield Row("penalty", twins.name, "step with it", ratio(times["DEQ with penalty"], times["DEQ"]), None)


def rate(plan: Plan) -> Iterator[Row]:
    """Images or tokens a second in training; a rate of this machine, more is better."""
    for twins in pairs(plan.sizes):
        for name, times in measured(twins, plan.repetitions).times.items():
            yield Row("rate", twins.name, f"{name}, {twins.unit} a second", ratio(twins.units, times), None, more=True)


def utilisation(plan: Plan) -> Iterator[Row]:
    """Percent of the device's peak FLOP/s that the model's own make; only for devices whose peak is known."""
    peak = next((v for kind, v in PEAKS.items() if jax.devices()[0].device_kind.startswith(kind)), None)
    for twins in pairs(plan.sizes) if peak else ():
        times, steps = measured(twins, plan.repetitions)
        for name, step in steps.items():
            if step.flops:
                used = ratio(100 * step.flops / peak[twins.dtype], times[name])
                yield Row("utilisation", twins.name, name, used, None, more=True)


def peak_memory(plan: Plan) -> Iterator[Row]:
    """GiB that a training step adds to what the device holds; only if the device tells, and no step before took more."""
    for twins in pairs(plan.sizes):
        for name, step in measured(twins, plan.repetitions).steps.items():
            if step.peak is not None:
                yield Row("peak_memory", twins.name, name, exactly(step.peak / 2**30), None)


def bare_loop(plan: Plan) -> Iterator[Row]:
    """Time of a solve of 20 steps, in that of a loop that applies `f` as often and does nothing else."""
    sizes = {"tiny": [(4, 8)], "laptop": [(64, 1024)], "gpu": [(64, 1024), (1024, 1024), (1024, 4096)]}
    for batch, width in sizes[plan.sizes]:
        problem, count = problems.dense(batch, width), 20
        loop = jax.jit(lambda z, p, f=problem.f, n=count: jax.lax.fori_loop(0, n, lambda _, z: f(z, p), z))
        runs = {"loop": partial(loop, problem.z0, problem.params)}
        for solver in (solvers.Picard(), solvers.Anderson(), solvers.Broyden(10)):
            never = problem._replace(f=lambda z, p, f=problem.f: f(z, p) + 1e-3 * jnp.sign(z))
            run = jax.jit(lambda z, p, s=solver, f=never.f: fixed_point(f, z, p, solver=s, rtol=0.0, max_steps=20))
            runs[type(solver).__name__] = partial(run, problem.z0, problem.params)
        times = interleave(runs, plan.repetitions)
        for name in list(runs)[1:]:
            made = int(runs[name]().stats.steps)
            each = ratio(times[name] / made, times["loop"] / count)
            yield Row("bare_loop", problem.name, name, each, 1.1, made)


def pairs(sizes: str) -> list[Twins]:
    if sizes == "gpu":
        return [make(dtype) for make in (imagenet, wikitext) for dtype in ("bfloat16", "float32")]
    return [small_text(sizes == "tiny"), small_images(sizes == "tiny")]


def small_text(tiny: bool) -> Twins:
    batch, length, width, inner = (2, 8, 16, 96) if tiny else (8, 64, 128, 2432)
    common = {"vocab": 200, "width": width, "heads": 4, "embed": width, "memory": length, "dropout": 0.0}
    deq = replace(models.SMALL, **common, inner=inner, max_steps=3 if tiny else 12)
    explicit = TransformerXLConfig(**common, inner=4 * width, layers=2 if tiny else 4)
    return text(f"language model, {batch} x {length} x {width}", deq, explicit, batch, length)


def small_images(tiny: bool) -> Twins:
    batch = 2 if tiny else 16
    deq = replace(mdeq_configs.cifar10_tiny(), max_steps=2 if tiny else 8, dropout=0.0)
    explicit = ResNetConfig((1,) if tiny else (2, 2, 2), 10, width=8 if tiny else 16, small_images=True)
    return images(f"images, {batch} x 32 x 32", deq, explicit, batch, 8 if tiny else 32)


def imagenet(dtype: str) -> Twins:
    deq = replace(mdeq_configs.imagenet_small_reg(), dtype=dtype, max_steps=14)
    return images(f"ImageNet, 32 x 224 x 224, {dtype}", deq, replace(resnet101(), dtype=dtype), 32, 224, 1.0)


def wikitext(dtype: str) -> Twins:
    deq = replace(transformer_configs.wt103_reg(), dtype=dtype, parts=1)
    explicit = replace(transformer_xl_wt103(), dtype=dtype)
    return text(f"WikiText-103, {models.BATCH} x {models.LENGTH}, {dtype}", deq, explicit, models.BATCH, models.LENGTH)


def text(name: str, deq: Any, explicit: Any, batch: int, length: int, target: float = 1.4) -> Twins:
    tokens = jax.random.randint(jax.random.key(0), (batch, length + 1), 0, deq.vocab)
    build = both(DEQTransformerLM, deq, TransformerXL, explicit)
    return Twins(name, build, (tokens[:, :-1], tokens[:, 1:]), batch * length, "tokens", deq.dtype, target)


def images(name: str, deq: Any, explicit: Any, batch: int, side: int, target: float = 1.4) -> Twins:
    pixels = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, deq.classes)
    build = both(MDEQClassifier, deq, ResNet, explicit)
    return Twins(name, build, (pixels, labels), batch, "images", deq.dtype, target)


def both(model: Any, deq: Any, other: Any, explicit: Any) -> dict[str, Callable[[], nnx.Module]]:
    adjoint = replace(deq.adjoint, rtol=0.0, max_steps=deq.max_steps)
    deq = replace(deq, rtol=0.0, adjoint=adjoint)
    return {
        "DEQ": lambda: model(deq, rngs=nnx.Rngs(0)),
        other.__name__: lambda: other(explicit, rngs=nnx.Rngs(0)),
    }


_MEASURED: dict[str, Measured] = {}


def measured(twins: Twins, repetitions: int) -> Measured:
    """Compiles and times all steps of one pair once for all cases, and lets go of them."""
    if twins.name not in _MEASURED:
        (deq, build), (other, explicit) = twins.build.items()
        unrolled = build().config.max_steps
        steps = {
            deq: compiled(build, twins),
            f"{deq} with penalty": compiled(build, twins, penalty=True),
        }
        if not twins.name.startswith(("ImageNet", "WikiText")):  # more memory than a device has
            steps[f"{deq}'s layer, unrolled"] = compiled(build, twins, unroll=unrolled)
        steps[other] = compiled(explicit, twins)
        times = interleave({name: step.run for name, step in steps.items()}, repetitions)
        mixture = FREQUENCY * times[f"{deq} with penalty"] + (1 - FREQUENCY) * times[deq]
        last = times.pop(other)
        _MEASURED[twins.name] = Measured(times | {"DEQ, penalty in 35 %": mixture, other: last}, steps)
        for name, step in steps.items():
            steps[name] = step._replace(run=lambda: None)
        jax.clear_caches()
        gc.collect()
    return _MEASURED[twins.name]
