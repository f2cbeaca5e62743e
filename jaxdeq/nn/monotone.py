"""A cell that has exactly one equilibrium, whatever its weights."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdeq import _checks as check


class Monotone(nnx.Module):
    """Parametrises `z = relu(W z + U x + b)` so that each input has one equilibrium, and splits it to find it.

    With `W = (1 - margin) I - A^T A + B - B^T`, where `A` and `B` are learnt, `I - W` is strongly
    monotone: `v . (I - W) v >= margin |v|^2`. Then there is exactly one equilibrium, even where plain
    iteration diverges. Peaceman-Rachford splitting finds it. It iterates on `u`, with `z = relu(u)`:

        y = 2 relu(u) - u,    u <- 2 V (y + step (U x + b)) - y,    V = (I + step (I - W))^{-1},

    which contracts by `|2 V - I| < 1`, forward and backward. That map is what this cell computes:
    `DEQ(Monotone(...), solver=Picard())` converges from any start; `Picard(0.5)` is Douglas-Rachford
    splitting, and `Anderson()` mostly faster. The equilibrium is `cell.read(u)`. One inversion of a
    `features x features` matrix a solve.

    Args:
      in_features: size of the input's last axis.
      features: size of the state's.
      margin: how strongly monotone; the gradient of the equilibrium by `b` is at most `1 / margin`.
      step: of the splitting; any positive number converges, the best one depends on the weights.
      rngs: for the initial weights.

    Raises:
      ValueError: `margin` or `step` is not a positive number.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.nn import DEQ, Monotone
      >>> from jaxdeq.solvers import Picard
      >>> deq = DEQ(Monotone(3, 8, rngs=nnx.Rngs(0)), solver=Picard())
      >>> u, stats, _ = deq(jnp.ones((2, 3)))
      >>> z = deq.cell.read(u)
      >>> z.shape, bool(stats.converged)
      ((2, 8), True)

    References:
      Winston & Kolter, "Monotone operator equilibrium networks", 2020.
    """

    def __init__(self, in_features: int, features: int, *, margin: float = 0.1, step: float = 1.0, rngs: nnx.Rngs):
        check.positive("margin", margin)
        check.positive("step", step)
        self.margin = margin
        self.step = step
        draw = nnx.initializers.lecun_normal()
        self.symmetric = nnx.Param(draw(rngs.params(), (features, features)))
        self.skew = nnx.Param(draw(rngs.params(), (features, features)))
        self.inject = nnx.Linear(in_features, features, rngs=rngs)

    def __call__(self, u: jax.Array, x: jax.Array) -> jax.Array:
        eye = jnp.eye(len(self.skew[...]), dtype=self.skew[...].dtype)
        resolvent = jnp.linalg.inv(eye + self.step * (eye - self.weight()))
        y = 2 * self.read(u) - u
        return 2 * (y + self.step * self.inject(x)) @ resolvent.T - y

    def initial_state(self, x: jax.Array) -> jax.Array:
        return jnp.zeros_like(self.inject(x))

    def read(self, u: jax.Array) -> jax.Array:
        """The equilibrium `z` that belongs to `u`."""
        return nnx.relu(u)

    def weight(self) -> jax.Array:
        """`W`, which acts on columns."""
        a, b = self.symmetric[...], self.skew[...]
        return (1 - self.margin) * jnp.eye(len(b), dtype=b.dtype) - a.T @ a + b - b.T
