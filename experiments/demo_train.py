"""Training and measuring the demo's model: pure functions of weights and data."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxdeq
from experiments.data import Images
from experiments.demo_config import Config
from experiments.demo_model import CLASSES, Classifier

MEASURED = 100  # test images whose convergence is looked at
SHOWN = 30  # evaluations of the cell there


class Training(NamedTuple):
    """All that changes while a model is trained."""

    params: Any
    moments: Any  # the optimiser's
    step: jax.Array


class Metrics(NamedTuple):
    """One training step's."""

    loss: jax.Array  # cross-entropy
    accuracy: jax.Array
    penalty: jax.Array  # NaN in a step without
    steps: jax.Array  # forward
    residual: jax.Array
    backward_steps: jax.Array
    backward_residual: jax.Array


def start(config: Config) -> tuple[nnx.GraphDef, Training]:
    """The model's structure, and its state before the first step."""
    model = Classifier(
        config.channels,
        config.dropout,
        nnx.Rngs(config.seed),
        adjoint=jaxdeq.adjoints.Implicit(rtol=config.backward_rtol, max_steps=config.backward_steps),
        rtol=config.rtol,
        max_steps=config.max_steps,
    )
    graphdef, params = nnx.split(model)
    return graphdef, Training(params, optimizer(config).init(params), jnp.int32(0))


def optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW; the rate rises for a fifth of the training, then falls along a cosine."""
    total = steps_per_epoch(config) * (config.warmup + config.epochs)
    rate = optax.cosine_onecycle_schedule(total, config.rate, pct_start=0.2, div_factor=10)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=config.decay))


def steps_per_epoch(config: Config) -> int:
    return config.train_images // config.batch


def batches(config: Config, data: Images, epoch: int) -> Iterator[Images]:
    """One epoch in an order of its own."""
    order = np.random.default_rng((config.seed, epoch)).permutation(len(data.images))
    for i in range(steps_per_epoch(config)):
        chosen = order[i * config.batch : (i + 1) * config.batch]
        yield Images(data.images[chosen], data.labels[chosen])


def penalised_steps(config: Config, epoch: int, frequency: float) -> np.ndarray:
    """Which of an epoch's steps add the penalty: two compiled steps, so that only these pay for it.

    A `lax.cond` in one compiled step would do the same; XLA's CPU backend, however, is slow with
    the transposed convolutions of a gradient inside a branch.
    """
    return np.random.default_rng((config.seed, epoch, 1)).random(steps_per_epoch(config)) < frequency


@partial(jax.jit, static_argnames=("config", "graphdef", "warmup", "penalised"))
def step(
    config: Config, graphdef: nnx.GraphDef, training: Training, batch: Images, *, warmup: bool, penalised: bool
) -> tuple[Training, Metrics]:
    """One step of training. The gradient with respect to `tap` tells how the backward solve went."""
    key = jax.random.fold_in(jax.random.key(config.seed), training.step)
    tap = jaxdeq.BackwardStats.empty()
    objective = partial(warmup_loss, config) if warmup else partial(loss, config, penalised)
    differentiate = jax.grad(partial(objective, graphdef), argnums=(0, 1), has_aux=True)
    (grads, backward), metrics = differentiate(training.params, tap, batch, key)
    updates, moments = optimizer(config).update(grads, training.moments, training.params)
    params = optax.apply_updates(training.params, updates)
    metrics = metrics._replace(backward_steps=backward.steps, backward_residual=backward.residual)
    return Training(params, moments, training.step + 1), metrics


def loss(config, penalised, graphdef, params, tap, batch, key):
    """Cross-entropy at the equilibrium, and the Jacobian penalty if this step adds it."""
    model = nnx.merge(graphdef, params)
    image_key, dropout_key, probe_key = jax.random.split(key, 3)
    x = model.inject(augment(image_key, batch.images))
    z, stats, penalty = model.deq(x, tap=tap, key=probe_key if penalised else None)
    entropy, accuracy = score(config, model.classify(z, dropout_key), batch.labels)
    shown = penalty if penalised else jnp.float32(jnp.nan)
    metrics = Metrics(entropy, accuracy, shown, stats.steps, stats.residual, tap.steps, tap.residual)
    return entropy + (config.penalty * penalty if penalised else 0.0), metrics


def warmup_loss(config, graphdef, params, tap, batch, key):
    """Cross-entropy after a few applications of the cell."""
    image_key, dropout_key = jax.random.split(key)
    model = nnx.merge(graphdef, params)
    logits = model.unrolled(augment(image_key, batch.images), config.unroll, dropout_key)
    entropy, accuracy = score(config, logits, batch.labels)
    nan = jnp.float32(jnp.nan)
    return entropy, Metrics(entropy, accuracy, nan, jnp.int32(config.unroll), nan, tap.steps, nan)


def score(config, logits, labels):
    targets = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), config.smoothing)
    entropy = optax.softmax_cross_entropy(logits, targets).mean()
    return entropy, jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def augment(key, images):
    """Mirrors half of the images, and shifts each by up to one pixel."""
    mirror_key, shift_key = jax.random.split(key)
    count, *size = images.shape
    coin = jax.random.bernoulli(mirror_key, 0.5, (count, 1, 1))
    images = jnp.where(coin, images[:, :, ::-1], images)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1)))
    corner = jax.random.randint(shift_key, (count, 2), 0, 3)
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, corner, size))(padded, corner)


@partial(jax.jit, static_argnames="graphdef")
def evaluate(graphdef: nnx.GraphDef, params: Any, batch: Images) -> dict[str, jax.Array]:
    """Tests on a batch, at the equilibrium."""
    model = nnx.merge(graphdef, params)
    model.eval()
    logits, (_, stats, _) = model(batch.images)
    right = jnp.argmax(logits, axis=-1) == batch.labels
    return {"test_accuracy": jnp.mean(right), "test_steps": stats.steps, "test_residual": stats.residual}


def test(config: Config, graphdef: nnx.GraphDef, params: Any, data: Images) -> dict[str, float]:
    """Means over the test set, batch by batch."""
    size = config.batch
    batches = [Images(data.images[i : i + size], data.labels[i : i + size]) for i in range(0, len(data.images), size)]
    parts = [evaluate(graphdef, params, batch) for batch in batches]
    weights = [len(batch.images) for batch in batches]
    return {name: float(np.average([part[name] for part in parts], weights=weights)) for name in parts[0]}


@partial(jax.jit, static_argnames="graphdef")
def _convergence(graphdef, params, images):
    model = nnx.merge(graphdef, params)
    model.eval()
    x = model.inject(images)
    f, z0 = model.deq.bind(x), model.deq.initial_state(x)
    traces = {
        type(solver).__name__: jaxdeq.fixed_point(f, z0, solver=solver, rtol=0.0, max_steps=SHOWN, trace=SHOWN)
        for solver in (jaxdeq.solvers.Anderson(), jaxdeq.solvers.Picard())
    }
    z = traces["Anderson"].z
    radius = jaxdeq.spectral_radius(f, z, jax.random.key(0), batched=True)
    return jnp.mean(radius), {name: solution.stats.trace for name, solution in traces.items()}


def convergence(graphdef: nnx.GraphDef, params: Any, images: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """How well the equilibria of some test images can be found.

    Returns:
      The spectral radius of the cell's Jacobian, a mean over the images; and by solver the
      relative residual after each evaluation.
    """
    radius, traces = _convergence(graphdef, params, images[:MEASURED])
    return float(radius), {name: np.asarray(trace) for name, trace in traces.items()}
