# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · Stability: the Jacobian penalty
#
# An equilibrium model is free to become unstable while it learns: nothing in its loss asks that the equilibrium can
# still be found. Solves take longer, stop short of their tolerance, and the implicit gradient is taken at a point that
# is no equilibrium. Bai, Koltun & Kolter ([ICML 2021](https://arxiv.org/abs/2106.14342)) add the squared Frobenius
# norm of the Jacobian `df/dz` to the loss, estimated with one random vector.
#
# This notebook redraws their study in one dimension, then looks at the eigenvalues of a wider layer before and
# after training. It takes about a minute on a CPU.

# %%
# Installs what is missing, as in Colab. A wheel of jaxdeq beside this notebook (`pip wheel --no-deps .` in a clone
# makes it) comes before the package index.
import importlib.util
import subprocess
import sys
from pathlib import Path

WHEEL = next(map(str, Path().glob("jaxdeq-*.whl")), "jaxdeq")
PACKAGES = {"jaxdeq": WHEEL, "matplotlib": "matplotlib", "optax": "optax"}
missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxdeq
from jaxdeq import adjoints, plot, solvers

print("jax", jax.__version__, "on", jax.default_backend())

# %% [markdown]
# ## The data, and a layer with one number as its state
#
# 4,096 pairs `x, y` to learn from and 1,000 to test on, of `y = 1.5 x³ + x² - 5 x + 2 sin x - 3` with noise of
# deviation 0.05 (the paper does not say where `x` lies; here it is uniform between -2 and 2). The layer has 50 hidden
# units and one number as its state, and that equilibrium is the answer: `z* = f(z*; x)` is fitted to `y`.

# %%
key_x, key_noise, key_train = jax.random.split(jax.random.key(0), 3)
x = jax.random.uniform(key_x, (5096, 1), minval=-2.0, maxval=2.0)
y = 1.5 * x**3 + x**2 - 5 * x + 2 * jnp.sin(x) - 3 + 0.05 * jax.random.normal(key_noise, x.shape)
x, y, x_test, y_test = x[:4096], y[:4096], x[4096:], y[4096:]


def f(z, p, x):
    return jax.nn.relu(z @ p["W1"] + x @ p["U"] + p["b"]) @ p["W2"]


def initial(key, width=50):
    keys = jax.random.split(key, 4)
    return {
        "W1": 0.2 * jax.random.normal(keys[0], (1, width)),
        "U": jax.random.normal(keys[1], (1, width)),
        "b": jax.random.normal(keys[2], (width,)),
        "W2": jax.random.normal(keys[3], (width, 1)) / width,
    }


def answer(p, x, solver=solvers.Anderson(), **settings):
    settings = {"rtol": 1e-3, "max_steps": 6, **settings}
    backward = adjoints.Implicit(rtol=1e-4, max_steps=6)
    return jaxdeq.fixed_point(f, jnp.zeros_like(x), p, x, solver=solver, adjoint=backward, batched=True, **settings)


# %% [markdown]
# ## Training with and without the penalty
#
# As in the paper: 50 epochs in batches of 64, Adam at 1e-3 with a cosine, at most 6 evaluations forward and 6 backward,
# and the penalty with weight gamma at a random 40 % of the steps. The whole training is one compiled loop.

# %%
EPOCHS, BATCH, FREQUENCY = 50, 64, 0.4
STEPS = EPOCHS * len(x) // BATCH


def train(objective, optimizer, p, gamma, key):
    """Trained parameters, and what each step reports.

    `objective(p, x, y, key)` returns the loss, the penalty, and something to report.
    """
    key_order, key_steps = jax.random.split(key)
    order = jax.vmap(lambda key: jax.random.permutation(key, len(x)))(jax.random.split(key_order, EPOCHS))

    def total(p, x, y, key):
        key_coin, key_probe = jax.random.split(key)
        loss, penalty, report = objective(p, x, y, key_probe)
        return loss + gamma * jax.random.bernoulli(key_coin, FREQUENCY) * penalty, report

    def step(carry, chosen):
        p, moments, key = carry
        key, key_step = jax.random.split(key)
        gradient, report = jax.grad(total, has_aux=True)(p, x[chosen], y[chosen], key_step)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(p, updates), moments, key), report

    (p, _, _), reports = jax.lax.scan(step, (p, optimizer.init(p), key_steps), order.reshape(STEPS, BATCH))
    return p, reports


def objective(p, x, y, key):
    z, stats = answer(p, x)
    return jnp.mean((z - y) ** 2), jaxdeq.jacobian_penalty(f, z, key, p, x), jnp.mean(stats.residual)


GAMMAS = (0.0, 2.0, 4.0)
adam = optax.adam(optax.cosine_decay_schedule(1e-3, STEPS))
fit = jax.jit(partial(train, objective, adam))
trained = {gamma: [fit(initial(jax.random.key(seed)), gamma, key_train)[0] for seed in range(5)] for gamma in GAMMAS}

# %% [markdown]
# The medians of five starts each. The slope is `|df/dz|` at the equilibrium, largest over the test set: below one,
# plain iteration converges everywhere. "Stopped" is the error of the answer after 6 evaluations, as in training.


# %%
@jax.jit
def examine(p):
    z, _ = answer(p, x_test, max_steps=200, rtol=1e-5)
    slopes = jax.vmap(jax.jacobian(f), (0, None, 0))(z, p, x_test)
    counts = [
        jnp.mean(answer(p, x_test, solver, max_steps=200).stats.steps)
        for solver in (solvers.Picard(), solvers.Anderson())
    ]
    error = lambda z: jnp.sqrt(jnp.mean((z - y_test) ** 2))
    return error(z), error(answer(p, x_test).z), jnp.max(jnp.abs(slopes)), jnp.mean(jnp.abs(slopes)), *counts


table = ["           error of the answer      slope            steps to 1e-3"]
table += ["gamma  equilibrium   stopped    largest   mean    Picard   Anderson"]
for gamma in GAMMAS:
    row = np.median([examine(p) for p in trained[gamma]], axis=0)
    table.append("{:5.0f}{:13.2f}{:10.2f}{:11.2f}{:7.2f}{:10.1f}{:11.1f}".format(gamma, *row))
print("\n".join(table))

# %% [markdown]
# The penalty cuts the mean slope to about a third and the largest one by a fifth to a third; plain iteration needs less
# than half the steps, and Anderson, which has little left to gain in one dimension, saves some too. The price: the
# error of the answer more than doubles.
#
# ## The study redrawn
#
# Slices of the surface `f(z; x)`, for seven `x` between -2 and 2. Each crosses the diagonal at the equilibrium for
# its `x` (dots). With the penalty the crossings stay where they are, and the slices are flatter there.

# %%
SEED = 1
figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained", sharey=True)
grid = jnp.linspace(-6, 6, 200)
slices = jnp.linspace(-1.95, 1.95, 7)
colours = plt.get_cmap("coolwarm")(np.linspace(0, 1, len(slices)))
for axes, gamma in zip(panels, GAMMAS, strict=True):
    p = trained[gamma][SEED]
    axes.plot(grid, grid, color=plot.INK, lw=1, ls=":")
    for value, colour in zip(slices, colours, strict=True):
        axes.plot(grid, f(grid[:, None], p, jnp.full((200, 1), value)), color=colour)
        z = float(answer(p, value[None, None], max_steps=200).z[0, 0])
        axes.plot(z, z, "o", color=colour, label=f"x = {value:.2f}")
    axes.set(title=f"gamma = {gamma:.0f}", xlabel="z (no unit)", ylim=(-8, 8))
    plot.style(axes).legend_.set_visible(gamma == GAMMAS[0])
panels[0].set_ylabel("f(z; x) (no unit)")
plt.show()

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
order = jnp.argsort(x_test[:, 0])
left.plot(x_test[order], y_test[order], ".", ms=3, color=plot.INK, alpha=0.5, label="data")
traces = {}
for gamma, colour in zip(GAMMAS, plot.PALETTE, strict=False):
    p = trained[gamma][SEED]
    left.plot(x_test[order], answer(p, x_test[order], max_steps=200).z, color=colour, label=f"gamma = {gamma:.0f}")
    traces[f"gamma = {gamma:.0f}"] = answer(p, x_test, solvers.Picard(), rtol=1e-5, max_steps=60, trace=60).stats
left.set(title="The same answers", xlabel="x (no unit)", ylabel="z* (no unit)")
plot.style(left)
plot.residuals(traces, rtol=1e-3, axes=right).set_title("Found in fewer steps (Picard; median and middle 80 %)")
plt.show()

# %% [markdown]
# ## A wider layer: eigenvalues before and after
#
# Now the state has 64 numbers, `z = tanh(W z + U x + b)`, and the answer is a weighted sum of them. It is trained on
# the same data, at three times the learning rate and with at most 12 evaluations.


# %%
def wide(z, p, x):
    return jnp.tanh(z @ p["W"] + x @ p["U"] + p["b"])


def wide_initial(key, width=64):
    keys = jax.random.split(key, 4)
    return {
        "W": 0.8 * jax.random.normal(keys[0], (width, width)) / width**0.5,
        "U": jax.random.normal(keys[1], (1, width)),
        "b": jax.random.normal(keys[2], (width,)),
        "V": jax.random.normal(keys[3], (width, 1)) / width**0.5,
    }


def wide_answer(p, x, rtol=1e-3, max_steps=12, trace=0):
    z0 = jnp.zeros((len(x), len(p["b"])))
    backward = adjoints.Implicit(rtol=1e-2, max_steps=12)
    return jaxdeq.fixed_point(wide, z0, p, x, adjoint=backward, rtol=rtol, max_steps=max_steps, trace=trace)


def wide_objective(p, x, y, key):
    z, stats = wide_answer(p, x)
    return jnp.mean((z @ p["V"] - y) ** 2), jaxdeq.jacobian_penalty(wide, z, key, p, x), stats.residual


clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(3e-3, STEPS)))
wide_fit = jax.jit(partial(train, wide_objective, clipped))
start = wide_initial(jax.random.key(0))
models, residuals = {"before": start}, {}
for name, gamma in (("without penalty", 0.0), ("with penalty", 4.0)):
    models[name], residuals[name] = wide_fit(start, gamma, key_train)

# %%
COLOURS = {"before": plot.INK, "without penalty": plot.PALETTE[1], "with penalty": plot.PALETTE[0]}
some = x_test[:25]
spectra, traces, table = {}, {}, ["                     error of the answer      spectral"]
table += ["                  equilibrium   stopped at 12   radius   steps to 1e-3"]
for name, p in models.items():
    z, stats = wide_answer(p, x_test, rtol=1e-5, max_steps=300, trace=300)
    spectra[name] = np.linalg.eigvals(jax.vmap(jax.jacobian(wide), (0, None, 0))(z[:25], p, some))
    traces[name] = stats
    error = lambda z: jnp.sqrt(jnp.mean((z @ p["V"] - y_test) ** 2))  # noqa: B023
    need = wide_answer(p, x_test, max_steps=300).stats
    steps = int(need.steps) if need.converged else "not found"
    radius = np.abs(spectra[name]).max()
    table.append(f"{name:18}{error(z):11.2f}{error(wide_answer(p, x_test).z):16.2f}{radius:9.2f}{steps:>16}")
print("\n".join(table))

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
plot.eigenvalues(spectra, axes=left, colours=COLOURS).set_title("Eigenvalues of the Jacobian, 25 inputs")
plot.residuals(traces, rtol=1e-3, axes=right, colours=COLOURS).set_title("Solves of the test set (Anderson)")
right.set_xlim(0, 60)
plt.show()

# %% [markdown]
# Both models fit the data when they are stopped after 12 evaluations, as in training. But only one of them is an
# equilibrium model: without the penalty, eigenvalues have left the unit circle, no equilibrium is found, and with more
# evaluations the answer gets worse. That came gradually:

# %%
run = [
    {"step": 50 * i, "model": name, "residual": float(value)}
    for name, values in residuals.items()
    for i, value in enumerate(values.reshape(-1, 50).mean(axis=1))
]
axes = plot.learning_curves(run, "residual", unit="ratio, mean of 50 steps", by="model", colours=COLOURS)
axes.set(title="Residual after 12 evaluations, in training", yscale="log")
plt.show()

# %% [markdown]
# ## What to take along
#
# - Watch the residual in training. Where it grows, the loss can look fine while the model stops having an equilibrium.
# - `jaxdeq.jacobian_penalty` costs one product with the Jacobian (and its derivative), at a share of the steps.
# - `jaxdeq.spectral_radius` tells where you are without forming a Jacobian.
