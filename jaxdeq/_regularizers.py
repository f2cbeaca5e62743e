"""What keeps an equilibrium model stable: the size of its Jacobian, estimated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._types import Z

MODES = ("jvp", "vjp")


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
    z = check.state(z, batched=False)
    noise = jax.vmap(lambda key: gaussian(key, z))(jax.random.split(key, probes))
    return mean_square(lambda z: f(z, *args), z, noise, mode)


def mean_square(f: Callable[[Z], Z], z: Z, noise: Z, mode: str) -> Array:
    """The mean of `||J v||^2 / size(z)` over the probes stacked in `noise`; or of `||v^T J||^2`."""
    z = jax.lax.stop_gradient(z)
    if mode == "jvp":
        out, product = jax.linearize(f, z)
    else:
        out, pullback = jax.vjp(f, z)
        product = lambda v: pullback(v)[0]
    check.same(z, out)
    squares = jax.vmap(lambda v: square(product(v)))(noise)
    return jnp.mean(squares) / sum(x.size for x in jax.tree.leaves(z))


def square(x: Any) -> Array:
    """The sum of squared absolute values."""
    return tree.dot(x, x)


def gaussian(key: Array, like: Any) -> Any:
    """Independent normal entries with `E |v|^2 = 1`, drawn in float32 or better."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))

    def draw(key, x):
        noise = jax.random.normal(key, x.shape, tree.wide_dtype(x.dtype), out_sharding=jax.typeof(x).sharding)
        return noise.astype(x.dtype)

    return structure.unflatten([draw(k, x) for k, x in zip(keys, leaves, strict=True)])
