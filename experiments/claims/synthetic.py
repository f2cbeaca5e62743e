"""A layer with one number as its state: what the penalty does to the map, and to its convergence."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxdeq
from experiments.claims import synthetic_figure
from experiments.claims.table import Table
from jaxdeq import solvers

SHOWN = 30  # evaluations, in the figure
MOST = 100  # evaluations, to count how many a tolerance takes


@dataclass(frozen=True)
class Synthetic:
    """The equilibrium of `f(z; x) = w2 . relu(w1 z + u x + b)` learns a polynomial with a sine, from noisy values.

    Trained with at most 6 evaluations a solve, with and without the penalty. What the paper leaves open is chosen:
    x is uniform in -1 to 1, the noise's standard deviation is 0.05, and 5 x is subtracted (its text has both signs).

    References:
      Bai, Koltun & Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", 2021, section 5.1.
    """

    penalties: tuple[float, ...] = (0.0, 2.0, 4.0)  # weights to compare
    seeds: tuple[int, ...] = (0, 1, 2)  # for weights, data and draws
    frequency: float = 0.4  # share of the steps that add the penalty
    hidden: int = 50  # units; four weights each
    examples: int = 4096  # to train on
    test: int = 1000  # to test on
    epochs: int = 50
    batch: int = 64
    rate: float = 1e-3  # of Adam, falling along a cosine
    rtol: float = 1e-3  # of a forward solve
    max_steps: int = 6  # evaluations of a forward solve
    backward_rtol: float = 1e-4  # of a backward solve
    backward_steps: int = 6  # products of a backward solve
    quick: bool = False  # a smoke test: two epochs

    def run(self, figure: Path) -> Table:
        """Trains, measures, and draws the figure."""
        if self.quick:
            return replace(self, epochs=2, quick=False).run(figure)
        x, y = data(jax.random.key(1_000_000), self.test)
        train_one = jax.jit(partial(train, self))
        weights = {p: [train_one(jnp.float32(p), jnp.int32(seed)) for seed in self.seeds] for p in self.penalties}
        found = {p: [measure(self, each, x, y) for each in trained] for p, trained in weights.items()}
        synthetic_figure.draw(figure, layer, weights, found, x, y)
        rows = []
        for penalty, numbers in found.items():
            by_seed = [[float(number) for number in one[: len(COLUMNS) - 1]] for one in numbers]
            rows.append((penalty, *zip(*by_seed, strict=True)))
        return Table(COLUMNS, rows)


class Weights(NamedTuple):
    """Each [hidden]."""

    w1: jax.Array
    u: jax.Array
    b: jax.Array
    w2: jax.Array


class Measured(NamedTuple):
    """A trained model on the test values; the first seven are its row of the table."""

    error: jax.Array  # mean square, of the equilibrium
    error_stopped: jax.Array  # of what the budget of training finds
    slope: jax.Array  # mean of |df/dz| at the equilibrium
    steepest: jax.Array  # largest of them
    plain: jax.Array  # evaluations to the tolerance, plain iteration
    plain_converged: jax.Array  # share that gets there
    anderson: jax.Array  # evaluations to the tolerance, Anderson's
    z: jax.Array  # [test], equilibria
    plain_trace: jax.Array  # [SHOWN], median of the relative residuals after each evaluation
    anderson_trace: jax.Array


COLUMNS = (
    "penalty",
    "squared error",
    "squared error, training's budget",
    "mean of abs(df/dz)",
    "largest",
    f"evaluations, plain (at most {MOST})",
    "share that converges",
    "evaluations, Anderson",
)


def data(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Values of x and noisy values of the target, [count] each."""
    key_x, key_noise = jax.random.split(key)
    x = jax.random.uniform(key_x, (count,), minval=-1.0, maxval=1.0)
    return x, target(x) + 0.05 * jax.random.normal(key_noise, (count,))


def target(x: jax.Array) -> jax.Array:
    return 1.5 * x**3 + x**2 - 5.0 * x + 2.0 * jnp.sin(x) - 3.0


def layer(z: jax.Array, weights: Weights, x: jax.Array) -> jax.Array:
    """f(z; x) for each of [count] states and inputs."""
    return jax.nn.relu(z[:, None] * weights.w1 + x[:, None] * weights.u + weights.b) @ weights.w2


def start(key: jax.Array, hidden: int) -> Weights:
    """Uniform within one over the root of the number of inputs, as PyTorch's linear layers start."""
    draw = lambda key, most: jax.random.uniform(key, (hidden,), minval=-most, maxval=most)
    scales = Weights(1.0, 1.0, 1.0, hidden**-0.5)
    return Weights(*map(draw, jax.random.split(key, 4), scales))


def train(config: Synthetic, penalty: jax.Array, seed: jax.Array) -> Weights:
    """The weights after all epochs."""
    key_data, key_start, key_train = jax.random.split(jax.random.key(seed), 3)
    x, y = data(key_data, config.examples)
    steps = config.examples // config.batch
    optimizer = optax.adam(optax.cosine_decay_schedule(config.rate, config.epochs * steps))

    def loss(weights: Weights, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        key_probe, key_coin = jax.random.split(key)
        z = solve(config, weights, x, config.rtol, config.max_steps).z
        spread = jaxdeq.jacobian_penalty(layer, z, key_probe, weights, x)
        counts = jax.random.bernoulli(key_coin, config.frequency).astype(z.dtype)
        return jnp.mean((z - y) ** 2) + penalty * counts * spread

    def step(carry, batch):
        weights, moments = carry
        updates, moments = optimizer.update(jax.grad(loss)(weights, *batch), moments, weights)
        return (optax.apply_updates(weights, updates), moments), None

    def epoch(carry, key):
        key_order, key_steps = jax.random.split(key)
        order = jax.random.permutation(key_order, config.examples)[: steps * config.batch].reshape(steps, -1)
        return jax.lax.scan(step, carry, (x[order], y[order], jax.random.split(key_steps, steps)))

    weights = start(key_start, config.hidden)
    keys = jax.random.split(key_train, config.epochs)
    return jax.lax.scan(epoch, (weights, optimizer.init(weights)), keys)[0][0]


def solve(config: Synthetic, weights: Weights, x: jax.Array, rtol: float, steps: int, **options) -> jaxdeq.Solution:
    """Each input's equilibrium, from 0."""
    adjoint = jaxdeq.adjoints.Implicit(rtol=config.backward_rtol, max_steps=config.backward_steps)
    options = {"adjoint": adjoint, "rtol": rtol, "max_steps": steps, "batched": True, **options}
    return jaxdeq.fixed_point(layer, jnp.zeros_like(x), weights, x, **options)


def measure(config: Synthetic, weights: Weights, x: jax.Array, y: jax.Array) -> Measured:
    anderson = solve(config, weights, x, config.rtol, MOST).stats
    plain = solve(config, weights, x, config.rtol, MOST, solver=solvers.Picard()).stats
    stopped = solve(config, weights, x, config.rtol, config.max_steps).z
    z = solve(config, weights, x, 1e-6, MOST).z
    slope = jnp.abs(jax.jvp(lambda z: layer(z, weights, x), (z,), (jnp.ones_like(z),))[1])
    trace = lambda solver: convergence(config, weights, x, solver)
    return Measured(
        error=jnp.mean((z - y) ** 2),
        error_stopped=jnp.mean((stopped - y) ** 2),
        slope=jnp.mean(slope),
        steepest=jnp.max(slope),
        plain=jnp.mean(plain.steps.astype(jnp.float32)),
        plain_converged=jnp.mean(plain.converged.astype(jnp.float32)),
        anderson=jnp.mean(anderson.steps.astype(jnp.float32)),
        z=z,
        plain_trace=trace(solvers.Picard()),
        anderson_trace=trace(solvers.Anderson()),
    )


def convergence(
    config: Synthetic, weights: Weights, x: jax.Array, solver: solvers.Picard | solvers.Anderson
) -> jax.Array:
    """The median residual after each of [SHOWN] evaluations; 0 from where half of the inputs are exact."""
    trace = solve(config, weights, x, 0.0, SHOWN, solver=solver, trace=SHOWN).stats.trace
    return jnp.median(jnp.where(jnp.isnan(trace), 0.0, trace), axis=0)  # NaN: stopped before
