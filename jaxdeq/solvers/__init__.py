"""Fixed-point solvers: frozen dataclasses of settings, passed as `solver=`.

Example:
  >>> import jax.numpy as jnp
  >>> import jaxdeq
  >>> out = jaxdeq.fixed_point(jnp.cos, 1.0, solver=jaxdeq.solvers.Broyden(), rtol=1e-6)
  >>> f"{out.z:.4f}"
  '0.7391'
"""

from jaxdeq.solvers.anderson import Anderson
from jaxdeq.solvers.broyden import Broyden
from jaxdeq.solvers.newton_krylov import NewtonKrylov
from jaxdeq.solvers.picard import Picard
from jaxdeq.solvers.reversible import Reversible

__all__ = ["Anderson", "Broyden", "NewtonKrylov", "Picard", "Reversible"]
