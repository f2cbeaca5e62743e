"""Turns what a function closes over into arguments, and takes out of a map what does not depend on `z`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import FunctionType
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal, Var
from jax.typing import ArrayLike

from jaxdeq import _checks as check
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
    """Traces `f(z, *args)` once.

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
    consts = list(closed.consts)
    opened = _rewrite(jaxpr, constvars=(), invars=(*jaxpr.constvars, *jaxpr.invars))
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


def _rewrite(jaxpr: Any, **parts: Any) -> Any:
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
    axes = _varying(like) - _varying(jax.typeof(x))
    if axes:
        x = jax.lax.pcast(x, tuple(sorted(axes)), to="varying")
    sharding = like.sharding
    if sharding is not None and not sharding.mesh.empty and sharding != jax.typeof(x).sharding:
        x = jax.sharding.reshard(x, sharding)
    return x


def _varying(x: Any) -> frozenset:
    return frozenset() if x.manual_axis_type is None else x.manual_axis_type.varying


# Sinking these back into the loop costs little: they only move or repeat data, and a compiler
# folds them into what consumes them. Hoisting them would store a second copy of it.
_LAYOUT = {"broadcast_in_dim", "copy", "expand_dims", "iota", "reshape", "rev", "squeeze", "transpose"}
_CHEAP_IF_LARGER = {"convert_element_type"}


def split(f: Hoisted, operands: list[Any]) -> tuple[Hoisted, list[Any]]:
    """Evaluates, once and now, the part of `f` that does not depend on `z`.

    Dropout masks, normalised weights and the injected `U x` inside a map thus cost one evaluation
    a solve, and their gradient one; what is left is the map that the loop runs.

    Returns:
      The remaining map and its operands.
    """
    jaxpr, count = f.jaxpr, len(operands)
    constant = set(jaxpr.invars[:count])
    before: list[Any] = []
    inside: list[Any] = []
    for eqn in _live(jaxpr.eqns, jaxpr.outvars):
        fixed = not eqn.effects and all(isinstance(v, Literal) or v in constant for v in eqn.invars)
        (before if fixed else inside).append(eqn)
        if fixed:
            constant.update(eqn.outvars)
    before, inside = _ready_kernels(before, inside, constant)
    before, inside = _sink(before, inside, jaxpr.outvars)
    made = _writes(before) - _writes(inside)
    needed = _reads(inside, jaxpr.outvars)
    hoisted = [v for v in needed if v in made]
    kept = [i for i, v in enumerate(jaxpr.invars[:count]) if v in needed]
    first = _rewrite(jaxpr, eqns=before, invars=jaxpr.invars[:count], outvars=hoisted)
    values = jax.core.eval_jaxpr(first, (), *operands)
    invars = [*(jaxpr.invars[i] for i in kept), *hoisted, *jaxpr.invars[count:]]
    rest = _rewrite(jaxpr, eqns=inside, invars=invars)
    key = None if f.key is None else ("rest", f.key)  # equal maps are split alike
    return Hoisted(rest, f.tree, key), [*(operands[i] for i in kept), *values]


def _ready_kernels(before, inside, constant):
    """Transposes constant convolution kernels to (spatial..., in, out), once, outside the loop.

    XLA's CPU backend brings a convolution to the layout of its fast routine only outside loops. The
    transposed convolutions of a backward solve ran 50 times slower without this (64 x 14 x 14 x 24).
    """
    before, ready = list(before), []
    for eqn in inside:
        if eqn.primitive.name == "conv_general_dilated" and eqn.invars[1] in constant:
            kernel, numbers = eqn.invars[1], eqn.params["dimension_numbers"]
            out, into, *spatial = numbers.rhs_spec
            order = (*spatial, into, out)
            if order != tuple(range(len(order))):
                transpose = partial(jax.lax.transpose, permutation=order)
                (move,) = jax.make_jaxpr(transpose)(kernel.aval).eqns
                before.append(move.replace(invars=[kernel]))
                last = len(order) - 1
                numbers = numbers._replace(rhs_spec=(last, last - 1, *range(last - 1)))
                params = {**eqn.params, "dimension_numbers": numbers}
                eqn = eqn.replace(invars=[eqn.invars[0], *move.outvars], params=params)
        ready.append(eqn)
    return before, ready


def _sink(before, inside, outvars):
    """Repeats in the loop what is cheap to remake, and drops what then nobody reads."""
    sunk: list[Any] = []
    kernels = {e.invars[1] for e in inside if e.primitive.name == "conv_general_dilated"}
    while True:
        needed = set(_reads(sunk + inside, outvars)) - kernels
        more = [e for e in before if _cheap(e) and any(v in needed for v in e.outvars)]
        if len(more) == len(sunk):
            break
        sunk = more
    inside = sunk + inside
    return _live(before, set(_reads(inside, outvars)) - _writes(sunk)), inside


def _live(eqns, outvars):
    """The equations without those that nobody reads, such as the parameters' part of a vjp by `z`."""
    wanted = set(_reads((), outvars))
    kept: list[Any] = []
    for eqn in reversed(eqns):
        if eqn.effects or wanted & set(eqn.outvars):
            kept.append(eqn)
            wanted.update(_reads([eqn], ()))
    return kept[::-1]


def _cheap(eqn) -> bool:
    name = eqn.primitive.name
    return name in _LAYOUT or (name in _CHEAP_IF_LARGER and _bytes(eqn.outvars) > _bytes(eqn.invars))


def _bytes(atoms) -> int:
    return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in atoms)


def _writes(eqns) -> set[Var]:
    return {v for eqn in eqns for v in eqn.outvars}


def _reads(eqns, outvars) -> dict[Var, None]:
    """The variables that the equations or the result read, in order."""
    atoms = [v for eqn in eqns for v in eqn.invars] + list(outvars)
    return dict.fromkeys(v for v in atoms if not isinstance(v, Literal))


def fingerprint(jaxpr: Any) -> tuple:
    """A hashable value, equal for jaxprs that compute the same: the same operations in the same order.

    Python functions inside (rules of custom derivatives, callbacks) are equal if they are the same object.
    """
    number: dict[Any, int] = {}

    def atom(v):
        if isinstance(v, Literal):
            return ("literal", str(v.val), v.aval)
        return number.setdefault(v, len(number))

    def variables(vs):
        return tuple((atom(v), v.aval) for v in vs)

    def setting(value):
        if hasattr(value, "eqns"):
            return fingerprint(value)
        if isinstance(value, dict):
            # `out_trees` is filled in by the rule of a custom derivative, and so follows from it.
            return tuple((k, setting(v)) for k, v in sorted(value.items()) if k != "out_trees")
        if isinstance(value, (tuple, list)):
            return (type(value).__name__, *map(setting, value))
        return _rule(value)

    constants = tuple(_Same(c) for c in getattr(jaxpr, "consts", ()))
    head = variables([*getattr(jaxpr, "constvars", ()), *jaxpr.invars])
    body = tuple((e.primitive, tuple(map(atom, e.invars)), variables(e.outvars), setting(e.params)) for e in jaxpr.eqns)
    return (constants, head, body, tuple(map(atom, jaxpr.outvars)))


def _rule(value: Any) -> Any:
    """The user's function inside the wrappers that each trace puts anew around a custom derivative.

    A wrapper that is not known here stands for itself: that compiles more often than needed, where
    taking it for an equal one could use another map's gradient.
    """
    if hasattr(value, "transforms"):  # a function and what is wrapped around it, with settings
        layers = ((transform, *map(_rule, settings)) for transform, settings in value.transforms)
        return (_rule(value.f), *layers)
    if not (isinstance(value, FunctionType) and value.__module__.startswith("jax.")):
        return _hashable(value)
    cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
    if "out_store" in cells:  # room for a result
        return value.__code__
    inner = next((cells[name] for name in ("fn", "jvp", "fwd") if name in cells), None)
    return _hashable(value) if inner is None else _rule(inner.cell_contents)


class _Same:
    """A value that equals only itself, the very object."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return isinstance(other, _Same) and self.value is other.value


def _hashable(value: Any) -> Any:
    """The value if it can be hashed, else the very object."""
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value
