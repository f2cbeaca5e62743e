"""Whole training steps of models beside those of explicit ones: forward, backward and Adam, on any device."""

import gc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.cases import Plan, Row
from benchmarks.timing import exactly, interleave, ratio
from benchmarks.twins import Twins, pairs

AVERAGE = "DEQ, penalty at its frequency"
RATE = 1e-9  # of learning: the models stay as they were made, and what is timed with them
PEAKS = {  # dense FLOP/s of a device, by how its kind begins: bfloat16, and TF32 for products of float32
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989e12, "float32": 494e12},
    "NVIDIA H100 PCIe": {"bfloat16": 756e12, "float32": 378e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float32": 494e12},
    "NVIDIA A100": {"bfloat16": 312e12, "float32": 156e12},
    "NVIDIA L4": {"bfloat16": 121e12, "float32": 60e12},
}


class Step(NamedTuple):
    """A training step, compiled; every call goes on from the one before."""

    run: Callable[[], Any]
    temporaries: int  # bytes
    peak: int | None  # bytes that the device held beyond those before; None: not told, or a step before took more


class Measured(NamedTuple):
    steps: dict[str, Step]  # the explicit model's last, as in the times
    times: dict[str, Any]  # seconds
    flops: dict[str, float]  # of the model, without what is computed again; empty for unknown devices


def training_step(plan: Plan) -> Iterator[Row]:
    """Time of a whole training step, in that of the explicit model's."""
    for twins, found in every(plan):
        *ours, other = found.times
        for name in ours:
            each = ratio(found.times[name], found.times[other])
            yield Row(
                "training_step", twins.name, name, each, twins.target if name == AVERAGE and not twins.small else None
            )


def step_memory(plan: Plan) -> Iterator[Row]:
    """Temporary bytes of a whole training step, in those of the explicit model's; not a time."""
    for twins, found in every(plan):
        *ours, other = found.steps
        for name in ours:
            size = exactly(found.steps[name].temporaries / found.steps[other].temporaries)
            yield Row("step_memory", twins.name, name, size, 0.5 if name == "DEQ" and not twins.small else None)


def penalty(plan: Plan) -> Iterator[Row]:
    """Time of a training step with the Jacobian penalty, in that of one without, after as many evaluations."""
    for twins, found in every(plan):
        for name, target in ((AVERAGE, 1.1), ("DEQ with penalty", None)):
            yield Row("penalty", twins.name, name, ratio(found.times[name], found.times["DEQ"]), target)


def rate(plan: Plan) -> Iterator[Row]:
    """Images or tokens a second in training: a rate of this machine, of which more is better."""
    for twins, found in every(plan):
        for name, times in found.times.items():
            yield Row("rate", twins.name, f"{name}, {twins.unit}", ratio(twins.units, times), None, more=True)


def utilisation(plan: Plan) -> Iterator[Row]:
    """Percent of the device's peak FLOP/s, of which more is better; only for devices whose peak is known."""
    for twins, found in every(plan) if peak_flops() else ():
        for name, flops in found.flops.items():
            used = ratio(100 * flops / peak_flops()[twins.dtype], found.times[name])
            yield Row("utilisation", twins.name, name, used, None, more=True)


def peak_memory(plan: Plan) -> Iterator[Row]:
    """GiB that a training step adds to what the device holds; only where it tells, and no step before took more."""
    for twins, found in every(plan):
        for name, step in found.steps.items():
            if step.peak is not None:
                yield Row("peak_memory", twins.name, name, exactly(step.peak / 2**30), None)


MEASURED: dict[str, Measured] = {}  # by pair: every case reads the same measurements


def every(plan: Plan) -> Iterator[tuple[Twins, Measured]]:
    for twins in pairs(plan.sizes):
        if twins.name not in MEASURED:
            MEASURED[twins.name] = measure(twins, plan.repetitions)
            gc.collect()  # the models
        yield twins, MEASURED[twins.name]


def measure(twins: Twins, repetitions: int) -> Measured:
    """All steps of one pair, in turns."""
    programs = {
        "DEQ": (twins.deq, {}),
        "DEQ with penalty": (twins.deq, {"key": jax.random.key(1)}),
        "DEQ, unrolled": (twins.deq, {"unroll": twins.budget}),
        "explicit": (twins.explicit, {}),
    }
    if not twins.small:
        del programs["DEQ, unrolled"]
    steps = {name: step(build, twins, **options) for name, (build, options) in programs.items()}
    times = interleave({name: each.run for name, each in steps.items()}, repetitions)
    explicit = times.pop("explicit")
    average = twins.frequency * times["DEQ with penalty"] + (1 - twins.frequency) * times["DEQ"]
    times |= {AVERAGE: average, "explicit": explicit}
    flops = model_flops(twins) if peak_flops() else {}
    return Measured({name: each._replace(run=lambda: None) for name, each in steps.items()}, times, flops)


def step(build: Callable[[], nnx.Module], twins: Twins, **options: Any) -> Step:
    before = memory("bytes_in_use"), memory("peak_bytes_in_use")
    lowered, state = program(build, twins, **options)
    compiled = lowered.compile()

    def run() -> Any:
        nonlocal state
        state = compiled(state, twins.inputs, twins.targets)
        return state

    jax.block_until_ready(run())
    after = memory("peak_bytes_in_use")
    peak = after - before[0] if after > before[1] else None
    return Step(run, compiled.memory_analysis().temp_size_in_bytes, peak)


def program(build: Callable[[], nnx.Module], twins: Twins, **options: Any) -> tuple[Any, Any]:
    """A training step, lowered, and the state that it takes over: parameters, Adam's, and all else of the model."""
    graphdef, params, rest = nnx.split(build(), nnx.Param, ...)
    optimizer = optax.adam(RATE)

    def loss(params, rest, inputs, targets):
        model: Any = nnx.merge(graphdef, params, rest, copy=True)
        if twins.unit == "tokens":
            out = model(inputs, targets=targets, memory=model.empty_memory(len(inputs)), **options)
            losses = out.losses
        else:
            out = model(inputs, **options)
            losses = optax.softmax_cross_entropy_with_integer_labels(out.logits, targets)
        total = jnp.mean(losses) + (0.0 if out.penalty is None else out.penalty)
        return total, nnx.split(model, nnx.Param, ...)[2]

    def update(state, inputs, targets):
        params, moments, rest = state
        grads, rest = jax.grad(loss, has_aux=True)(params, rest, inputs, targets)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, rest

    params, rest = jax.tree.map(jnp.copy, (params, rest))  # donated
    state = params, optimizer.init(params), rest
    with jax.numpy_dtype_promotion("standard"):  # Adam's count is an integer
        return jax.jit(update, donate_argnums=0).lower(state, twins.inputs, twins.targets), state


def model_flops(twins: Twins) -> dict[str, float]:
    """Of a step, as XLA counts them before it optimises.

    It counts a loop's body once, so a DEQ's are put together: applying its layer once more, unrolled, adds
    three times the products of one evaluation, and a solve and its adjoint make `2 * budget` of these.
    """
    count = lambda build, **options: program(build, twins, **options)[0].cost_analysis()["flops"]
    once, twice = (count(twins.deq, unroll=n) for n in (1, 2))
    return {"DEQ": once + (2 * twins.budget - 2) * (twice - once) / 3, "explicit": count(twins.explicit)}


def memory(name: str) -> int:
    """Of the device; 0 if it does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get(name, 0)


def peak_flops() -> dict[str, float]:
    kind = jax.devices()[0].device_kind
    return next((flops for name, flops in PEAKS.items() if kind.startswith(name)), {})


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {
    case.__name__: case for case in (training_step, step_memory, penalty, rate, utilisation, peak_memory)
}
