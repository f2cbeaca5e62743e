"""Tells whether two traced maps compute the same."""

from types import FunctionType
from typing import Any

import numpy as np

from jaxdeq._jaxpr import Literal


def fingerprint(jaxpr: Any) -> tuple:
    """A hashable value, equal for jaxprs that compute the same: the same operations in the same order.

    Python functions inside (rules of custom derivatives, callbacks) are equal if they are the same object.
    """
    number: dict[Any, int] = {}

    def atom(v):
        if isinstance(v, Literal):
            return ("literal", _number(v.val), v.aval)
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


def _number(value: Any) -> Any:
    """All bits of a number or an array; text would leave some out."""
    try:
        return np.asarray(value).tobytes()
    except TypeError:  # a random key
        return _Same(value)


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
