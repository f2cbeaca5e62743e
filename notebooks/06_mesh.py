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
# # 6 · Meshes: the same model on eight devices, and on two
#
# A solver in jaxdeq keeps the state where it lies, and measures it with sums of a few numbers, so that a solve on a
# mesh of devices costs next to no communication. Nothing in the model says how many there are: the arrays do. Here a
# small DEQ-Transformer learns on a mesh of eight devices, is saved by orbax, and goes on with two.
#
# The eight devices are simulated on the CPU; it takes a minute.

# %%
# Installs what is missing, as in Colab. A wheel of jaxdeq beside this notebook (`pip wheel --no-deps .` in a clone
# makes it) comes before the package index.
import importlib.util
import subprocess
import sys
from pathlib import Path

WHEEL = next(map(str, Path().glob("jaxdeq-*.whl")), "jaxdeq")
PACKAGES = {"jaxdeq": WHEEL, "matplotlib": "matplotlib", "flax": "flax", "optax": "optax", "orbax": "orbax-checkpoint"}
missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)

# %%
import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# %%
import re
import tempfile
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.core.spmd import logical_axis_rules
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdeq import adjoints, plot
from jaxdeq.models import DEQTransformerConfig, DEQTransformerLM

print("jax", jax.__version__, "on", jax.device_count(), "simulated devices")

# %% [markdown]
# ## The model, and where its parameters lie
#
# Kernels name their axes: `inner` is the widened inside of a layer. A rule says which axis of the mesh it is spread
# over; what no rule names is held by all. The batch is spread over the axis `data`.

# %%
config = DEQTransformerConfig(
    vocab=64, width=32, heads=4, inner=128, embed=32, memory=16, rtol=1e-3, max_steps=12,
    adjoint=adjoints.Implicit(rtol=1e-2, max_steps=8),
)  # fmt: skip
graphdef, params, rest = nnx.split(DEQTransformerLM(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
optimizer = optax.adam(5e-3)


def make_mesh(data, model):
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), devices=devices, axis_types=(AxisType.Auto,) * 2)


def start(mesh):
    """Parameters spread over the mesh by rules, and the optimiser's state, which follows them."""
    with logical_axis_rules((("inner", "model"), ("channels", None))):
        spread = jax.device_put(params, nnx.get_named_sharding(params, mesh))
    everywhere = lambda x: x if x.ndim else jax.device_put(x, NamedSharding(mesh, P()))
    return {"params": spread, "moments": jax.tree.map(everywhere, optimizer.init(spread))}


large = make_mesh(data=4, model=2)
state = start(large)
kernel = state["params"]["deq"]["cell"]["feed_forward"]["widen"]["layer"]["kernel"][...]
print(f"a kernel of shape {kernel.shape}: {kernel.addressable_shards[0].data.shape} on each of {large.size} devices")

# %% [markdown]
# ## A training step
#
# Plain `jax.jit`. The text is made up: each number follows from the one before, but for a coin, so that no model can
# get below ln 2 = 0.69 nats.


# %%
def batch(index, mesh, rows=16, length=24):
    rng = np.random.default_rng(index)
    text = [rng.integers(0, 64, rows)]
    for _ in range(length):
        text.append((3 * text[-1] + rng.integers(0, 2, rows)) % 64)
    text = np.stack(text, axis=1).astype(np.int32)
    return jax.device_put((text[:, :-1], text[:, 1:]), NamedSharding(mesh, P("data")))


@jax.jit
def step(state, tokens, targets):
    def loss(params):
        out = nnx.merge(graphdef, params, rest, copy=True)(tokens, targets=targets)
        return out.losses.mean()

    value, gradient = jax.value_and_grad(loss)(state["params"])
    updates, moments = optimizer.update(gradient, state["moments"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "moments": moments}, value


def learn(state, mesh, steps, name):
    """The state after these steps, and a record of each."""
    run = []
    for i in steps:
        state, loss = step(state, *batch(i, mesh))
        run.append({"step": i + 1, "mesh": name, "loss": float(loss)})
    return state, run


state, run = learn(state, large, range(80), "8 devices")

# %% [markdown]
# ## Saved here, restored there
#
# A checkpoint knows arrays, not devices. To restore it one says where each array shall lie: like a fresh state on the
# other mesh. Both then go on, with the same batches.

# %%
folder = tempfile.mkdtemp()
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(f"{folder}/80", state)
    checkpointer.wait_until_finished()
    small = make_mesh(data=2, model=1)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), start(small))
    restored = checkpointer.restore(f"{folder}/80", like)

_, on_eight = learn(state, large, range(80, 160), "8 devices")
_, on_two = learn(restored, small, range(80, 160), "2 devices, from the checkpoint")
apart = [abs(a["loss"] - b["loss"]) for a, b in zip(on_eight, on_two, strict=True)]
print(f"losses apart by {apart[0]:.0e} nats at the next step, by {max(apart):.0e} at most in the 80 steps after it")

# %% [markdown]
# The sums of the two meshes are rounded in another order: a difference in the last digit, which training then enlarges.

# %%
axes = plot.learning_curves(run + on_eight + on_two, "loss", unit="nats a token", by="mesh")
axes.lines[1].set(linestyle="--")
axes.axhline(np.log(2), color=plot.INK, ls=":", label="the coin")
axes.set_title("One run on two meshes")
plot.style(axes)
plt.show()

# %% [markdown]
# ## What the devices tell each other
#
# Of a solve for a batch spread over eight devices, in the compiled program. All it needs is whether the others are
# done; nothing is gathered.


# %%
def evaluate(params, tokens):
    model = nnx.merge(graphdef, params, rest, copy=True)
    model.eval()
    return model(tokens).z


wide = make_mesh(data=8, model=1)
program = jax.jit(evaluate).lower(start(wide)["params"], batch(0, wide)[0]).compile().as_text()
sent = Counter(re.findall(r"= \(?(\w+\[[\d,]*\])\S* (all-\w+|collective-permute|reduce-scatter)\(", program))
for (shape, what), count in sent.items():
    print(f"{count} x {what} of {shape}")

# %% [markdown]
# ## What to take along
#
# - Say where the inputs and the parameters lie; the solver stays there, forward and backward.
# - A checkpoint is restored on any mesh: give each array's `sharding`.
# - With Explicit axes, the default of `jax.make_mesh`, the same holds; then `jax.set_mesh(mesh)` has to be in force.
