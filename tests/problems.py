"""Maps with known equilibria, for every suite that solves something.

The equilibrium is a closed form, or the result of Newton's method in float64 with the dense
Jacobian; none comes from a solver of this package. Maps that differ in their arguments alone share
one `f`, and so one compilation a solver.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, eq=False)
class Problem:
    """`z = f(z, *args)`, to be solved from `z0`.

    Attributes:
      exact: the equilibrium, a tree of float64 or complex128 numpy arrays, or a function of it.
      batched: whether the leading axis counts independent problems.
      picard: whether plain iteration converges.
      rtol: a tolerance worth asking for.
      error: the largest `norm(z - exact) / norm(exact)` of a `z` that meets it.
      max_steps: enough for every solver that converges.
    """

    name: str
    f: Callable
    z0: Any
    args: tuple
    exact: Any
    batched: bool = False
    picard: bool = True
    rtol: float = 1e-5
    error: float = 1e-4
    max_steps: int = 300

    @cached_property
    def z(self) -> Any:
        """The equilibrium."""
        return self.exact() if callable(self.exact) else self.exact

    def distance(self, z: Any) -> float:
        """`norm(z - exact) / norm(exact)`, of the worst of the problems in a batch."""
        axis = 1 if self.batched else 0
        square = lambda x: np.sum(np.abs(x).reshape(*x.shape[:axis], -1) ** 2, axis=-1)
        pairs = zip(jax.tree.leaves(z), jax.tree.leaves(self.z), strict=True)
        pairs = [(square(np.asarray(a, np.result_type(b)) - b), square(np.asarray(b))) for a, b in pairs]
        return float(np.max(np.sqrt(sum(a for a, _ in pairs) / sum(b for _, b in pairs))))


def newton(f: Callable, z0: Any, args: tuple) -> Callable:
    """The equilibrium in float64, by a function that finds it when it is wanted."""

    def find():
        with jax.enable_x64(True):
            leaves, tree = jax.tree.flatten(z0)
            cuts = np.cumsum([x.size for x in leaves])[:-1]
            wide = jax.tree.map(lambda x: np.asarray(x, np.float64), args)
            split = lambda v: tree.unflatten(
                [p.reshape(x.shape) for p, x in zip(jnp.split(v, cuts), leaves, strict=True)]
            )
            g = lambda v: jnp.concatenate([x.ravel() for x in jax.tree.leaves(f(split(v), *wide))]) - v
            both = jax.jit(lambda v: (g(v), jax.jacfwd(g)(v)))
            v = jnp.concatenate([jnp.asarray(x, jnp.float64).ravel() for x in leaves])
            for _ in range(40):
                value, jacobian = both(v)
                v = v - jnp.linalg.solve(jacobian, value)
            assert jnp.abs(value).max() < 1e-12
            return jax.tree.map(np.asarray, split(v))

    return find


def draw(*shape: int, seed: int = 0, size: float = 1.0) -> np.ndarray:
    return size * np.random.default_rng((seed, *shape)).normal(size=shape)


def orthogonal(n: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(draw(n, n, seed=seed))[0]


def single(*arrays: np.ndarray) -> tuple:
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def linear(z: Any, matrix: jax.Array, shift: jax.Array) -> Any:
    """`matrix @ z + shift`, for a tree of two leaves that the matrix couples."""
    v = jnp.concatenate([z["a"].ravel(), z["b"]])
    v = jnp.dot(matrix, v, precision="highest") + shift
    return {"a": v[:12].reshape(3, 4), "b": v[12:]}


def affine(name: str, blocks: np.ndarray, **settings: Any) -> Problem:
    """A linear map with these eigenvalues (or 17 x 17 normal matrix of blocks), in mixed coordinates."""
    basis, shift = orthogonal(17, seed=1), draw(17, seed=2)
    matrix = basis @ (np.diag(blocks) if blocks.ndim == 1 else blocks) @ basis.T
    matrix, shift = np.float32(matrix), np.float32(shift)
    v = np.linalg.solve(np.eye(17) - matrix.astype(np.float64), shift.astype(np.float64))
    z0 = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(5)}
    return Problem(name, linear, z0, single(matrix, shift), {"a": v[:12].reshape(3, 4), "b": v[12:]}, **settings)


def spirals(pairs: list[complex], rest: float = 0.3) -> np.ndarray:
    """A 17 x 17 matrix with these complex eigenvalues, their conjugates, and `rest`."""
    matrix = rest * np.eye(17)
    for i, c in enumerate(pairs):
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[c.real, -c.imag], [c.imag, c.real]]
    return matrix


def bounded(z: jax.Array, rate: jax.Array, matrix: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(jnp.dot(z, matrix, precision="highest")) * rate[:, None] + x


def attention(z: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, x: jax.Array) -> jax.Array:
    """One head over 5 positions, with a residual connection."""
    weights = jax.nn.softmax((z @ query) @ (z @ key).T / 2.0, axis=-1)
    return 0.3 * z + weights @ (z @ value) + x


def convolution(z: jax.Array, kernel: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(jax.lax.conv(z[None], kernel, (1, 1), "SAME")[0] + x)


def multires(z: dict, params: dict, x: jax.Array) -> dict:
    """Two resolutions, each fed by both."""
    fine, coarse = z["fine"], z["coarse"]
    pooled = fine.reshape(2, 2, 2, 2, 2).mean((2, 4))
    upsampled = jnp.repeat(jnp.repeat(coarse, 2, axis=1), 2, axis=2)
    mix = lambda w, y: jnp.einsum("oc,chw->ohw", w, y)
    return {
        "fine": jnp.tanh(mix(params["ff"], fine) + mix(params["fc"], upsampled) + x),
        "coarse": jnp.tanh(mix(params["cf"], pooled) + mix(params["cc"], coarse)),
    }


def diagonal(z: jax.Array, rate: jax.Array, x: jax.Array) -> jax.Array:
    return rate * z + x


def conjugate(z: jax.Array, rate: jax.Array, twist: jax.Array, x: jax.Array) -> jax.Array:
    """Linear over the reals, and not over the complex numbers."""
    return rate * z + twist * jnp.conj(z) + x


def nonlinear(name: str, f: Callable, z0: Any, args: Any, **settings: Any) -> Problem:
    args = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), args)
    return Problem(name, f, z0, args, newton(f, z0, args), **settings)


def half(dtype: Any) -> Problem:
    """Its matrix is exact in half precision, so the closed form is that of the map itself."""
    rate, x = jnp.array([0.5, -0.75, 0.25, 0.625], dtype), jnp.array([1.0, 2.0, -1.5, 0.5], dtype)
    z = np.asarray(x, np.float64) / (1 - np.asarray(rate, np.float64))
    eps = float(jnp.finfo(dtype).eps)
    return Problem(jnp.dtype(dtype).name, diagonal, jnp.zeros(4, dtype), (rate, x), z, rtol=4 * eps, error=16 * eps)


def million() -> Problem:
    n = 1_000_000
    rate, x = single(np.linspace(-0.9, 0.9, n), np.cos(np.arange(n)))
    z = np.asarray(x, np.float64) / (1 - np.asarray(rate, np.float64))
    return Problem("million", diagonal, jnp.zeros(n), (rate, x), z)


def complex_state() -> Problem:
    make = lambda seed, size: np.complex64(draw(6, seed=seed, size=size) + 1j * draw(6, seed=seed + 1, size=size))
    rate, twist, x = make(3, 0.25), make(5, 0.15), make(7, 1.0)
    a, c, b = (np.complex128(y) for y in (rate, twist, x))
    z = ((1 - a.conj()) * b + c * b.conj()) / (abs(1 - a) ** 2 - abs(c) ** 2)
    return Problem("complex", conjugate, jnp.zeros(6, jnp.complex64), tuple(map(jnp.asarray, (rate, twist, x))), z)


def problems() -> list[Problem]:
    angles = np.linspace(0.4, 2.9, 8)
    mixed = (np.array([0.0, 0.99, 0.5, 0.9, 0.2]), orthogonal(6, seed=4), draw(5, 6, seed=5, size=0.3))
    repelling = (
        np.full(1, 3.0),
        -orthogonal(6, seed=4) @ np.diag([1, 0.1, 0.2, 0.5, 0.1, 0.8]) @ orthogonal(6, seed=4).T,
    )
    weights = {k: draw(2, 2, seed=i, size=0.25) for i, k in enumerate(("ff", "fc", "cf", "cc"))}
    return [
        Problem("cosine", jnp.cos, jnp.ones(()), (), np.float64(0.7390851332151607)),
        affine("linear 0.5", np.linspace(-0.5, 0.5, 17)),
        affine("linear 0.95", np.linspace(-0.9, 0.95, 17), error=1e-3, max_steps=400),
        affine("linear 0.99", np.linspace(-0.9, 0.99, 17), error=1e-2, max_steps=2000),
        affine("rotating", spirals(list(0.95 * np.exp(1j * angles))), max_steps=400),
        affine("below -1", np.r_[-3, -2, np.linspace(-0.5, 0.5, 15)], picard=False),
        affine("spiralling out", spirals([-0.5 + 1.5j, 0.5 + 1.2j]), picard=False),
        nonlinear("repelling", bounded, jnp.zeros((1, 6)), (*repelling, draw(1, 6, seed=6)), picard=False),
        nonlinear("batch", bounded, jnp.zeros((5, 6)), mixed, batched=True, error=1e-3, max_steps=2000),
        nonlinear("attention", attention, jnp.zeros((5, 4)), (*draw(3, 4, 4, size=0.2), draw(5, 4))),
        nonlinear("convolution", convolution, jnp.zeros((2, 6, 6)), (draw(2, 2, 3, 3, size=0.15), draw(2, 6, 6))),
        nonlinear(
            "multires",
            multires,
            {"fine": jnp.zeros((2, 4, 4)), "coarse": jnp.zeros((2, 2, 2))},
            (weights, draw(2, 4, 4)),
        ),
        million(),
        complex_state(),
        half(jnp.float16),
        half(jnp.bfloat16),
    ]


PROBLEMS = {problem.name: problem for problem in problems()}
