"""Derivatives by the implicit function theorem, in forward and in reverse mode."""

from dataclasses import dataclass
from typing import Any

import jax
from jax import lax

from jaxdeq import _tree as tree
from jaxdeq._rule import forward, parameters
from jaxdeq._types import BackwardStats, Limits, Problem, Solution
from jaxdeq.adjoints._equation import Equation


@dataclass(frozen=True)
class ImplicitJVP(Equation):
    """The exact derivative of the equilibrium in forward mode too: `jvp`, `jacfwd`, `linearize`, `hessian`.

    At `z = f(z, a)` the tangent `da` of `a` becomes the tangent `dz = df/da da + df/dz dz` of `z`.
    That equation is solved as a fixed point with one product a step, and in reverse mode its
    transpose, the one that `Implicit` solves; both are linear in what they are given, to any
    order of derivatives. Memory is that of one evaluation of `f` and its linearisation.

    For training `Implicit` is the better choice: it can report how the backward solve went
    (`tap`). If a solve does not converge, the best solution that it found is used.

    Args:
      solver: for the equation of `dz`; None: as in the forward call.
      rtol: relative tolerance of that solve; None: as in the forward call.
      max_steps: its budget; None: as in the forward call.

    Raises:
      ValueError: `rtol < 0` or `max_steps < 1`; in a solve, a `tap`.
      TypeError: `max_steps` is not an int, or `solver` is not a solver.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdeq
      >>> def z(x):  # 2 x
      ...     return jaxdeq.fixed_point(lambda z: 0.5 * z + x, jnp.zeros(()), adjoint=jaxdeq.adjoints.ImplicitJVP()).z
      >>> print(f"{jax.jvp(z, (1.0,), (3.0,))[1]:.3f}")
      6.000

    References:
      Krantz & Parks, "The Implicit Function Theorem", 2002.
      Blondel et al., "Efficient and Modular Implicit Differentiation", 2022.
    """

    def solve(self, problem: Problem, operands: Any, z0: Any, limits: Limits, tap: BackwardStats | None) -> Solution:
        if tap is not None:
            raise ValueError(
                "ImplicitJVP cannot report through tap, because the report would have to be linear in the "
                "cotangent; got a tap. Use adjoint=Implicit(), which can"
            )

        @jax.custom_jvp
        def attach(operands, z, limits):
            return z

        @attach.defjvp
        def rule(primals, tangents):
            operands, _, limits = primals
            z = attach(*primals)
            pick, merge = parameters(operands)
            _, given = jax.jvp(lambda params: problem.f(merge(params), z), (pick(operands),), (pick(tangents[0]),))
            return z, self._tangent(lambda z: problem.f(operands, z), z, given, problem, limits)

        solution = forward(problem, *lax.stop_gradient((operands, z0, limits)))
        return solution._replace(z=attach(operands, solution.z, limits))

    def _tangent(self, f, z, given, problem, limits):
        """Solves `dz = given + df/dz dz`."""
        _, push = jax.linearize(f, z)
        pull = jax.linear_transpose(push, z)

        def by(product):
            # Jitted, because jax lowers what is left bare a second time, and forgets what varies in `shard_map`.
            run = jax.jit(lambda b: self.solve_linear(forward, product, b, problem, limits)[0])
            return lambda _, b: run(b)

        minus = lambda dz: tree.sub(dz, push(dz))
        return lax.custom_linear_solve(minus, given, by(push), transpose_solve=by(lambda u: pull(u)[0]))
