"""Which solver an adjoint asks for."""

from jaxdeq import adjoints, solvers

ASKS_FOR = {adjoints.Reversible: solvers.Reversible(), adjoints.Shine: solvers.Broyden(3)}


def solver_for(adjoint, other):
    """The solver that this adjoint takes alone, else `other`."""
    return ASKS_FOR.get(type(adjoint), other)
