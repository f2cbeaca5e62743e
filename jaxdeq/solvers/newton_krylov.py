"""Newton's method with a Krylov solver for its steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdeq import _checks as check
from jaxdeq import _tree as tree
from jaxdeq._search import Search, judge
from jaxdeq._types import Map


class NewtonKrylovState(NamedTuple):
    z: Any
    fz: Any
    move: Any  # the Newton step from `z`
    search: Search
    left: jax.Array  # evaluations and products that may still be made


class Krylov(NamedTuple):
    """What GMRES has found so far, in units of the right-hand side's norm."""

    last: Any  # the vector to multiply next
    residual: Any
    basis: Any  # [krylov] orthonormal products
    matrix: jax.Array  # [krylov, krylov, *batch]: column k is product k in that basis
    against: jax.Array  # [krylov, *batch]: the right-hand side in that basis
    active: jax.Array  # [*batch]
    left: jax.Array


@dataclass(frozen=True)
class NewtonKrylov:
    """Inexact Newton: linearises `f` at each iterate and solves for the step by GMRES.

    The step `d` solves `d - J d = f(z) - z` to the relative accuracy `forcing`, with products by
    `J = df/dz` alone: no Jacobian is formed. A step that does not lower the residual, or leads to
    a point where `f` is not finite, is halved until it does (Armijo's rule). Converges in few
    steps near a solution, and where plain iteration diverges.

    An outer step costs one evaluation of `f` and at most `krylov` products, each worth about one
    evaluation and counted as one in the budget. The step from the last iterate is solved for before
    it is known to be the last. Problems in a batch make their products together. Holds
    `krylov + 8` copies of `z`, and what the linearisation of `f` stores. `f` must have forward-mode derivatives.

    Args:
      krylov: the most products an outer step; too few for the accuracy asked for still give
        a step, the best among their combinations.
      forcing: relative accuracy of a Newton step. Smaller values take fewer outer steps with more
        products each.

    Raises:
      ValueError: `krylov < 1`, or `forcing` outside (0, 1].
      TypeError: `krylov` is not an int.

    Example:
      >>> import jax.numpy as jnp, jaxdeq
      >>> z, stats = jaxdeq.fixed_point(jnp.cos, jnp.ones(()), solver=jaxdeq.solvers.NewtonKrylov())
      >>> print(f"{z:.3f} after {stats.steps} evaluations")
      0.739 after 6 evaluations

    References:
      Walker & Zhou, "A Simpler GMRES", 1994.
      Knoll & Keyes, "Jacobian-free Newton-Krylov methods", 2004.
    """

    krylov: int = 20
    forcing: float = 0.1

    def __post_init__(self):
        check.count("krylov", self.krylov)
        check.fraction("forcing", self.forcing)

    def init(self, f: Map, z0: Any) -> NewtonKrylovState:
        dtype = tree.real_dtype(*(x.dtype for x in jax.tree.leaves(z0)))
        search = Search(tree.full(z0, f.batch, 1, dtype), tree.full(z0, f.batch, jnp.inf, dtype))
        return NewtonKrylovState(z0, z0, tree.keep(jnp.bool_(False), z0), search, tree.full(z0, f.batch, 0, jnp.int32))

    def step(self, f: Map, state: NewtonKrylovState) -> NewtonKrylovState:
        z = tree.axpy(state.search.length, state.move, state.z)
        fz, jvp = jax.linearize(f.call, z)
        g = tree.sub(fz, z)
        size = tree.norm(lax.stop_gradient(g), f.batch)
        accept, search = judge(state.search, size)
        # A problem whose trial was refused keeps its direction, and makes no products.
        size = jnp.where(accept & jnp.isfinite(size), size, 0)
        move, left = self._solve(f.batch, lambda v: tree.sub(v, jvp(v)), g, size, state.left - 1)
        return NewtonKrylovState(
            tree.where(accept, z, state.z),
            tree.where(accept, fz, state.fz),
            tree.where(accept, move, state.move),
            search,
            left,
        )

    def _solve(self, batch: int, apply: Callable, rhs: Any, size: jax.Array, left: jax.Array) -> tuple[Any, jax.Array]:
        """Solves `apply(x) = rhs` by GMRES, within `left` products; also returns what is left.

        Its first basis vector is the right-hand side, each further one the last product, made
        orthonormal to those before it. Solving then takes no more than a triangular matrix.
        `size` is the norm of `rhs`, or 0 for what is not to be solved: then `x` is 0.
        """
        start = tree.keep(size > 0, tree.scale(1 / jnp.where(size > 0, size, 1), rhs))
        full = lambda value, *shape: tree.full(rhs, batch, value, size.dtype, shape)
        room, matrix, against = tree.zeros(rhs, self.krylov), full(0, self.krylov, self.krylov), full(0, self.krylov)
        carry = Krylov(start, start, room, matrix, against, (size > 0) & (left > 0), left)

        def product(carry, index):
            go = jnp.any(carry.active)
            return lax.cond(go, lambda c: self._product(batch, apply, c, index), lambda c: c, carry), None

        # Not a `while_loop`, so that it can be differentiated.
        carry, _ = lax.scan(product, carry, jnp.arange(self.krylov, dtype=jnp.int32))
        weights = solve_triangular(carry.matrix, carry.against)
        # Without a single usable product, a plain step.
        first = jnp.where(carry.matrix[0, 0] > 0, weights[0], 1)
        others = jnp.concatenate([weights[1:], jnp.zeros_like(weights[:1])])
        return tree.scale(size, tree.axpy(first, start, tree.mix(others, carry.basis))), carry.left

    def _product(self, batch: int, apply: Callable, c: Krylov, index: jax.Array) -> Krylov:
        """One more product, if the problem is still active."""
        q = apply(c.last)
        before = tree.dot(q, q, batch)
        # All coefficients at once: what this loses of orthogonality costs accuracy of the minimum, but
        # `apply(basis)` stays `basis @ matrix`, so the residual below is that of the step.
        inner = tree.dot(c.basis, q, batch + 1)
        q = tree.sub(q, tree.mix(inner, c.basis))
        after = tree.dot(q, q, batch)
        resolution = max(float(jnp.finfo(after.dtype).eps), tree.resolution(q))
        usable = c.active & jnp.isfinite(before) & (after > (4 * resolution) ** 2 * before)
        length = jnp.where(usable, jnp.sqrt(jnp.where(usable, after, 1)), 0)
        q = tree.keep(usable, tree.scale(1 / jnp.where(usable, length, 1), q))
        share = jnp.where(usable, tree.dot(c.residual, q, batch), 0)
        residual = tree.axpy(-share, q, c.residual)
        column = lax.dynamic_update_index_in_dim(inner, length, index, 0)
        return Krylov(
            q,
            residual,
            tree.put(c.basis, index, q),
            lax.dynamic_update_index_in_dim(c.matrix, jnp.where(usable, column, 0), index, 1),
            lax.dynamic_update_index_in_dim(c.against, share, index, 0),
            usable & (tree.dot(residual, residual, batch) > self.forcing**2) & (c.left > 1),
            c.left - c.active.astype(jnp.int32),
        )


def solve_triangular(matrix: jax.Array, rhs: jax.Array) -> jax.Array:
    """Solves `matrix x = rhs` for an upper triangular matrix, with `x_i = 0` where its diagonal is 0.

    Shapes: matrix `[n, n, *batch]`, rhs `[n, *batch]`.
    """
    x: list[jax.Array] = []
    for i in reversed(range(len(rhs))):
        known = sum((matrix[i, i + 1 + j] * y for j, y in enumerate(x)), start=jnp.zeros_like(rhs[i]))
        diagonal = jnp.where(matrix[i, i] > 0, matrix[i, i], 1)
        x.insert(0, jnp.where(matrix[i, i] > 0, (rhs[i] - known) / diagonal, 0))
    return jnp.stack(x)
