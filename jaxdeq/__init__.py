"""Deep equilibrium models in JAX: solve `z = f(z)`, and differentiate through it."""

from jaxdeq import adjoints, solvers
from jaxdeq._fixed_point import fixed_point
from jaxdeq._regularizers import jacobian_penalty, spectral_radius
from jaxdeq._types import BackwardStats, Solution, Stats, Status

__version__ = "0.1.0"
__all__ = [
    "BackwardStats",
    "Solution",
    "Stats",
    "Status",
    "adjoints",
    "fixed_point",
    "jacobian_penalty",
    "solvers",
    "spectral_radius",
]
