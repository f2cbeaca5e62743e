"""Takes out of a map what does not depend on `z`."""

import math
from functools import partial
from typing import Any

import jax

from jaxdeq._closure import Hoisted, rewrite
from jaxdeq._jaxpr import Literal, Var

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
    first = rewrite(jaxpr, eqns=before, invars=jaxpr.invars[:count], outvars=hoisted)
    values = jax.core.eval_jaxpr(first, (), *operands)
    invars = [*(jaxpr.invars[i] for i in kept), *hoisted, *jaxpr.invars[count:]]
    rest = rewrite(jaxpr, eqns=inside, invars=invars)
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
