"""Looks into jitted functions."""

from typing import Any

from jaxdeq._jaxpr import Literal, Var


def inline(jaxpr: Any, consts: list[Any]) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Puts the bodies of jitted functions in the place of their calls, also within each other.

    A function that was jitted as a whole is one equation, which hides what it does and its constants.
    Functions jitted with settings of their own (shardings, layouts, compiler options) stay calls.

    Returns:
      The equations, the results, and the variables and values of all constants.
    """
    variables, values = list(jaxpr.constvars), list(consts)

    def body(jaxpr, names):
        look = lambda v: v if isinstance(v, Literal) else names.get(v, v)
        eqns: list[Any] = []
        for eqn in jaxpr.eqns:
            invars = [look(v) for v in eqn.invars]
            if _is_plain(eqn):
                inner = eqn.params["jaxpr"]
                constants = [Var(v.aval) for v in inner.jaxpr.constvars]
                variables.extend(constants)
                values.extend(inner.consts)
                inputs = [*inner.jaxpr.constvars, *inner.jaxpr.invars]
                inside, outvars = body(inner.jaxpr, dict(zip(inputs, [*constants, *invars], strict=True)))
                eqns.extend(inside)
            else:
                outvars = [Var(v.aval) for v in eqn.outvars]  # new ones: a body may be called twice
                eqns.append(eqn.replace(invars=invars, outvars=outvars))
            names.update(zip(eqn.outvars, outvars, strict=True))
        return eqns, [look(v) for v in jaxpr.outvars]

    eqns, outvars = body(jaxpr, {})
    return eqns, outvars, variables, values


def _is_plain(eqn) -> bool:
    if eqn.primitive.name != "jit":
        return False
    p = eqn.params
    free = all(type(s).__name__ == "UnspecifiedValue" for s in (*p["in_shardings"], *p["out_shardings"]))
    return free and not (any(p["in_layouts"]) or any(p["out_layouts"]) or p["compiler_options_kvs"])
