"""How gradients flow through a solve: frozen dataclasses of settings, passed as `adjoint=`.

Example:
  >>> import jax
  >>> import jax.numpy as jnp
  >>> import jaxdeq
  >>> g = jax.grad(lambda x: jaxdeq.fixed_point(jnp.cos, x, adjoint=jaxdeq.adjoints.OneStep()).z)
  >>> float(g(1.0))  # where it starts does not matter
  0.0
"""

from jaxdeq.adjoints.implicit import Implicit
from jaxdeq.adjoints.implicit_jvp import ImplicitJVP
from jaxdeq.adjoints.neumann import Neumann
from jaxdeq.adjoints.one_step import OneStep
from jaxdeq.adjoints.phantom import Phantom
from jaxdeq.adjoints.reversible import Reversible
from jaxdeq.adjoints.shine import Shine
from jaxdeq.adjoints.unrolled import Unrolled

__all__ = ["Implicit", "ImplicitJVP", "Neumann", "OneStep", "Phantom", "Reversible", "Shine", "Unrolled"]
