"""How gradients flow through a solve: frozen dataclasses of settings, passed as `adjoint=`."""

from jaxdeq.adjoints.implicit import Implicit

__all__ = ["Implicit"]
