"""What is solved."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    name: str
    f: Callable  # f(z, params)
    params: Any
    z0: jax.Array


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
    return Problem(name, tanh, (w, x), jnp.zeros_like(x))


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

    return Problem(f"attention {batch} x {length} x {width}", f, (weights, x), jnp.zeros_like(x))


def counter(size: int) -> Problem:
    """Never converges, and costs next to nothing: what is left is the solver."""
    return Problem(f"{size} numbers", lambda z, step: z + step, jnp.ones(size), jnp.zeros(size))


def residual(problem: Problem, z: jax.Array) -> float:
    """Relative, of an answer."""
    fz = problem.f(z, problem.params)
    return float(jnp.linalg.norm(fz - z) / jnp.linalg.norm(fz))


def tanh_gradient(problem: Problem, z: jax.Array, g: jax.Array) -> np.ndarray:
    """The exact gradient of `sum(g * z)` by the weights at the equilibrium, by direct solves in float64."""
    (w, x), z, g = problem.params, np.asarray(z, np.float64), np.asarray(g, np.float64)
    w, x = np.asarray(w, np.float64), np.asarray(x, np.float64)
    for _ in range(200):  # polish the equilibrium by Newton's method, without the inverse's last digits
        slope = 1 - np.tanh(z @ w + x) ** 2
        error = np.tanh(z @ w + x) - z
        if np.abs(error).max() < 1e-13:
            break
        jacobians = w.T[None] * slope[:, :, None]
        z = z + np.linalg.solve(np.eye(len(w)) - jacobians, error[..., None])[..., 0]
    transposed = w[None] * slope[:, None, :]
    u = np.linalg.solve(np.eye(len(w)) - transposed, g[..., None])[..., 0]
    return z.T @ (slope * u)
