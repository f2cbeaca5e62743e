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
# # 2 · Gradients: through the equation, not through the solver
#
# An equilibrium `z = f(z, W)` changes with `W` in a way that only depends on where it is, not on how it was found. The
# implicit function theorem turns the gradient `g` with respect to `z` into that with respect to `W`: solve
# `u = g + (df/dz)ᵀ u`, then take `(df/dW)ᵀ u`. One more fixed-point solve, no trace of the first one, exact.
#
# Cheaper ways leave out a part of it. This notebook measures what they cost and how wrong they are.
# It takes about a minute on a CPU.

# %%
# Installs what is missing, as in Colab. A wheel of jaxdeq beside this notebook (`pip wheel --no-deps .` in a clone
# makes it) comes before the package index.
import importlib.util
import subprocess
import sys
from pathlib import Path

WHEEL = next(map(str, Path().glob("jaxdeq-*.whl")), "jaxdeq")
PACKAGES = {"jaxdeq": WHEEL, "matplotlib": "matplotlib"}
missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import jaxdeq
from jaxdeq import adjoints, plot, solvers

print("jax", jax.__version__, "on", jax.default_backend())

# %% [markdown]
# ## The layer, and its exact gradient
#
# 64 numbers a sample, 128 samples, and a loss on the equilibrium. The eigenvalues of `W` lie between -0.5 and 0.95. For
# a layer this small the gradient can be had without any iteration: with the equilibrium in 64 bits, and one matrix
# `I - df/dz` to solve with for each sample. That is what all others are compared with.

# %%
WIDTH, BATCH, BUDGET = 64, 128, 64
key_w, key_u, key_x, key_t = jax.random.split(jax.random.key(0), 4)
q = jax.random.orthogonal(key_w, WIDTH)
W = q * jnp.linspace(-0.5, 0.95, WIDTH) @ q.T
U = 0.2 * jax.random.normal(key_u, (16, WIDTH)) / 4
x = jax.random.normal(key_x, (BATCH, 16))
target = jax.random.normal(key_t, (BATCH, WIDTH))


def f(z, W, x):
    return jnp.tanh(z @ W + x @ U.astype(z.dtype))


def loss(W, adjoint, max_steps=BUDGET, solver=solvers.Anderson()):
    settings = {"solver": solver, "adjoint": adjoint, "rtol": 1e-6, "max_steps": max_steps}
    z, _ = jaxdeq.fixed_point(f, jnp.zeros((BATCH, WIDTH)), W, x, **settings)
    return 0.5 * jnp.mean((z - target) ** 2)


def exact_gradient():
    """By linear algebra in 64 bits."""
    W64, x64 = W.astype(jnp.float64), x.astype(jnp.float64)
    z = jaxdeq.fixed_point(f, jnp.zeros((BATCH, WIDTH), jnp.float64), W64, x64, rtol=1e-13, max_steps=1000).z
    g = (z - target) / z.size
    jacobians = jax.vmap(jax.jacobian(f), (0, None, 0))(z, W64, x64)
    u = jnp.linalg.solve(jnp.eye(WIDTH) - jacobians.mT, g[..., None])[..., 0]
    return jax.vjp(lambda W: f(z, W, x64), W64)[1](u)[0], jnp.abs(jnp.linalg.eigvals(jacobians[0])).max()


with jax.enable_x64(True):
    exact, radius = exact_gradient()
print(f"spectral radius of one sample's Jacobian: {radius:.2f}")

# %% [markdown]
# ## What each gradient costs
#
# Compiled, for one gradient with respect to `W`: its relative error, its time next to that of a solve alone (by
# `Anderson`), and the temporary memory that XLA plans for it. `Unrolled` back-propagates through the solver's own
# steps. Two want a solver of their own: `Shine` takes what `Broyden` has learnt on its way to the equilibrium in place
# of a backward solve, `Reversible` undoes the steps of a solver whose steps can be undone.


# %%
def compiled_gradient(adjoint, *settings):
    return jax.jit(jax.grad(lambda W: loss(W, adjoint, *settings))).lower(W).compile()


def error(gradient):
    """Relative, of the whole matrix."""
    return float(jnp.linalg.norm(gradient - exact) / jnp.linalg.norm(exact))


def seconds(compiled, repeats=40):
    """The shortest."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(compiled(W))
        times.append(time.perf_counter() - began)
    return min(times)


exact = jnp.asarray(exact, jnp.float32)
alone = seconds(jax.jit(lambda W: loss(W, adjoints.Implicit())).lower(W).compile())
ways = {
    "Implicit()": [adjoints.Implicit()],
    "Implicit(rtol=1e-2)": [adjoints.Implicit(rtol=1e-2)],
    "Neumann(5, 1.0)": [adjoints.Neumann(5, 1.0)],
    "Shine()": [adjoints.Shine(), BUDGET, solvers.Broyden(20)],
    "OneStep()": [adjoints.OneStep()],
    "Unrolled(64, 1)": [adjoints.Unrolled(64, 1)],
    "Unrolled(64, 8)": [adjoints.Unrolled(64, 8)],
    "Reversible(200)": [adjoints.Reversible(200), 200, solvers.Reversible()],
}
measured = {}
for name, way in ways.items():
    gradient = compiled_gradient(*way)
    memory = gradient.memory_analysis().temp_size_in_bytes
    measured[name] = error(gradient(W)), seconds(gradient) / alone, memory / 1e6
table = [f"{'adjoint':22}{'relative error':>15}{'time / solve':>14}{'memory (MB)':>13}"]
table += [f"{name:22}{e:15.1e}{t:14.1f}{m:13.2f}" for name, (e, t, m) in measured.items()]
print("\n".join(table))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
for colour, (name, (wrong, time_, memory)) in zip(plot.PALETTE, measured.items(), strict=False):
    left.semilogy(time_, wrong, "o", color=colour, label=name)
    right.loglog(memory, wrong, "o", color=colour, label=name)
left.set(title="Error against time", xlabel="time (solves)", ylabel="relative error of the gradient (ratio)")
right.set(title="Error against memory", xlabel="temporary memory (MB)")
plot.style(left)
plot.style(right).legend_.remove()
plt.show()

# %% [markdown]
# Left and low is good. `Implicit` alone is exact at the memory of a single step. Where a rough gradient will do,
# loosen the tolerance of its backward solve. `Unrolled` is exact too and pays in memory; checkpoints (`segment=8`)
# save most of that, and steps that can be undone more. What `Broyden` has seen on its way is, in a state of 8192
# numbers, little of the Jacobian: `Shine` is hardly better than `OneStep` here.
#
# ## Memory against depth
#
# That is the point of the method: with the budget, the memory of back-propagation grows; that of the implicit gradient
# does not.

# %%
budgets = [8, 16, 32, 64]
grow = {
    "Implicit()": lambda n: adjoints.Implicit(),
    "Unrolled(n, 1)": lambda n: adjoints.Unrolled(n, 1),
    "Unrolled(n, 8)": lambda n: adjoints.Unrolled(n, 8),
}
axes = plt.subplots(figsize=(6.4, 4), layout="constrained")[1]
for colour, (name, adjoint) in zip(plot.PALETTE, grow.items(), strict=False):
    sizes = [compiled_gradient(adjoint(n), n).memory_analysis().temp_size_in_bytes for n in budgets]
    axes.plot(budgets, [size / 1e6 for size in sizes], "o-", color=colour, label=name)
axes.set(title="Memory of one gradient", xlabel="budget n (evaluations of f)", ylabel="temporary memory (MB)")
axes.set_ylim(bottom=0)
plot.style(axes)
plt.show()

# %% [markdown]
# ## More terms, less error
#
# `Neumann` sums the first terms of the series that `Implicit` solves, one product with the Jacobian each (`Phantom`
# unrolls about the same). Its error falls by the spectral radius with each further term: good for layers that contract
# strongly. The backward solve of `Implicit` is accelerated, with the same choice of solvers as the forward one.

# %%
terms = [1, 4, 8, 16, 32]
families = {
    "Implicit(Anderson)": lambda n: adjoints.Implicit(max_steps=n, rtol=0.0),
    "Neumann(n, 1.0)": lambda n: adjoints.Neumann(n, 1.0),
    "Neumann(n, 0.5)": lambda n: adjoints.Neumann(n, 0.5),
}
axes = plt.subplots(figsize=(6.4, 4), layout="constrained")[1]
for colour, (name, adjoint) in zip(plot.PALETTE, families.items(), strict=False):
    axes.semilogy(terms, [error(compiled_gradient(adjoint(n))(W)) for n in terms], "o-", color=colour, label=name)
axes.set(title="What n buys", xlabel="n (products with the Jacobian)", ylabel="relative error of the gradient (ratio)")
plot.style(axes)
plt.show()

# %% [markdown]
# ## Was the backward solve right?
#
# It can fail like any other. Its steps, residual and status come out as the gradient of a `tap`, from inside `jit` too:


# %%
def tapped(W, tap, max_steps):
    adjoint = adjoints.Implicit(rtol=1e-6, max_steps=max_steps)
    z, _ = jaxdeq.fixed_point(f, jnp.zeros((BATCH, WIDTH)), W, x, adjoint=adjoint, rtol=1e-6, max_steps=BUDGET, tap=tap)
    return 0.5 * jnp.mean((z - target) ** 2)


lines = []
for budget in (5, BUDGET):
    _, backward = jax.grad(tapped, argnums=(0, 1))(W, jaxdeq.BackwardStats.empty(), budget)
    status = jaxdeq.Status(int(backward.status)).name
    lines.append(f"budget {budget:2}: {backward.steps:2.0f} steps, residual {backward.residual:.0e}, {status}")
print("\n".join(lines))

# %% [markdown]
# ## What to take along
#
# - `Implicit()` is the default: exact, one linearisation of `f`, memory of one evaluation.
# - Too slow? Loosen its `rtol` or `max_steps` first, and watch `BackwardStats`. `OneStep()` costs nothing, and its
#   error is of the size of the Jacobian.
# - `Unrolled` differentiates what was computed, converged or not: right when you stop early on purpose. `Reversible`
#   does the same in less memory, with a solver that takes more steps.
# - `ImplicitJVP` is `Implicit` with forward mode: `jax.jvp`, `jax.jacfwd`, `jax.hessian`.
