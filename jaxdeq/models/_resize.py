"""Images of other sizes, NHWC."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeq._tree import wide


def resize_nearest(x: jax.Array, factor: int) -> jax.Array:
    """Repeats every pixel `factor` times in height and width."""
    b, h, w, c = x.shape
    # One axis after the other: under Explicit mesh axes a reshape may merge one pair.
    x = jnp.broadcast_to(x[:, :, None], (b, h, factor, w, c)).reshape(b, h * factor, w, c)
    return jnp.broadcast_to(x[:, :, :, None], (b, h * factor, w, factor, c)).reshape(b, h * factor, w * factor, c)


def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes images or logits `[B, H, W, C]` to `[B, *size, C]` so that corner pixels stay in the corners.

    Linear in height and in width: two small matrix products, in float32 or better. It is what
    PyTorch calls `interpolate(mode="bilinear", align_corners=True)`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxdeq.models import resize_bilinear
      >>> resize_bilinear(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 3)).ravel()
      Array([0. , 0.5, 1. ], dtype=float32)
    """
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = (_interpolation(n, m, wide(x).dtype) for n, m in zip(size, x.shape[1:3], strict=True))
    y = jnp.einsum("ih,bhwc->biwc", rows, wide(x), precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("jw,biwc->bijc", columns, y, precision=jax.lax.Precision.HIGHEST).astype(x.dtype)


def _interpolation(outputs, inputs, dtype):
    """The matrix `[outputs, inputs]` of linear interpolation between the end points."""
    position = np.arange(outputs) * ((inputs - 1) / max(outputs - 1, 1))
    weights = 1 - np.abs(position[:, None] - np.arange(inputs))
    return jnp.asarray(np.maximum(weights, 0), dtype)
