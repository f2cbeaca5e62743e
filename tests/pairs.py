"""Which solvers go with which adjoints."""

from jaxdeq import adjoints, solvers

ASKS_FOR = {adjoints.Reversible: solvers.Reversible(), adjoints.Shine: solvers.Broyden(3)}


def solver_for(adjoint, other):
    """The solver that this adjoint takes alone, else `other`."""
    return ASKS_FOR.get(type(adjoint), other)


def pairs(some_solvers, some_adjoints):
    """All (solver, adjoint) that go together."""
    return list(dict.fromkeys((solver_for(a, s), a) for a in some_adjoints for s in some_solvers))
