"""Which solvers go with which adjoints."""

from jaxdeq import adjoints, solvers

ASKS_FOR = {adjoints.Reversible: solvers.Reversible(), adjoints.Shine: solvers.Broyden(3)}


def solver_for(adjoint, other):
    """The solver that this adjoint takes alone, else `other`."""
    return ASKS_FOR.get(type(adjoint), other)


def pairs(some_solvers, some_adjoints):
    """Each solver with the first adjoint, which itself solves by it, and each adjoint with the first solver."""
    crossed = [(s, some_adjoints[0]) for s in some_solvers] + [(some_solvers[0], a) for a in some_adjoints]
    return list(dict.fromkeys((solver_for(a, s), a) for s, a in crossed))
