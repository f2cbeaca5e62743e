"""What the equations of a jaxpr read: variables, and literal numbers."""

from typing import TYPE_CHECKING, get_args

import jax.core

# jax.extend.core has them by name, but with it comes Pallas: a quarter of the time that importing jaxdeq added to jax.
if TYPE_CHECKING:
    from jax.extend.core import Literal, Var
else:
    Var, Literal = get_args(jax.core.Atom)

__all__ = ["Literal", "Var"]
