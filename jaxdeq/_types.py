"""The values that everything else passes around."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

Z = TypeVar("Z")  # a pytree of floating or complex arrays: the unknown of the equation


class Status(enum.IntEnum):
    """Why a solve stopped.

    Example:
      >>> import jax.numpy as jnp, jaxdeq
      >>> stats = jaxdeq.fixed_point(lambda z: z + 1, jnp.ones(()), max_steps=5).stats
      >>> jaxdeq.Status(int(stats.status)).name
      'MAX_STEPS'
    """

    CONVERGED = 0  # the stop rule holds at the returned `z`
    MAX_STEPS = 1  # it does not: the budget was spent, or progress ended at the dtype's round-off
    NONFINITE = 2  # `f` returned NaN or infinity; `z` is the best iterate before that


class Stats(NamedTuple):
    """What a solve did. With `batched=True` every field has a leading batch axis.

    Attributes:
      steps: evaluations of `f`, up to the stop.
      residual: `norm(f(z) - z) / norm(f(z))` of the returned `z`; infinite if `f(z0)` was not finite.
      status: a `Status`.
      trace: the relative residual after each step, NaN where not reached.

    Example:
      >>> import jax.numpy as jnp, jaxdeq
      >>> stats = jaxdeq.fixed_point(lambda z: 0.5 * z + 1, jnp.ones((3, 2)), batched=True, trace=8).stats
      >>> stats.steps.shape, stats.trace.shape, bool(stats.converged.all())
      ((3,), (3, 8), True)
    """

    steps: Int32[Array, "*batch"]
    residual: Float32[Array, "*batch"]
    status: Int32[Array, "*batch"]
    trace: Float32[Array, "*batch trace"]

    @property
    def converged(self) -> Array:
        """Whether the stop rule holds at the returned `z`, one boolean a problem."""
        return self.status == jnp.int32(Status.CONVERGED)


class Solution(NamedTuple):
    """The iterate with the lowest residual, and how it was found.

    Example:
      >>> import jax.numpy as jnp, jaxdeq
      >>> solution = jaxdeq.fixed_point(lambda z: 0.5 * z + 1, jnp.zeros(2))
      >>> solution.z.shape, bool(solution.stats.converged)
      ((2,), True)
    """

    z: Any
    stats: Stats


class BackwardStats(NamedTuple):
    """Steps, residual and status of a backward solve, all float32 because they travel as a gradient.

    Pass `BackwardStats.empty()` as `tap` to `fixed_point` and differentiate with respect to it:
    the gradient holds the statistics of the backward solve. It works wherever `jax.grad` does,
    inside `jit` too. Where one tap serves several solves, their statistics add up.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdeq
      >>> def loss(a, tap):
      ...     return jaxdeq.fixed_point(lambda z: jnp.cos(a * z), jnp.ones(()), tap=tap).z
      >>> tap = jaxdeq.BackwardStats.empty()
      >>> _, backward = jax.jit(jax.grad(loss, argnums=(0, 1)))(0.5, tap)
      >>> backward.status == jaxdeq.Status.CONVERGED
      Array(True, dtype=bool)
    """

    steps: Float32[Array, "*batch"]
    residual: Float32[Array, "*batch"]
    status: Float32[Array, "*batch"]

    @classmethod
    def empty(cls, *batch: int) -> "BackwardStats":
        """Zeros to pass as `tap`: `empty()`, or `empty(n)` for `batched=True` with n problems."""
        return cls(*(jnp.zeros(batch, jnp.float32) for _ in cls._fields))


@dataclass(frozen=True)
class Map(Generic[Z]):
    """The map whose fixed point is sought, as a solver sees it.

    Attributes:
      call: `z -> f(z)`.
      batch: leading axes of every leaf that count independent problems (0 or 1); inner products
        reduce over the others.
    """

    call: Callable[[Z], Z]
    batch: int = 0

    def __call__(self, z: Z) -> Z:
        return self.call(z)


@runtime_checkable
class State(Protocol):
    """A solver's arrays: a NamedTuple that begins with `z` and `fz`.

    After each step `fz` is `f(z)`, so that the loop can measure every solver alike. A solver that
    evaluates `f` more than once a step also has a field `left`: the loop fills it with the
    budget, the solver counts it down by one for each evaluation. Into a field `active`, booleans
    `[*batch]` that are true at first, the loop writes after each step which problems go on.
    """

    z: Any
    fz: Any


@runtime_checkable
class Solver(Protocol):
    """Proposes iterates: a frozen dataclass of static settings with two pure methods."""

    def init(self, f: Map[Any], z0: Any) -> Any:
        """The state before the first step, without evaluating `f`: `z` and `fz` are both `z0`."""

    def step(self, f: Map[Any], state: Any) -> Any:
        """Moves to the next iterate (the first time to `z0` itself) and evaluates `f` there."""


class Limits(NamedTuple):
    """When to stop. Arrays, so that changing them compiles nothing anew."""

    rtol: jax.typing.ArrayLike
    atol: jax.typing.ArrayLike
    max_steps: jax.typing.ArrayLike


@dataclass(frozen=True)
class Problem:
    """All that is static about a solve.

    Attributes:
      f: `f(operands, z)`, pure and hashable.
      solver: for the forward pass.
      batch: as in `Map`.
      trace: residuals recorded.
    """

    f: Callable[[Any, Any], Any]
    solver: Solver
    batch: int
    trace: int


@runtime_checkable
class Adjoint(Protocol):
    """Solves, and decides how gradients flow: a frozen dataclass of static settings."""

    def solve(self, problem: Problem, operands: Any, z0: Any, limits: Limits, tap: BackwardStats | None) -> Solution:
        """Solves `z = f(operands, z)`; the result is differentiable with respect to `operands`."""
