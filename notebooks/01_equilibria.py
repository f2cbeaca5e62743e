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
# # 1 · Equilibria: a layer that is an equation
#
# A network of depth is an assignment, repeated: `z = tanh(W z + U x + b)`, again and again. Take the same weights
# every time and ask when nothing changes any more. That is an *equation*, `z = f(z)`, and its solution, the
# **equilibrium**, is the output of the layer. How it is found is the business of a solver, and can be changed
# without changing the answer.
#
# This notebook finds equilibria and looks at how solvers get there. It takes less than a minute on a CPU.

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdeq
from jaxdeq import plot, solvers

print("jax", jax.__version__, "on", jax.default_backend())

# %% [markdown]
# ## One number
#
# The equilibrium of `f` is where its graph crosses the diagonal. Plain iteration walks from the graph to the diagonal
# and back. Whether it arrives depends on the slope at the crossing: for `cos z` it is -0.67, for `2 cos z` it is -1.71.


# %%
def cobweb(axes, f, z, steps, title):
    """The path of plain iteration from z."""
    grid = np.linspace(-2.2, 2.2, 200)
    axes.plot(grid, grid, color=plot.INK, lw=1, label="z")
    axes.plot(grid, f(grid), color=plot.PALETTE[0], label="f(z)")
    path = [(z, z)]
    for _ in range(steps):
        path += [(z, f(z)), (f(z), f(z))]
        z = f(z)
    axes.plot(*np.array(path).T, color=plot.PALETTE[1], lw=1, label="iteration")
    axes.set(title=title, xlabel="z (no unit)", ylabel="f(z) (no unit)")
    axes.set_aspect("equal")
    plot.style(axes)


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
cobweb(left, np.cos, 0.1, 20, "f(z) = cos z: arrives")
cobweb(right, lambda z: 2 * np.cos(z), 0.9, 20, "f(z) = 2 cos z: driven away")
plt.show()

# %% [markdown]
# The second equation has a solution all the same. `Picard` is plain iteration; `Anderson`, the default, mixes past
# iterates so that their residuals cancel. Not finding an equilibrium is an answer, not an exception: the best iterate
# comes back, with its residual and a status.

# %%
rows = ["equation       solver          z   steps  residual  status"]
for f, name in ((jnp.cos, "z = cos z"), (lambda z: 2 * jnp.cos(z), "z = 2 cos z")):
    for solver in (solvers.Picard(), solvers.Anderson()):
        z, stats = jaxdeq.fixed_point(f, jnp.float32(0.9), solver=solver)
        status = jaxdeq.Status(int(stats.status)).name
        rows.append(f"{name:12}{type(solver).__name__:>9}{z:11.4f}{stats.steps:8}{stats.residual:10.0e}  {status}")
print("\n".join(rows))

# %% [markdown]
# ## A layer
#
# Now 64 numbers, and a batch of 256 inputs. The slope becomes the Jacobian `df/dz`, and its eigenvalues say what plain
# iteration does: it multiplies the error by them at every step. Two layers that are hard in two ways:
#
# - **stiff**: real eigenvalues, from -0.9 to 0.98. Errors there die slowly.
# - **turning**: complex eigenvalues, four pairs of them of size 0.97. Errors there also go round and round.


# %%
def weights(key, width, turning):
    """A matrix with these eigenvalues, and orthogonal eigenvectors."""
    q = jax.random.orthogonal(key, width)
    if not turning:
        return q * jnp.linspace(-0.9, 0.98, width) @ q.T
    radii = jnp.concatenate([jnp.full(4, 0.97), jnp.linspace(0.6, 0.1, width // 2 - 4)])
    angles = jax.random.permutation(key, jnp.linspace(0.3, 2.8, width // 2))
    real, imaginary, i = radii * jnp.cos(angles), radii * jnp.sin(angles), jnp.arange(0, width, 2)
    turns = jnp.zeros((width, width)).at[i, i].set(real).at[i + 1, i + 1].set(real)
    return q @ turns.at[i, i + 1].set(-imaginary).at[i + 1, i].set(imaginary) @ q.T


key_w, key_u, key_x = jax.random.split(jax.random.key(0), 3)
U = 0.02 * jax.random.normal(key_u, (16, 64))
x = jax.random.normal(key_x, (256, 16))
layers = {name: weights(key_w, 64, turning=name == "turning") for name in ("stiff", "turning")}


def f(z, W, x):
    return jnp.tanh(z @ W + x @ U)


# %%
methods = {
    "Picard": solvers.Picard(),
    "Anderson": solvers.Anderson(),
    "Anderson, history 15": solvers.Anderson(history=15),
    "Broyden, history 15": solvers.Broyden(history=15),
}
figure, rows = plt.subplots(2, 2, figsize=(10, 8), layout="constrained", width_ratios=(1, 1.5))
for (name, W), (left, right) in zip(layers.items(), rows, strict=True):
    solves = {
        label: jaxdeq.fixed_point(f, jnp.zeros((256, 64)), W, x, solver=solver, rtol=1e-5, max_steps=200, trace=200)
        for label, solver in methods.items()
    }
    z = solves["Picard"].z[0]
    plot.eigenvalues({name: np.linalg.eigvals(jax.jacobian(f)(z, W, x[0]))}, axes=left)
    plot.residuals({label: solve.stats for label, solve in solves.items()}, rtol=1e-5, axes=right)
    left.set_title(f"{name}: eigenvalues of the Jacobian")
    right.set_title(f"{name}: solves of 256 inputs together")
plt.show()

# %% [markdown]
# Picard crawls at the pace of the outermost eigenvalue. Anderson, with five past iterates, needs half of its steps or
# less. On the turning layer Broyden is ahead, and more history helps both: that is the first thing to try when a solve
# is slow. The same as a table, with the Newton-Krylov solver, whose products with the Jacobian count as evaluations:

# %%
table = [f"{'evaluations to 1e-5':24}" + "".join(f"{name:>10}" for name in layers)]
for label, solver in {**methods, "NewtonKrylov": solvers.NewtonKrylov()}.items():
    row = []
    for W in layers.values():
        stats = jaxdeq.fixed_point(f, jnp.zeros((256, 64)), W, x, solver=solver, rtol=1e-5, max_steps=1000).stats
        row.append(f"{int(stats.steps)}" if stats.converged else "not found")
    table.append(f"{label:24}" + "".join(f"{cell:>10}" for cell in row))
print("\n".join(table))

# %% [markdown]
# ## Each problem for itself
#
# So far the 256 inputs were one problem, with one stop and one set of Anderson weights for all. With `batched=True`
# each has its own: an input stops when it is done, its answer does not depend on its neighbours, and a long history is
# worth more, since it has to fit one problem only. The turning layer again:

# %%
solve = lambda solver: jaxdeq.fixed_point(
    f, jnp.zeros((256, 64)), layers["turning"], x, solver=solver, rtol=1e-5, max_steps=400, batched=True
)
counts = {label: solve(methods[label]).stats for label in ("Anderson", "Anderson, history 15", "Broyden, history 15")}
plot.steps(counts).set_title("Evaluations until each of 256 problems has converged")
plt.show()

# %% [markdown]
# ## What to take along
#
# - The layer is the equation. A solver only finds its solution; swap it, and compare `stats.steps`.
# - The eigenvalues of `df/dz` decide how hard that is. [Notebook 3](03_stability.ipynb) keeps them small in training.
# - `stats` tells what happened: look at `stats.converged` before you trust `z`.
# - The gradient of `z` needs none of these iterations: [notebook 2](02_gradients.ipynb).
