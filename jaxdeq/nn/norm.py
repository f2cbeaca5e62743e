"""Layers whose weights are normalised: once a solve inside a `DEQ`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdeq import _checks as check
from jaxdeq._tree import wide

START = 20  # steps of the power method for a new layer


class WeightNorm(nnx.Module):
    """Splits the kernel of a layer into directions and lengths: `g * v / ||v||`.

    Both are learnt, and `g` starts as `||v||`, so that the wrapped layer first computes what it
    did before. Weight decay on `v` then no longer shrinks the weights. The kernel is normalised
    at each call; inside a `DEQ`, once a solve. (`flax.nnx.WeightNorm` overwrites the kernel with
    the normalised one, and its scales are not learnt.)

    Args:
      layer: has a parameter `kernel`, as `nnx.Linear`, `nnx.Conv` and `nnx.Einsum` have. It keeps
        `v` under that name, next to this layer's `scale`, which is `g`, and whose axes have the
        names of the kernel's where those have names for a mesh.
      axes: those of the kernel that count outputs, each with a length of its own; the norm runs
        over all others. The last one is right for linear and convolutional layers.

    Raises:
      TypeError: a `layer` without a `kernel`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.nn import WeightNorm
      >>> layer = WeightNorm(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
      >>> layer(jnp.ones((2, 3))).shape, layer.scale.shape
      ((2, 4), (4,))

    References:
      Salimans & Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training
      of Deep Neural Networks", 2016.
    """

    def __init__(self, layer: nnx.Module, *, axes: int | Sequence[int] = -1):
        kernel = _kernel(layer)
        self.layer = layer
        self.axes = (axes,) if isinstance(axes, int) else tuple(axes)
        others = self._others(kernel)
        self.scale = nnx.Param(jnp.squeeze(_norm(kernel, others), others), **_names(layer, others))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _with_kernel(self.layer, self.kernel())(*args, **kwargs)

    def kernel(self) -> jax.Array:
        """The weights in use, `g * v / ||v||`; zero where `v` is."""
        v = _kernel(self.layer)
        others = self._others(v)
        length = _norm(v, others)
        scale = jnp.expand_dims(self.scale[...], others)
        return (wide(v) * (wide(scale) / jnp.where(length > 0, wide(length), 1))).astype(v.dtype)

    def _others(self, kernel):
        """The axes that the norm runs over."""
        kept = {axis % kernel.ndim for axis in self.axes}
        return tuple(axis for axis in range(kernel.ndim) if axis not in kept)


class SpectralNorm(nnx.Module):
    """Scales the kernel of a layer to a given largest singular value: `norm * v / sigma(v)`.

    With `norm` below one and a map that does not stretch otherwise, the cell contracts. The
    singular value is estimated by the power method, from vectors kept between calls: each call in
    training mode makes one step and keeps the result. Inside a `DEQ` that is once a solve. The
    gradient takes the singular vectors as constants, as is exact once they have converged.

    The kernel counts as a matrix from all axes but the last to the last. For a convolution that is
    the usual stand-in for the norm of the operator, which can be larger by the square root of the
    number of kernel positions.

    Args:
      layer: has a parameter `kernel`, which keeps `v`.
      norm: the largest singular value of the kernel in use.
      rngs: for the starting vectors.

    Raises:
      TypeError: a `layer` without a `kernel`.
      ValueError: `norm` is not a positive number.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.nn import SpectralNorm
      >>> layer = SpectralNorm(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), norm=0.9, rngs=nnx.Rngs(1))
      >>> print(f"{jnp.linalg.norm(layer.kernel(), ord=2):.2f}")
      0.90

    References:
      Miyato, Kataoka, Koyama & Yoshida, "Spectral Normalization for Generative Adversarial
      Networks", 2018.
    """

    def __init__(self, layer: nnx.Module, *, norm: float = 1.0, rngs: nnx.Rngs):
        check.positive("norm", norm)
        matrix = _matrix(_kernel(layer))
        self.layer = layer
        self.norm = norm
        u = _unit(rngs.params.normal((matrix.shape[1],), matrix.dtype))
        for _ in range(START):
            u = _power_step(matrix, u)[1]
        self.u = nnx.BatchStat(u)
        self.use_running_average = False  # toggled by train() and eval()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kernel = self.kernel()
        if not self.use_running_average:
            self.u[...] = _power_step(_matrix(_kernel(self.layer)), self.u[...])[1]
        return _with_kernel(self.layer, kernel)(*args, **kwargs)

    def kernel(self) -> jax.Array:
        """The weights in use, `norm * v / sigma(v)`."""
        v = _kernel(self.layer)
        matrix = _matrix(v)
        left, right = jax.lax.stop_gradient(_power_step(matrix, self.u[...]))
        sigma = left @ matrix @ right
        return (wide(v) * (self.norm / jnp.where(sigma > 0, sigma, 1))).astype(v.dtype)


def _matrix(kernel):
    """The kernel as `[inputs, outputs]`, in float32 or better."""
    return wide(kernel.reshape(-1, kernel.shape[-1]))


def _power_step(matrix, u):
    """Better singular vectors, `[inputs]` and `[outputs]`."""
    left = _unit(matrix @ u)
    right = _unit(left @ matrix)
    return left, jnp.where(jnp.any(right != 0), right, u)  # a kernel of zeros must not end the search


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x), jnp.finfo(x.dtype).tiny)


def _kernel(layer) -> jax.Array:
    kernel = getattr(layer, "kernel", None)
    if not isinstance(kernel, nnx.Variable):
        raise TypeError(f"layer must have a parameter named kernel, as nnx.Linear has; got {type(layer).__name__}")
    return kernel[...]


def _names(layer: Any, without: tuple[int, ...]) -> dict[str, Any]:
    """Metadata that gives an array without these axes of the kernel the names of the others, if they have any."""
    metadata = layer.kernel.get_metadata()
    names = metadata.get("out_sharding")
    if names is None:
        return {}
    kept = tuple(name for axis, name in enumerate(names) if axis not in without)
    return {"out_sharding": kept, "eager_sharding": metadata["eager_sharding"]}


def _norm(x, axes):
    """The 2-norm over `axes`, which stay with length 1; its gradient is zero where it is."""
    total = jnp.sum(jnp.square(wide(x)), axis=axes, keepdims=True)
    safe = jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, jnp.sqrt(safe), 0).astype(x.dtype)


def _with_kernel(layer, kernel) -> Callable[..., Any]:
    """A copy of the layer with this kernel; the layer itself stays as it is."""
    copy = nnx.clone(layer)
    copy.kernel[...] = kernel
    return copy
