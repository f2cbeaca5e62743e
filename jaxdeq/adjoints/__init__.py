"""How gradients flow through a solve: frozen dataclasses of settings, passed as `adjoint=`."""

from jaxdeq.adjoints.implicit import Implicit
from jaxdeq.adjoints.neumann import Neumann
from jaxdeq.adjoints.one_step import OneStep
from jaxdeq.adjoints.phantom import Phantom
from jaxdeq.adjoints.unrolled import Unrolled

__all__ = ["Implicit", "Neumann", "OneStep", "Phantom", "Unrolled"]
