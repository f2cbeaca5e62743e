"""What is solved."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdeq.models import DEQTransformerConfig, DEQTransformerLM


class Problem(NamedTuple):
    name: str
    f: Callable  # f(z, params)
    params: Any
    z0: jax.Array
    kind: str = ""  # of those that `torch_worker.py` knows too


def tanh(z, params):
    w, x = params
    return jnp.tanh(z @ w + x)


def dense(batch: int, width: int) -> Problem:
    """A layer of random weights, which contracts."""
    draw = np.random.default_rng(0).standard_normal
    w = 0.5 * draw((width, width)) / width**0.5
    return _tanh(f"dense {batch} x {width}", w, draw((batch, width)))


def stiff(batch: int, width: int) -> Problem:
    """Symmetric weights with eigenvalues from -0.9 to 0.985, and inputs so small that tanh does not damp them."""
    draw = np.random.default_rng(0).standard_normal
    basis, _ = np.linalg.qr(draw((width, width)))
    w = basis * np.linspace(-0.9, 0.985, width) @ basis.T
    return _tanh(f"stiff {batch} x {width}", w, 0.01 * draw((batch, width)))


def _tanh(name: str, w: np.ndarray, x: np.ndarray) -> Problem:
    w, x = (jnp.asarray(a, jnp.float32) for a in (w, x))
    return Problem(name, tanh, (w, x), jnp.zeros_like(x), "tanh")


def attention(batch: int, length: int, width: int, heads: int = 4) -> Problem:
    """A transformer layer: attention and a feed-forward part, each after a normalisation."""
    draw = np.random.default_rng(0).standard_normal
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    weights = {k: jnp.asarray(0.3 * draw(s) / s[0] ** 0.5, jnp.float32) for k, s in shapes.items()}
    x = jnp.asarray(draw((batch, length, width)), jnp.float32)
    split = lambda a: a.reshape(batch, length, heads, width // heads)

    def normalise(a):
        a = a - jnp.mean(a, -1, keepdims=True)
        return a * jax.lax.rsqrt(jnp.mean(a * a, -1, keepdims=True) + 1e-5)

    def f(z, params):
        p, x = params
        q, k, v = (split(a) for a in jnp.split(normalise(z) @ p["qkv"], 3, -1))
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(z.shape) @ p["out"]
        middle = normalise(x + mixed)
        return normalise(x + middle + jax.nn.gelu(middle @ p["up"]) @ p["down"])

    return Problem(f"attention {batch} x {length} x {width}", f, (weights, x), jnp.zeros_like(x), "attention")


def transformer_cell(batch: int, length: int, width: int, heads: int = 4) -> Problem:
    """The layer of `DEQTransformerLM`, in evaluation, with a memory as long as the segment."""
    config = DEQTransformerConfig(vocab=2, width=width, heads=heads, inner=4 * width, embed=width, memory=length)
    model = DEQTransformerLM(config, rngs=nnx.Rngs(0))
    model.eval()
    graphdef, weights, rest = nnx.split(model.deq.cell, nnx.Param, ...)
    arrays, structure = jax.tree.flatten(weights)  # others cannot have NNX's variables
    u = jax.random.normal(jax.random.key(0), (batch, length, 3 * width))
    memory, positions = model.empty_memory(batch), model.positions(2 * length)

    def f(z, params):
        arrays, u = params
        weights = jax.tree.unflatten(structure, arrays)
        return nnx.merge(graphdef, weights, rest, copy=True)(z, u, memory, positions)

    name = f"transformer cell {batch} x {length} x {width}"
    return Problem(name, f, (arrays, u), jnp.zeros((batch, length, width)))


def images(batch: int, side: int, channels: int, expansion: int = 2) -> Problem:
    """A residual block of convolutions with group normalisation, as on one branch of a multiscale DEQ.

    Smooth: with rectifiers, a residual of 1e-5 can leave a unit on the wrong side of its kink, and gradients 1 % off.
    """
    draw = np.random.default_rng(0).standard_normal
    inner = expansion * channels
    kernel = lambda a, b: jnp.asarray(0.5 * draw((3, 3, a, b)) / (9 * a) ** 0.5, jnp.float32)
    x = jnp.asarray(draw((batch, side, side, channels)), jnp.float32)

    def normalise(a, groups=4):
        b = a.reshape(*a.shape[:3], groups, -1)
        b = b - jnp.mean(b, (1, 2, 4), keepdims=True)
        return (b * jax.lax.rsqrt(jnp.mean(b * b, (1, 2, 4), keepdims=True) + 1e-5)).reshape(a.shape)

    def convolve(a, k):
        return jax.lax.conv_general_dilated(a, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def f(z, params):
        widen, narrow, x = params
        y = convolve(jax.nn.silu(normalise(convolve(z, widen))), narrow)
        return normalise(jax.nn.silu(0.5 * normalise(y) + 0.2 * z + x))

    return Problem(
        f"images {batch} x {side} x {side} x {channels}",
        f,
        (kernel(channels, inner), kernel(inner, channels), x),
        jnp.zeros_like(x),
    )


def mixed(batch: int, width: int, hardest: float = 0.98) -> Problem:
    """Linear maps, a problem a row: contraction rates from 0.1 to `hardest`, so that some need many more steps."""
    draw = np.random.default_rng(0).standard_normal
    basis, _ = np.linalg.qr(draw((width, width)))
    w = jnp.asarray(basis * np.linspace(-0.9, 1, width) @ basis.T, jnp.float32)
    rate = jnp.asarray(np.geomspace(0.1, hardest, batch)[:, None], jnp.float32)
    x = jnp.asarray(draw((batch, width)), jnp.float32)
    f = lambda z, params: params[2] * (z @ params[0]) + params[1]
    return Problem(f"mixed {batch} x {width}", f, (w, x, rate), jnp.zeros_like(x))


def counter(size: int) -> Problem:
    """Never converges, and costs next to nothing: what is left is the solver."""
    return Problem(f"{size} numbers", lambda z, step: z + step, jnp.ones(size), jnp.zeros(size))


def million(batch: int = 1024) -> Problem:
    return dense(batch, 1024)._replace(name="a million unknowns")


ANYWHERE: list[Callable[[], Problem]] = [million, partial(stiff, 64, 512), partial(mixed, 64, 256)]
ALL: dict[str, list[Callable[[], Problem]]] = {  # by size
    "tiny": [partial(dense, 4, 16)],
    "laptop": [
        partial(dense, 64, 256),
        partial(dense, 64, 1024),
        partial(dense, 64, 4096),
        partial(attention, 8, 64, 128),
        partial(images, 8, 32, 24),
        *ANYWHERE,
    ],
    "gpu": [
        partial(dense, 64, 1024),
        partial(dense, 1024, 4096),
        partial(attention, 32, 256, 512),
        partial(images, 32, 56, 64),
        *ANYWHERE,
    ],
}
CELL: dict[str, Callable[[], Problem]] = {  # only compiled: to be solved, it would have to be trained
    "tiny": partial(transformer_cell, 2, 4, 16),
    "laptop": partial(transformer_cell, 8, 64, 128),
    "gpu": partial(transformer_cell, 32, 256, 512),
}


def residual(problem: Problem, z: jax.Array) -> float:
    """Relative, of an answer."""
    fz = problem.f(z, problem.params)
    return float(jnp.linalg.norm(fz - z) / jnp.linalg.norm(fz))


def exact_gradient(problem: Problem, g: jax.Array, terms: int = 3000) -> Any:
    """The gradient of `sum(g * z)` by the parameters: plain iteration, then Neumann's series, in float64."""
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)
        params, z0, g = wide(problem.params), wide(problem.z0), wide(g)

        @jax.jit
        def compute(params, z0, g):
            close = lambda old, new: jnp.abs(new - old).max() > 1e-12 * jnp.abs(new).max()
            iterate = lambda step, x: jax.lax.while_loop(
                lambda c: (c[0] < terms) & close(c[1], c[2]), lambda c: (c[0] + 1, c[2], step(c[2])), (0, x, step(x))
            )[2]
            z = iterate(lambda z: problem.f(z, params), z0)
            _, pull = jax.vjp(problem.f, z, params)
            u = iterate(lambda u: g + pull(u)[0], g)
            return pull(u)[1]

        return jax.tree.map(np.asarray, compute(params, z0, g))


def distance(found: Any, exact: Any) -> float:
    """Relative, in the 2-norm over all leaves."""
    flat = lambda tree: np.concatenate([np.ravel(np.asarray(a, np.float64)) for a in jax.tree.leaves(tree)])
    return float(np.linalg.norm(flat(found) - flat(exact)) / np.linalg.norm(flat(exact)))
