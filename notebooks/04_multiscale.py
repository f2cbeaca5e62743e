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
# # 4 · Multiscale: a classifier with two resolutions in equilibrium
#
# A multiscale DEQ (Bai, Koltun & Kolter, [2020](https://arxiv.org/abs/2006.08656)) solves for feature maps at several
# resolutions at once, each of which reads the others. A classifier reads all of them. Here: a small one with two
# resolutions, trained on a part of Fashion-MNIST, and then looked into: what the equilibria look like, how
# many evaluations an image needs, and what happens when the solver is stopped early. It takes two minutes on a CPU.

# %%
# Installs what is missing, as in Colab. A wheel of jaxdeq beside this notebook (`pip wheel --no-deps .` in a clone
# makes it) comes before the package index.
import importlib.util
import subprocess
import sys
from pathlib import Path

IN_CLONE = (Path("..") / "experiments" / "data").is_dir()
WHEEL = next(map(str, Path().glob("jaxdeq-*.whl")), "jaxdeq")
PACKAGES = {"jaxdeq": WHEEL, "matplotlib": "matplotlib", "flax": "flax", "optax": "optax"}
if IN_CLONE:
    PACKAGES |= {"grain": "grain"}
else:
    PACKAGES |= {"tensorflow_datasets": "tensorflow-datasets", "array_record": "array-record"}
missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from jaxdeq import adjoints, plot, solvers
from jaxdeq.models import Branch, MDEQClassifier, MDEQConfig

print("jax", jax.__version__, "on", jax.default_backend())

# %% [markdown]
# ## The data
#
# The first 10,000 training images and 2,000 test images: a clone of the repository holds them, elsewhere TensorFlow
# Datasets downloads them. Grey images of 28 x 28 pixels, padded to 32 x 32, so that they can be halved often enough.

# %%
NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def fashion_mnist():
    """Images [count, 28, 28] and labels, of the training set and the test set."""
    if IN_CLONE:
        sys.path.insert(0, "..")
        from experiments.data import fashion_mnist

        return fashion_mnist()
    import tensorflow_datasets as tfds

    sets = []
    for split in ("train[:10000]", "test[:2000]"):
        records = list(tfds.data_source("fashion_mnist", split=split))
        labels = np.array([record["label"] for record in records], np.int32)
        sets.append((np.stack([record["image"][..., 0] for record in records]), labels))
    return sets


def prepared(images):
    """Zero mean and deviation one over the training set, padded with black, one channel."""
    images = (images.astype(np.float32) / 255 - 0.286) / 0.353
    return np.pad(images, ((0, 0), (2, 2), (2, 2)), constant_values=images.min())[..., None]


(train_images, train_labels), (test_images, test_labels) = fashion_mnist()
train_images, test_images = prepared(train_images), prepared(test_images)
print(train_images.shape, test_images.shape)

# %% [markdown]
# ## The model
#
# The stem halves the images twice. The equilibrium has 16 channels at 8 x 8 and 32 at 4 x 4. The configurations of the
# paper are in `jaxdeq.models.mdeq_configs`; they have more of the same.

# %%
config = MDEQConfig(
    branches=(Branch(16, head=8), Branch(32, head=16)),
    classes=10,
    inputs=1,
    downsample=2,
    expansion=1,
    post_affine=False,
    final_channels=128,
    solver=solvers.Anderson(),
    adjoint=adjoints.Implicit(rtol=3e-2, max_steps=6),
    rtol=1e-2,
    max_steps=10,
)
model = MDEQClassifier(config, rngs=nnx.Rngs(0))
print(f"{sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))):,} parameters")

# %% [markdown]
# ## Training
#
# Two epochs through the equilibrium, with the Jacobian penalty. The loop is a few lines, and any other would do.

# %%
BATCH, EPOCHS, PENALTY = 100, 2, 1.0
STEPS = len(train_images) // BATCH
rate = optax.warmup_cosine_decay_schedule(1e-3, 6e-3, 30, EPOCHS * STEPS)
optimizer = nnx.Optimizer(model, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate)), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, images, labels, key):
    def objective(model):
        out = model(images, key=key, probes=1)
        loss = optax.softmax_cross_entropy_with_integer_labels(out.logits, labels).mean()
        return loss + PENALTY * out.penalty, (loss, out)

    gradient, (loss, out) = nnx.grad(objective, has_aux=True)(model)
    optimizer.update(model, gradient)
    return {"loss": loss, "penalty": out.penalty, "evaluations": jnp.mean(out.stats.steps)}


rng, run, began = np.random.default_rng(0), [], time.perf_counter()
for _ in range(EPOCHS):
    for chosen in rng.permutation(len(train_images)).reshape(STEPS, BATCH):
        metrics = step(model, optimizer, train_images[chosen], train_labels[chosen], jax.random.key(len(run)))
        run.append({"step": len(run) + 1, **{name: float(value) for name, value in metrics.items()}})
print(f"{len(run)} steps in {time.perf_counter() - began:.0f} s, compilation included")

# %%
parts = [run[i : i + 10] for i in range(0, len(run), 10)]
smooth = [{name: np.mean([record[name] for record in part]) for name in run[0]} for part in parts]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
plot.learning_curves(smooth, "loss", unit="nats", axes=left).set_title("Training loss, means of 10 steps")
plot.learning_curves(smooth, "evaluations", unit="count", axes=right).set_title("Evaluations of the layer a solve")
plt.show()

# %% [markdown]
# ## Stopped early
#
# The budget is an argument, and not compiled in. How good is the classifier if the solver may evaluate the layer
# once, twice, ... ? At one evaluation the head reads what the solve starts from: zeros.

# %%
model.eval()


@nnx.jit
def evaluate(model, images, max_steps, rtol):
    out = model(images, max_steps=max_steps, rtol=rtol)
    return jnp.argmax(out.logits, -1), out.stats.steps, out.z


def tested(max_steps, rtol):
    """Guesses, evaluations, equilibria."""
    parts = [evaluate(model, test_images[i : i + 500], max_steps, rtol) for i in range(0, 2000, 500)]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


budgets = [1, 2, 3, 4, 6, 8, 10]
states = {budget: tested(budget, 1e-2) for budget in budgets}
accuracy = [100 * np.mean(guesses == test_labels) for guesses, _, _ in states.values()]
axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")[1]
axes.plot(budgets, accuracy, "o-", color=plot.PALETTE[0])
axes.set(title="Accuracy on 2,000 test images", xlabel="budget (evaluations of the layer)", ylabel="accuracy (%)")
plot.style(axes)
plt.show()
print("  ".join(f"{budget}: {value:.1f} %" for budget, value in zip(budgets, accuracy, strict=True)))

# %% [markdown]
# ## What an equilibrium looks like
#
# The mean size of the state's channels at each pixel, for the first test images, while the solver is under way.

# %%
moments = (2, 3, 4, 10)
figure, rows = plt.subplots(4, 6, figsize=(10, 7), layout="constrained")
for i, row in enumerate(rows):
    pictures = {NAMES[test_labels[i]]: test_images[i, ..., 0]}
    pictures |= {f"fine, {steps} evaluations": np.abs(states[steps][2][0][i]).mean(-1) for steps in moments}
    pictures |= {f"coarse, {moments[-1]} evaluations": np.abs(states[moments[-1]][2][1][i]).mean(-1)}
    for j, (axes, (name, picture)) in enumerate(zip(row, pictures.items(), strict=True)):
        axes.imshow(picture, cmap="gray")
        axes.set_title(name if i == 0 or j == 0 else "", fontsize=9)
        axes.set_xlabel("x (pixels)" if i == 3 else "", fontsize=8)
        axes.set_ylabel("y (pixels)" if j == 0 else "", fontsize=8)
        plot.style(axes).grid(False)
        axes.tick_params(labelsize=7)
plt.show()

# %% [markdown]
# ## Which images take long
#
# Each image has its own stop. To a tolerance of 1e-5, for images that the classifier gets right and wrong:

# %%
guesses, steps, z = tested(50, 1e-5)
some, z = test_images[:500], jax.tree.map(lambda x: x[:500], z)
radius = nnx.jit(lambda model: model.spectral_radius(some, z, jax.random.key(0), iters=24))(model)
right = guesses == test_labels
figure, (left, middle) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
plot.steps({"right": steps[right], "wrong": steps[~right]}, axes=left).set_title(
    "Evaluations to 1e-5, 2,000 test images"
)
middle.plot(radius, steps[:500] + rng.uniform(-0.3, 0.3, 500), ".", color=plot.PALETTE[0], alpha=0.6)
middle.set(title="What decides it", xlabel="spectral radius (factor a step)", ylabel="evaluations of the layer (count)")
plot.style(middle)
plt.show()
print(f"right: {steps[right].mean():.1f} evaluations, wrong: {steps[~right].mean():.1f}; {right.mean():.1%} right")

# %% [markdown]
# ## What to take along
#
# - A state can be any tree of arrays: here two resolutions, solved for together.
# - The layer was trained to a tolerance; at inference the budget is free, from image to image even.
# - The spectral radius of the Jacobian tells how long a solve takes; [notebook 3](03_stability.ipynb) keeps it small.
