"""Refuses wrong settings, each with what was wrong, what was got and what would do."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def fraction(name: str, value) -> None:
    """Checks a number in (0, 1]."""
    if not _is_real(value) or not 0 < value <= 1:
        raise ValueError(f"{name} must be a number in (0, 1], where 1 is a full step; got {value!r}")


def count(name: str, value, least: int = 1) -> None:
    """Checks an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int of at least {least}; got {value!r} ({type(value).__name__})")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")


def nonnegative(name: str, value) -> None:
    """Checks a finite number of at least 0."""
    if not _is_real(value) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0; got {value!r}")


def positive(name: str, value) -> None:
    """Checks a finite number above 0."""
    if not _is_real(value) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number; got {value!r}")


def flag(name: str, value) -> None:
    """Checks a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r} ({type(value).__name__})")


def floating(name: str, dtype: str) -> None:
    """Checks the name of a floating dtype."""
    try:
        known = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        known = False
    if not known:
        raise TypeError(f"{name} must be the name of a floating dtype, such as 'bfloat16'; got {dtype!r}")


def function(value) -> None:
    """Checks that the map can be called."""
    if not callable(value):
        raise TypeError(f"f must be a function of z, followed by z0: fixed_point(f, z0, *args); got {value!r}")


def solver(value) -> None:
    """Checks that the value has the methods of a `Solver`, and is not a class."""
    if isinstance(value, type) or not (hasattr(value, "init") and hasattr(value, "step")):
        raise TypeError(f"solver must be a solver object such as jaxdeq.solvers.Anderson(); got {value!r}")


def adjoint(value) -> None:
    """Checks that the value has the method of an `Adjoint`, and is not a class."""
    if isinstance(value, type) or not hasattr(value, "solve"):
        raise TypeError(f"adjoint must be an adjoint object such as jaxdeq.adjoints.Implicit(); got {value!r}")


def limits(rtol, atol, max_steps) -> None:
    """Checks tolerances and budget; what is traced cannot be checked and is not."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if isinstance(value, (jax.Array, np.ndarray)):
            scalar(name, value, jnp.floating)
        else:
            nonnegative(name, value)
    if isinstance(max_steps, (jax.Array, np.ndarray)):
        scalar("max_steps", max_steps, jnp.integer)
    else:
        count("max_steps", max_steps)


def scalar(name: str, value, kind) -> None:
    """Checks an array of no axes and of this kind of dtype."""
    if not jnp.issubdtype(value.dtype, kind):
        raise TypeError(f"{name} must be {kind.__name__}; got an array of {value.dtype}")
    if value.shape:
        raise ValueError(f"{name} must be one number for all problems; got an array of shape {value.shape}")


def state(z0, batched: bool):
    """Checks the initial guess and returns it as arrays."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(z0)
    if not leaves:
        raise ValueError(f"z0 must hold at least one array; got the empty tree {z0!r}")
    arrays = []
    for path, leaf in leaves:
        where = f"z0{jax.tree_util.keystr(path)}"
        try:
            dtype = jax.typeof(leaf).dtype
        except TypeError as error:
            raise TypeError(f"{where} must be a floating or complex array; got {leaf!r}") from error
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{where} must be floating or complex, because an equilibrium is real-valued; got {dtype}. "
                f"Convert it, for example with .astype(jnp.float32), or pass it as an argument of f"
            )
        arrays.append(jnp.asarray(leaf, jax.dtypes.canonicalize_dtype(dtype)))
    if batched:
        sizes = {jax.tree_util.keystr(path): x.shape[:1] for (path, _), x in zip(leaves, arrays, strict=True)}
        if len(set(sizes.values())) > 1 or () in sizes.values():
            raise ValueError(f"batched=True needs one leading batch axis, the same in every leaf of z0; got {sizes}")
    return tree.unflatten(arrays)


def tap(value, z0, batched: bool) -> None:
    """Checks that the tap holds one number a problem, as the report of the backward solve does."""
    shape = jax.tree.leaves(z0)[0].shape[: int(batched)]
    if value is not None and any(x.shape != shape for x in value):
        raise ValueError(f"tap must be BackwardStats.empty{shape}; got shapes {[x.shape for x in value]}")


def same(z0, out) -> None:
    """Checks that `f` returned what it was given: structure, shapes, dtypes."""
    have, want = jax.tree.structure(out), jax.tree.structure(z0)
    if have != want:
        hint = ""
        if isinstance(out, tuple) and len(out) and jax.tree.structure(out[0]) == want:
            hint = ". f must return the new z alone: auxiliary results can be computed from the solution"
        raise TypeError(f"f must return the structure of z0, {want}; got {have}{hint}")
    pairs = zip(jax.tree_util.tree_flatten_with_path(z0)[0], jax.tree.leaves(out), strict=True)
    for (path, a), b in pairs:
        where = jax.tree_util.keystr(path)
        if a.shape != b.shape:
            raise ValueError(f"f must return the shapes of z0; at z{where} it got {a.shape} and returned {b.shape}")
        if a.dtype != b.dtype:
            raise TypeError(
                f"f must return the dtypes of z0; at z{where} it got {a.dtype} and returned {b.dtype}. "
                f"Cast the result with .astype({a.dtype}), or start from a z0 of {b.dtype}"
            )


def stays(z, spread) -> None:
    """Checks that `f` returned `z` spread over the mesh as it got it."""
    if spread is not z:
        raise ValueError(
            "f must return z with the sharding that it gets, but moves it at every application; got "
            f"{jax.tree.map(jax.typeof, z)} and returned {jax.tree.map(jax.typeof, spread)}. "
            "Fix the sharding of the result with jax.sharding.reshard or an out_sharding inside f"
        )
