"""Turns what a function closes over into arguments."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxdeq import _checks as check
from jaxdeq._fingerprint import fingerprint
from jaxdeq._inline import inline
from jaxdeq._types import Z

# Python scalars other than floats stay Python values, so that `range(n)` and `if flag:` work on them.
_TRACED = (jax.Array, np.ndarray, np.generic, float, complex)


@dataclass(frozen=True, eq=False)
class Hoisted:
    """A map as a jaxpr: `call(operands, z)`, with nothing closed over that could carry a gradient.

    Maps with the same key, from `fingerprint`, are equal; without one a map equals only itself.
    """

    jaxpr: Any
    tree: Any  # of z
    key: Any = field(default=None, repr=False)

    def __call__(self, operands: list[Any], z: Any) -> Any:
        out = jax.core.eval_jaxpr(self.jaxpr, (), *operands, *self.tree.flatten_up_to(z))
        avals = [v.aval for v in self.jaxpr.outvars]
        # An explicit conversion also strips the weak type that a Python scalar left behind.
        out = [jax.lax.convert_element_type(x, a.dtype) for x, a in zip(out, avals, strict=True)]
        return self.tree.unflatten(out)

    @cached_property
    def _hash(self):
        return id(self) if self.key is None else hash(self.key)

    def __hash__(self):
        return self._hash

    def __eq__(self, other):
        if self is other:
            return True
        return isinstance(other, Hoisted) and self.key is not None and self.key == other.key


def hoist(f: Callable[..., Any], z: Any, args: tuple = ()) -> tuple[Any, list[Any], Any]:
    """Traces `f(z, *args)` once, and into functions that are jitted.

    Returns:
      The jaxpr with inputs `operands` then the leaves of `z`; the operands, which are all arrays
      in `args` and all arrays that `f` closes over, of any dtype; and the result's shapes.
    """
    leaves, tree = jax.tree.flatten(args)
    traced = [isinstance(x, _TRACED) for x in leaves]
    dynamic = [x for x, t in zip(leaves, traced, strict=True) if t]

    def call(dynamic, z):  # a new function each time: `make_jaxpr` caches by function, closures included
        values = iter(dynamic)
        merged = [next(values) if t else x for x, t in zip(leaves, traced, strict=True)]
        return f(z, *tree.unflatten(merged))

    closed, shapes = jax.make_jaxpr(call, return_shape=True)(dynamic, z)
    jaxpr = closed.jaxpr
    eqns, outvars, constvars, consts = inline(jaxpr, closed.consts)
    opened = rewrite(jaxpr, constvars=(), invars=(*constvars, *jaxpr.invars), eqns=eqns, outvars=outvars)
    return opened, consts + dynamic, shapes


@dataclass(frozen=True)
class Traced:
    """A map that `trace_map` takes as it is: `call(z, *operands)`."""

    map: Hoisted

    def __call__(self, z: Any, *operands: Any) -> Any:
        return self.map(list(operands), z)


def trace_map(f: Callable[..., Z], z0: Z, args: tuple) -> tuple[Z, Hoisted, list[ArrayLike]]:
    """Traces `f` once, or once more if `z0` is not yet spread over the mesh as `f(z0)` is.

    Returns:
      `z0`, spread; the map; its operands.

    Raises:
      TypeError, ValueError: `f` does not return what `z0` is.
    """
    if isinstance(f, Traced):
        return z0, f.map, list(args)
    jaxpr, operands, out = hoist(f, z0, args)
    check.same(z0, out)
    spread = spread_like(z0, out)
    if spread is not z0:
        jaxpr, operands, out = hoist(f, spread, args)
        check.stays(spread, spread_like(spread, out))
    tree = jax.tree.structure(z0)
    return spread, Hoisted(jaxpr, tree, (tree, fingerprint(jaxpr))), operands


def rewrite(jaxpr: Any, **parts: Any) -> Any:
    """The jaxpr with other parts; the names of its arguments and results no longer apply."""
    return jaxpr.replace(debug_info=jaxpr.debug_info._replace(arg_names=None, result_paths=None), **parts)


def spread_like(z: Any, like: Any) -> Any:
    """`z` spread over the mesh as `like` is; the same object if it already is.

    What an array's type says of that: its sharding under Explicit mesh axes, and inside
    `shard_map` the axes over which its value varies.
    """
    leaves, tree = jax.tree.flatten(z)
    moved = [_spread(x, s) for x, s in zip(leaves, tree.flatten_up_to(like), strict=True)]
    return z if all(a is b for a, b in zip(leaves, moved, strict=True)) else tree.unflatten(moved)


def _spread(x: jax.Array, like: Any) -> jax.Array:
    axes = varying(like) - varying(jax.typeof(x))
    if axes:
        x = jax.lax.pcast(x, tuple(sorted(axes)), to="varying")
    sharding = like.sharding
    if sharding is not None and not sharding.mesh.empty and sharding != jax.typeof(x).sharding:
        x = jax.sharding.reshard(x, sharding)
    return x


def varying(x: Any) -> frozenset:
    """The axes of a `shard_map` over which a value varies, by its type."""
    return frozenset() if x.manual_axis_type is None else x.manual_axis_type.varying
