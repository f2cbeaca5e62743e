"""An equilibrium layer around any cell."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from jaxdeq import BackwardStats, Stats, fixed_point, jacobian_penalty
from jaxdeq import _checks as check
from jaxdeq._closure import Traced, trace_map
from jaxdeq._split import split
from jaxdeq._types import Adjoint, Solver


class Equilibrium(NamedTuple):
    """What a `DEQ` returns.

    Attributes:
      z: the equilibrium.
      stats: how it was found; see `jaxdeq.Stats`. None if it was not sought but unrolled.
      penalty: `jaxdeq.jacobian_penalty` at `z`; None if no `key` was given.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxdeq.nn import DEQ
      >>> out = DEQ(lambda z, x: 0.5 * z + x)(jnp.ones(2))
      >>> bool(out.stats.converged), out.penalty is None
      (True, True)
    """

    z: Any
    stats: Stats | None
    penalty: jax.Array | None


class DEQ(nnx.Module):
    """Solves `z = cell(z, x, ...)` and lets gradients flow to the cell's parameters and to `x`.

    All settings of `jaxdeq.fixed_point` can be given; None means its default. Each solve sees
    the cell frozen: one dropout mask for all steps and for the backward pass, and weights that
    the cell normalises are normalised once. In training mode (`model.train()`), the next solve
    draws new masks, and running statistics are updated by one call at the equilibrium; in
    evaluation mode (`model.eval()`), nothing changes.

    Args:
      cell: a module or a function. It may have a method `initial_state(x, *args)`, which returns
        where to start; otherwise the solve starts from zeros like `x`.
      solver: see `jaxdeq.fixed_point`, as for the settings below.
      adjoint: how gradients flow.
      rtol: relative tolerance.
      atol: absolute tolerance.
      max_steps: the budget, in evaluations of the cell.
      batched: whether the leading axis counts independent problems.
      trace: how many residuals to record.

    Raises:
      TypeError: a `cell` that cannot be called.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.nn import DEQ
      >>> class Cell(nnx.Module):
      ...     def __init__(self, width, rngs):
      ...         self.linear = nnx.Linear(width, width, rngs=rngs)
      ...
      ...     def __call__(self, z, x):
      ...         return jnp.tanh(0.5 * self.linear(z) + x)
      >>> deq = DEQ(Cell(8, nnx.Rngs(0)), max_steps=30)
      >>> z, stats, penalty = deq(jnp.ones((2, 8)), key=nnx.Rngs(1)())
      >>> z.shape, stats.converged, penalty.shape
      ((2, 8), Array(True, dtype=bool), ())
    """

    def __init__(
        self,
        cell: Callable[..., Any],
        *,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
        rtol: ArrayLike | None = None,
        atol: ArrayLike | None = None,
        max_steps: ArrayLike | None = None,
        batched: bool | None = None,
        trace: int | None = None,
    ):
        if not callable(cell):
            raise TypeError(f"cell must be a module or a function, called as cell(z, x, ...); got {cell!r}")
        self.cell = cell
        self.solver = solver
        self.adjoint = adjoint
        self.rtol = rtol
        self.atol = atol
        self.max_steps = max_steps
        self.batched = batched
        self.trace = trace
        self.deterministic = False  # toggled by train() and eval()

    def __call__(
        self,
        x: Any,
        *args: Any,
        z0: Any = None,
        key: jax.Array | None = None,
        probes: int | None = None,
        mode: str | None = None,
        rtol: ArrayLike | None = None,
        atol: ArrayLike | None = None,
        max_steps: ArrayLike | None = None,
        tap: BackwardStats | None = None,
    ) -> Equilibrium:
        """Solves for one input.

        Args:
          x: the injected input, and with `*args` all further arguments of the cell.
          z0: where to start, in place of the cell's `initial_state`.
          key: asks for the penalty, and draws its probes; consumed.
          probes: see `jaxdeq.jacobian_penalty`, as for `mode`.
          rtol: in place of the layer's own; may be traced, as may `atol` and `max_steps`.
          tap: see `jaxdeq.fixed_point`.
        """
        z0 = self.initial_state(x, *args) if z0 is None else z0
        apply, cell = self._freeze()
        f, z0, operands = _prepare(apply, z0, (cell, x, *args), bool(self.batched))
        settings = _given(
            solver=self.solver,
            adjoint=self.adjoint,
            rtol=self.rtol if rtol is None else rtol,
            atol=self.atol if atol is None else atol,
            max_steps=self.max_steps if max_steps is None else max_steps,
            batched=self.batched,
            trace=self.trace,
        )
        z, stats = fixed_point(f, z0, *operands, tap=tap, **settings)
        penalty = None
        if key is not None:
            penalty = jacobian_penalty(f, z, key, *operands, **_given(probes=probes, mode=mode))
        self._update_statistics(apply, cell, z, x, *args)
        return Equilibrium(z, stats, penalty)

    def unroll(
        self,
        x: Any,
        *args: Any,
        steps: int,
        z0: Any = None,
        key: jax.Array | None = None,
        probes: int | None = None,
        mode: str | None = None,
    ) -> Equilibrium:
        """Applies the cell a fixed number of times instead, as a network of tied layers.

        Gradients flow through all applications, and memory grows with their number. A start for
        training, while the cell is far from having an equilibrium. The cell is frozen as in a
        solve.

        Args:
          x: as in a call, as for all arguments but `steps`.
          steps: applications of the cell.
        """
        check.count("steps", steps)
        z0 = self.initial_state(x, *args) if z0 is None else z0
        apply, cell = self._freeze()
        f, z, operands = _prepare(apply, z0, (cell, x, *args), bool(self.batched))
        for _ in range(steps):  # not a scan: that differentiates convolutions 13 times slower on a CPU
            z = f(z, *operands)
        penalty = None
        if key is not None:
            penalty = jacobian_penalty(f, z, key, *operands, **_given(probes=probes, mode=mode))
        self._update_statistics(apply, cell, z, x, *args)
        return Equilibrium(z, None, penalty)

    def initial_state(self, x: Any, *args: Any) -> Any:
        """Where a solve starts: what the cell says, else zeros like `x`."""
        if hasattr(self.cell, "initial_state"):
            return self.cell.initial_state(x, *args)
        return jax.tree.map(jnp.zeros_like, x)

    def bind(self, x: Any, *args: Any) -> Callable[[Any], Any]:
        """The map `z -> cell(z, x, *args)` of one solve, for example for `jaxdeq.spectral_radius`."""
        apply, cell = self._freeze()
        return lambda z: apply(z, cell, x, *args)

    def _freeze(self) -> tuple[Callable[..., Any], Any]:
        """The cell as `apply(z, state, x, *args)` and its state, with random keys of its own."""
        if not isinstance(self.cell, nnx.Module):
            return _Function(self.cell), ()
        if self.deterministic:
            return _module(self.cell)
        copy = nnx.clone(self.cell)
        for live, frozen in zip(_streams(self.cell), _streams(copy), strict=True):
            frozen.key[...] = live()
            frozen.count[...] = jnp.zeros_like(frozen.count[...])
        return _module(copy)

    def _update_statistics(self, apply, cell, z, *args):
        """Running statistics, such as those of BatchNorm, move by one call at the equilibrium."""
        if self.deterministic or not isinstance(self.cell, nnx.Module):
            return
        if jax.tree.leaves(nnx.state(self.cell, nnx.BatchStat)):
            module = nnx.merge(apply.graphdef, jax.lax.stop_gradient(cell), copy=True)
            still = lambda x: jax.lax.stop_gradient(x) if isinstance(x, (jax.Array, np.ndarray)) else x
            module(*jax.tree.map(still, (z, *args)))
            nnx.update(self.cell, nnx.state(module, nnx.BatchStat))


@dataclass(frozen=True)
class _Module:
    """A module as a function: equal for equal modules, so that eager solves compile once."""

    graphdef: Any

    def __call__(self, z, state, *args):
        return nnx.merge(self.graphdef, state, copy=True)(z, *args)


@dataclass(frozen=True)
class _Function:
    function: Callable[..., Any]

    def __call__(self, z, state, *args):
        return self.function(z, *args)


def _prepare(f, z0, args, batched):
    """Traces the map once for the solve and the penalty, and evaluates what both share."""
    z0, traced, operands = trace_map(f, check.state(z0, batched), args)
    rest, operands = split(traced, operands)
    return Traced(rest), z0, operands


def _module(module):
    graphdef, state = nnx.split(module)
    return _Module(graphdef), state


def _streams(module):
    return [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.RngStream)]


def _given(**settings):
    return {name: value for name, value in settings.items() if value is not None}
