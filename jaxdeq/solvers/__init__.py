"""Fixed-point solvers: frozen dataclasses of settings, passed as `solver=`."""

from jaxdeq.solvers.anderson import Anderson
from jaxdeq.solvers.broyden import Broyden
from jaxdeq.solvers.newton_krylov import NewtonKrylov
from jaxdeq.solvers.picard import Picard

__all__ = ["Anderson", "Broyden", "NewtonKrylov", "Picard"]
