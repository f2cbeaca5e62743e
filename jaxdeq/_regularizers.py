"""Is the equilibrium stable? The size of its Jacobian, and its largest eigenvalue, estimated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._closure import Hoisted, spread_like, trace_map
from jaxdeq._types import Z

MODES = ("jvp", "vjp")
KRYLOV = 16  # products that span the space in which eigenvalues are sought
SQUARINGS = 20  # of the small matrix: its power 2^20
UNROLL = 8  # probes that a compiled program holds one by one


def jacobian_penalty(
    f: Callable[..., Z], z: Z, key: Array, *args: Any, probes: int = 1, mode: str = "jvp"
) -> Float[Array, ""]:
    """Estimates `||df/dz||_F^2 / size(z)` without bias, by Hutchinson's method.

    Added to a loss, it keeps the layer contractive, so that solves stay short while it is learnt.
    With Gaussian `v`, `E ||J v||^2 = E ||v^T J||^2 = ||J||_F^2`. `z` is held constant: gradients
    flow to `args` and to what `f` closes over, not to `z`. The size counts all leaves, the batch
    included, so that the penalty does not depend on the batch size. Half-precision states are
    summed in float32; a complex state counts one complex derivative an entry.

    One evaluation of `f`, linearised, and one product a probe. The relative standard deviation is
    at most `sqrt(2 / probes)`, and small where many singular values are alike.

    Args:
      f: the map; returns what `z` is: the same structure, shapes and dtypes.
      z: where to take the Jacobian, such as the equilibrium.
      key: for the probes; consumed.
      *args: further arguments of `f`.
      probes: random vectors to average over.
      mode: "jvp", products `J v`; or "vjp", products `v^T J`, for maps without a forward mode.
        The first needs less memory, most of all when it is differentiated.

    Returns:
      A scalar, float32 or the real dtype of `z` if that is wider.

    Raises:
      ValueError: an unknown `mode`, `probes < 1`, an empty `z`, a result of another shape.
      TypeError: a `z` that is not floating or complex; a result of another structure or dtype.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdeq
      >>> z, key = jnp.zeros(1000), jax.random.key(0)
      >>> print(f"{jaxdeq.jacobian_penalty(lambda z: 0.5 * z, z, key, probes=10):.2f}")
      0.25

    References:
      Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix", 1989.
      Bai, Koltun & Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", 2021.
    """
    check.count("probes", probes)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
    z, traced, operands = trace_map(f, check.state(z, batched=False), args)
    return _penalty(traced, operands, z, key, probes, mode)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _penalty(f: Hoisted, operands: list[Array], z: Any, key: Array, probes: int, mode: str) -> Array:
    draw = lambda key: gaussian(key, z)
    return mean_square(lambda z: f(operands, z), z, jax.random.split(key, probes), mode, draw)


def mean_square(f: Callable[[Z], Z], z: Z, probes: Any, mode: str, draw: Callable[[Any], Z] = lambda v: v) -> Array:
    """The mean of `||J v||^2 / size(z)` over vectors, or of `||v^T J||^2`; `draw` makes one of each of `probes`."""
    z = lax.stop_gradient(z)
    if mode == "jvp":
        out, product = jax.linearize(f, z)
    else:
        out, pullback = jax.vjp(f, z)
        product = lambda v: pullback(v)[0]
    check.same(z, out)
    like = jax.tree.map(jax.typeof, z if mode == "jvp" else out)
    # One after the other: `vmap` would fold the probes into the batch axis of a convolution, which on a mesh
    # has to be gathered for it. Unrolled, since XLA makes slow convolutions of those in a loop on a CPU: with
    # four probes, the gradient of a block of two takes 14 times as long.
    measure = lambda _, probe: (None, square(product(spread_like(draw(probe), like))))
    _, squares = lax.scan(measure, None, probes, unroll=UNROLL)
    return jnp.mean(squares) / sum(x.size for x in jax.tree.leaves(z))


def square(x: Any) -> Array:
    """The sum of squared absolute values."""
    return tree.dot(x, x)


def gaussian(key: Array, like: Any) -> Any:
    """Independent normal entries with `E |v|^2 = 1`, drawn in float32 or better."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))

    def draw(key, x):
        return jax.random.normal(key, x.shape, tree.wide_dtype(x.dtype)).astype(x.dtype)

    return structure.unflatten([draw(k, x) for k, x in zip(keys, leaves, strict=True)])


def spectral_radius(
    f: Callable[..., Z], z: Z, key: Array, *args: Any, iters: int = 64, batched: bool = False
) -> Float[Array, "*batch"]:
    """Estimates the largest absolute eigenvalue of `df/dz`.

    Plain iteration converges near `z` if and only if it is below one, and then shrinks the error
    by this factor a step. The power method sharpens a random vector by `iters - 16` products;
    the last 16 span a space in which all eigenvalues are found at once (Arnoldi), so that complex
    pairs, pairs `+-a` and a few eigenvalues of nearly the same size are told apart.

    Accuracy in float32 with 64 products: round-off where few eigenvalues share the largest size,
    that is where the others are at most 0.9 of it (1e-5 relative); about 1e-2 below the true
    value for dense spectra, such as the disc of a random matrix of width 1000; 0.1 below where
    all eigenvalues are of one size. Strongly non-normal Jacobians can err to both sides (a Jordan
    block of size 5 by 3e-2). More products help. It holds 17 vectors like `z`.

    Args:
      f: the map; returns what `z` is: the same structure, shapes and dtypes.
      z: where to take the Jacobian, such as the equilibrium.
      key: for the random start; consumed.
      *args: further arguments of `f`.
      iters: products `J v`.
      batched: whether the leading axis of every leaf counts independent problems; then one radius
        each.

    Returns:
      The estimate; float32, or the real dtype of `z` if that is wider. Zero for a Jacobian whose
      power of `iters - 16` vanishes.

    Raises:
      ValueError: `iters < 1`, an empty `z`, a result of another shape, no common leading axis.
      TypeError: a `z` that is not floating or complex; a result of another structure or dtype.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdeq
      >>> turn = 0.9 * jnp.array([[0.0, -1.0], [1.0, 0.0]])
      >>> rho = jaxdeq.spectral_radius(lambda z: turn @ z, jnp.ones(2), jax.random.key(0))
      >>> print(f"{rho:.3f}")
      0.900

    References:
      Arnoldi, "The Principle of Minimized Iterations in the Solution of the Matrix Eigenvalue
      Problem", 1951.
    """
    check.count("iters", iters)
    z, traced, operands = trace_map(f, check.state(z, batched), args)
    return _radius(traced, operands, z, key, iters, int(batched))


@partial(jax.jit, static_argnums=(0, 4, 5))
def _radius(f: Hoisted, operands: list[Array], z: Any, key: Array, iters: int, batch: int) -> Array:
    _, push = jax.linearize(lambda z: f(operands, z), z)
    like = jax.tree.map(jax.typeof, z)

    def product(v):
        narrow = jax.tree.map(lambda a, x: a.astype(x.dtype), v, z)
        return jax.tree.map(tree.wide, push(narrow))

    start = jax.tree.map(tree.wide, spread_like(gaussian(key, z), like))
    dimension = min(iters, KRYLOV)
    v = lax.fori_loop(0, iters - dimension, lambda _, v: unit(product(v), batch)[0], unit(start, batch)[0])
    return largest(project(product, v, dimension, batch))


def unit(x: Any, batch: int) -> tuple[Any, Array]:
    """`x / ||x||`, or zeros where it is zero; and the norm."""
    size = tree.norm(x, batch)
    return jax.tree.map(lambda a: a / tree.along(jnp.where(size > 0, size, 1), a), x), size


def project(product: Callable[[Any], Any], v: Any, dimension: int, batch: int) -> Array:
    """The matrix `[*batch, n, n]` of `product` in an orthonormal basis of `v, J v, J^2 v, ...`.

    Where these end up dependent the remaining rows and columns are zero.
    """

    def extend(k, carry):
        basis, matrix = carry
        w = product(jax.tree.map(lambda s: s[k], basis))
        before = tree.norm(w, batch)
        column = jnp.zeros_like(matrix[0])
        for _ in range(2):  # the second pass takes out what round-off left in
            part = tree.dot(basis, w, batch + 1)
            w = tree.sub(w, tree.mix(part, basis))
            column = column + part
        w, size = unit(w, batch)
        fresh = size > 16 * jnp.finfo(size.dtype).eps * before
        w = tree.where(fresh, w, jax.tree.map(jnp.zeros_like, w))
        column = column.at[k + 1].set(jnp.where(fresh, size, 0))
        return tree.put(basis, k + 1, w), matrix.at[k].set(column)

    dtype = tree.real_dtype(*(x.dtype for x in jax.tree.leaves(v)))
    basis = tree.put(tree.zeros(v, dimension + 1), jnp.int32(0), v)
    matrix = tree.full(v, batch, 0, dtype, (dimension, dimension + 1))
    _, matrix = lax.fori_loop(0, dimension, extend, (basis, matrix))
    return jnp.moveaxis(matrix[:, :dimension], (0, 1), (-1, -2))


def largest(matrix: Array) -> Array:
    """The spectral radius of small matrices `[*batch, n, n]`: `||A^k||^(1/k)` for `k = 2^20`.

    By repeated squaring; a library call for eigenvalues would run on a CPU only.
    """

    def square(i, carry):
        power, log = carry
        size = jnp.sqrt(jnp.sum(jnp.square(power), axis=(-1, -2)))
        power = power / jnp.where(size > 0, size, 1)[..., None, None]
        power = jnp.matmul(power, power, precision=lax.Precision.HIGHEST)
        return power, log + jnp.log(size) * 0.5**i

    _, log = lax.fori_loop(0, SQUARINGS, square, (matrix, jnp.zeros_like(matrix[..., 0, 0])))
    return jnp.exp(log)
