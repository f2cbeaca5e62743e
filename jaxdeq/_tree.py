"""A pytree as one long vector, leaf by leaf: nothing is ravelled, so shardings stay as they are.

`batch` counts leading axes that hold independent vectors (0 or 1). Inner products and norms
accumulate in float32 or better. Complex vectors are real vectors of twice the length.
"""

from functools import partial, reduce
from operator import add

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


def real_dtype(*dtypes) -> jnp.dtype:
    """The dtype for reductions over leaves of these dtypes: real, float32 or better."""
    return jnp.dtype(max(jnp.float32, *(jnp.finfo(d).dtype for d in dtypes), key=lambda d: jnp.finfo(d).bits))


def wide_dtype(dtype) -> jnp.dtype:
    """The dtype in which to compute with a leaf of this dtype: float32, complex64 or better."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def wide(x: jax.Array) -> jax.Array:
    return x.astype(wide_dtype(x.dtype))


def along(weight: jax.typing.ArrayLike, x: jax.Array) -> jax.Array:
    """`weight`, a number or one a problem, shaped to multiply the leaf `x`."""
    weight = jnp.asarray(weight, wide_dtype(x.dtype))
    return weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))


def sub(x, y):
    """`x - y`."""
    return jax.tree.map(lambda a, b: (wide(a) - wide(b)).astype(a.dtype), x, y)


def scale(weight, x):
    """`weight * x`; `weight` is a number, or one a problem."""
    return jax.tree.map(lambda a: (along(weight, a) * wide(a)).astype(a.dtype), x)


def axpy(weight, x, y):
    """`weight * x + y`; `weight` is a number, or one a problem."""
    return jax.tree.map(lambda a, b: (along(weight, a) * wide(a) + wide(b)).astype(b.dtype), x, y)


def where(condition: jax.Array, x, y):
    """`x` where the condition, a boolean or one a problem, holds, else `y`."""
    return jax.tree.map(
        lambda a, b: jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b), x, y
    )


def keep(condition: jax.Array, x):
    """`x` where the condition, a boolean or one a problem, holds, else 0."""
    return jax.tree.map(
        lambda a: jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, 0), x
    )


def dot(x, y, batch: int = 0) -> jax.Array:
    """The real inner product of `x` and `y`, over all axes but the first `batch` of the product.

    Either may be a stack of vectors: `dot(stack, y, batch + 1)` is one product an entry.
    """
    leaves = list(zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))
    dtype = real_dtype(*(a.dtype for a, _ in leaves))
    return reduce(add, (_leaf_dot(a, b, batch).astype(dtype) for a, b in leaves))


def _leaf_dot(a, b, batch):
    if a.ndim > b.ndim:
        return _stack_dot(a, b, batch)
    product = reduce(add, (p * q for p, q in zip(_reals(a), _reals(b), strict=True)))
    return jnp.sum(product, axis=tuple(range(batch, product.ndim)))


def _stack_dot(a, b, batch):
    """As one product: XLA's CPU backend would store all terms of a sum, and take 2 to 6 times as long."""
    rest, problems = tuple(range(batch, a.ndim)), tuple(range(1, batch))
    lies = jax.typeof(a).sharding  # Explicit mesh axes want to be told that sums over the others are complete
    product = partial(
        lax.dot_general,
        dimension_numbers=((rest, tuple(i - 1 for i in rest)), (problems, tuple(i - 1 for i in problems))),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=real_dtype(a.dtype),
        out_sharding=NamedSharding(lies.mesh, PartitionSpec(*lies.spec[1:batch], lies.spec[0])),
    )
    total = reduce(add, (product(p, q) for p, q in zip(_parts_of(a), _parts_of(b), strict=True)))
    return jnp.moveaxis(total, -1, 0)


def _parts_of(a):
    return [a.real, a.imag] if jnp.iscomplexobj(a) else [a]


def _reals(a):
    """The leaf as real arrays, in float32 or better."""
    return _parts_of(wide(a))


def norm(x, batch: int = 0) -> jax.Array:
    """The 2-norm; right up to the ends of the exponent range, where a plain sum of squares is not."""
    return norms((x,), batch)[0]


def norms(vectors: tuple, batch: int = 0) -> tuple[jax.Array, ...]:
    """The 2-norms of several vectors of one structure.

    The second pass over the data runs only if a sum of squares over- or underflowed.
    """
    squares = jnp.stack([dot(x, x, batch) for x in vectors])
    info = jnp.finfo(squares.dtype)
    safe = lambda: (squares < info.max) & (squares > info.tiny / info.eps)

    def careful(vectors):
        # Scaled by exact powers of two. Not by the largest entry: its reciprocal can be subnormal, and is
        # then flushed to zero.
        unit = jnp.asarray(2.0 ** (3 * info.maxexp // 4), squares.dtype)
        down, up = jnp.where(squares > 1, 1 / unit, unit), jnp.where(squares > 1, unit, 1 / unit)
        scaled = [[along(d, p) * p for p in _parts(x, d.dtype)] for x, d in zip(vectors, down, strict=True)]
        # Two ways of rounding: which one a problem gets must not depend on its batch mates.
        return jnp.where(safe(), jnp.sqrt(squares), up * jnp.sqrt(jnp.stack([dot(x, x, batch) for x in scaled])))

    return tuple(lax.cond(jnp.all(safe()), lambda _: jnp.sqrt(squares), careful, vectors))


def unit(x, batch: int = 0):
    """`x` scaled to a largest entry of one, and its size, so that squares neither under- nor overflow.

    The size counts as a constant, and is clipped so that its reciprocal is a normal number.
    """
    size = lax.stop_gradient(peak(x, batch))
    tiny = float(jnp.finfo(size.dtype).tiny)
    size = jnp.clip(size, tiny, 1 / (4 * tiny))
    return scale(1 / size, x), size


def peak(x, batch: int = 0) -> jax.Array:
    """The largest absolute value of a real or imaginary part."""
    dtype = real_dtype(*(a.dtype for a in jax.tree.leaves(x)))
    largest = (jnp.max(jnp.abs(p), axis=tuple(range(batch, p.ndim)), initial=0) for p in _parts(x, dtype))
    return reduce(jnp.maximum, largest)


def _parts(x, dtype) -> list[jax.Array]:
    """The real and imaginary parts of all leaves."""
    return [p.astype(dtype) for a in jax.tree.leaves(x) for p in _reals(a)]


def zeros(x, length: int):
    """Room for `length` vectors like `x`, along a new first axis."""
    return jax.tree.map(lambda a: jnp.broadcast_to(_false(a).astype(a.dtype), (length, *a.shape)), x)


def full(x, batch: int, value, dtype, shape: tuple[int, ...] = ()) -> jax.Array:
    """An array `[*shape, *batch]` of one value, spread over the mesh as a product `dot(x, x, batch)` is.

    A bare constant would be replicated. Under Explicit mesh axes and inside `shard_map` that is
    another type, and a loop's carry must not change type.
    """
    leaf = jax.tree.leaves(x)[0]
    blank = jnp.any(_false(leaf), axis=tuple(range(batch, leaf.ndim)))
    return jnp.broadcast_to(blank.astype(dtype) + jnp.asarray(value, dtype), (*shape, *blank.shape))


def _false(a):
    """False everywhere, spread over the mesh as `a` is."""
    return (a == a) & False


def put(stacked, index: jax.Array, x):
    """The stack with entry `index` replaced."""
    return jax.tree.map(lambda s, a: lax.dynamic_update_index_in_dim(s, a, index, 0), stacked, x)


def get(stacked, index: jax.Array):
    """Entry `index` of the stack."""
    return jax.tree.map(lambda s: lax.dynamic_index_in_dim(s, index, 0, keepdims=False), stacked)


def mix(weights, stacked):
    """`sum_i weights[i] * stacked[i]`; each weight is a number, or one a problem."""

    def leaf(s):
        # Unrolled on purpose: XLA's CPU reduction over a short first axis is 20 times slower.
        terms = (along(weights[i], s[i]) * wide(s[i]) for i in range(s.shape[0]))
        return reduce(add, terms).astype(s.dtype)

    return jax.tree.map(leaf, stacked)


def resolution(x) -> float:
    """The coarsest machine epsilon among the leaves."""
    return max(float(jnp.finfo(a.dtype).eps) for a in jax.tree.leaves(x))
