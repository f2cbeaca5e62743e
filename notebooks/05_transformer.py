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
# # 5 · A DEQ-Transformer: one layer, read and written
#
# A language model whose one Transformer layer is applied until nothing changes. It is trained for a minute on the State
# of the Union addresses of the presidents of the United States, 1790 to 2021, then writes some. The budget of
# a solve can be cut when the model is used: how much does that cost? It takes two minutes on a CPU.

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
import textwrap
import time
from collections import Counter

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from jaxdeq import adjoints, plot
from jaxdeq.models import DEQTransformerConfig, DEQTransformerLM

print("jax", jax.__version__, "on", jax.default_backend())

# %% [markdown]
# ## The text
#
# Words as numbers, the most frequent first. A clone of the repository holds the addresses. Elsewhere this notebook
# takes some 40,000 lines of Shakespeare, which TensorFlow Datasets downloads; what is shown below is of the addresses.


# %%
def text():
    """The words of the vocabulary; numbers of the training text and of the validation text."""
    if IN_CLONE:
        sys.path.insert(0, "..")
        from experiments.data.text import state_of_the_union

        numbers, splits = state_of_the_union()
        return list(numbers), splits["train"], splits["valid"]
    import tensorflow_datasets as tfds

    lines = [next(iter(tfds.data_source("tiny_shakespeare", split=split)))["text"] for split in ("train", "validation")]
    lines = [line.decode() if isinstance(line, bytes) else line for line in lines]
    train, valid = (line.replace("\n", " <eos> ").split() for line in lines)
    words = [word for word, count in Counter(train).most_common() if count > 2] + ["<unk>"]
    numbers = {word: i for i, word in enumerate(words)}
    return words, *(np.array([numbers.get(w, len(words) - 1) for w in part], np.int32) for part in (train, valid))


words, train, valid = text()
counts = np.bincount(train, minlength=len(words)) + 1
unigram = np.exp(-np.log(counts / counts.sum())[valid].mean())
print(
    f"{len(train):,} words to read, {len(words):,} different ones; perplexity of their frequencies alone {unigram:.0f}"
)


# %%
def segments(words, batch, length):
    """Rows of a long text, piece after piece: tokens and the ones that follow, [batch, length]."""
    share = len(words) // batch
    rows = words[: share * batch].reshape(batch, share)
    for i in range(0, share - length, length):
        yield rows[:, i : i + length], rows[:, i + 1 : i + length + 1]


# %% [markdown]
# ## The model
#
# Rare words get narrow vectors (adaptive embedding and softmax). The memory holds the equilibria of the segment before;
# attention sees them as they were found. The configurations of the paper are in `jaxdeq.models.transformer_configs`.
# There weights start from N(0, 0.01), which is meant for a width of 700; so narrow a model learns faster from 0.1.

# %%
config = DEQTransformerConfig(
    vocab=len(words),
    width=64,
    heads=4,
    inner=192,
    embed=64,
    cutoffs=(1000, 4000),
    divisor=4,
    memory=32,
    init_std=0.1,
    adjoint=adjoints.Implicit(rtol=3e-2, max_steps=6),
    rtol=1e-2,
    max_steps=10,
)
model = DEQTransformerLM(config, rngs=nnx.Rngs(0))
print(f"{sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))):,} parameters")

# %% [markdown]
# ## Training
#
# Each segment goes on where the one before has ended, with its memory. As in the paper, training starts with the layer
# applied twice, as a network of two tied layers; then it goes on through the equilibrium, with the Jacobian penalty,
# which makes it possible to stop early afterwards.

# %%
BATCH, LENGTH, UNROLLED, STEPS, PENALTY = 32, 32, 240, 400, 0.3
rate = optax.warmup_cosine_decay_schedule(0.0, 4e-3, 40, STEPS)
optimizer = nnx.Optimizer(model, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)), wrt=nnx.Param)


@nnx.jit(static_argnames="unroll")
def step(model, optimizer, tokens, targets, memory, key, unroll):
    def objective(model):
        out = model(tokens, targets=targets, memory=memory, unroll=unroll, key=None if unroll else key)
        return out.losses.mean() + (0.0 if unroll else PENALTY * out.penalty), out

    gradient, out = nnx.grad(objective, has_aux=True)(model)
    optimizer.update(model, gradient)
    evaluations = unroll if out.stats is None else jnp.mean(out.stats.steps)
    return out.memory, {"loss": out.losses.mean(), "evaluations": evaluations}


memory, run, began = model.empty_memory(BATCH), [], time.perf_counter()
for i, (tokens, targets) in zip(range(STEPS), segments(train, BATCH, LENGTH), strict=False):
    memory, metrics = step(model, optimizer, tokens, targets, memory, jax.random.key(i), 2 if i < UNROLLED else None)
    run.append({"step": i + 1, **{name: float(value) for name, value in metrics.items()}})
print(f"{len(run)} steps in {time.perf_counter() - began:.0f} s, compilation included")

# %%
parts = [run[i : i + 20] for i in range(0, len(run), 20)]
smooth = [{name: np.mean([record[name] for record in part]) for name in run[0]} for part in parts]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
plot.learning_curves(smooth, "loss", unit="nats a word", axes=left).set_title("Training loss, means of 20 steps")
plot.learning_curves(smooth, "evaluations", unit="count", axes=right).set_title("Evaluations of the layer a solve")
plt.show()

# %% [markdown]
# ## Stopped early
#
# The perplexity of validation text, by budget, which is not compiled in. With a single evaluation the model predicts
# from zeros, the start of the solve.

# %%
model.eval()


@nnx.jit
def evaluate(model, tokens, targets, memory, max_steps):
    out = model(tokens, targets=targets, memory=memory, max_steps=max_steps)
    return out.losses.mean(), out.memory


def perplexity(max_steps, pieces=12):
    memory, losses = model.empty_memory(BATCH), []
    for _, (tokens, targets) in zip(range(pieces), segments(valid, BATCH, LENGTH), strict=False):
        loss, memory = evaluate(model, tokens, targets, memory, max_steps)
        losses.append(float(loss))
    return np.exp(np.mean(losses))


budgets = [1, 2, 3, 4, 6, 10, 20]
values = [perplexity(budget) for budget in budgets]
axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")[1]
axes.semilogy(budgets, values, "o-", color=plot.PALETTE[0], label="DEQ-Transformer")
axes.axhline(unigram, color=plot.INK, ls=":", label="word frequencies alone")
axes.set(
    title="12,288 words of validation text", xlabel="budget (evaluations of the layer)", ylabel="perplexity (words)"
)
plot.style(axes)
plt.show()
print("  ".join(f"{budget}: {value:.0f}" for budget, value in zip(budgets, values, strict=True)))

# %% [markdown]
# ## Writing
#
# `generate` solves the prompt once; each further word is a solve for its own position, which sees the equilibria of the
# words before it in the memory. Two budgets, the same random draws:

# %%
numbers = {word: i for i, word in enumerate(words)}
PROMPT = "the people of the united states" if IN_CLONE else "the king of the"
prompt = jnp.array([[numbers[word] for word in PROMPT.split()]], jnp.int32)
write = nnx.jit(
    lambda model, max_steps: model.generate(
        prompt, 60, key=jax.random.key(4), temperature=0.8, top_k=50, max_steps=max_steps
    )
)
lines = []
for budget in (20, 3):
    out = write(model, budget)
    told = " ".join(words[i] for i in out.tokens[0]).replace("<eos>", "\n")
    lines += [f"At most {budget} evaluations a word, {out.stats.steps.mean():.1f} on average:", ""]
    lines += [textwrap.fill(f"{PROMPT} {told}", 100), ""]
print("\n".join(lines))

# %% [markdown]
# A minute is not much: it has learnt which words go together, and little more.
#
# ## What to take along
#
# - Depth is a budget at inference: a few evaluations are nearly as good as many if the layer was kept contractive.
# - Memory is a value that goes in and comes out; nothing is hidden in the model.
# - Equilibria of earlier words do not depend on later ones, so that writing a word is one solve for one position.
