"""Gradients of an equilibrium from its explicit Jacobian, in float64: what the adjoints are held against.

Everything is a vector of reals here: a complex number counts as two.
"""

import jax
import jax.numpy as jnp
import numpy as np


def flatten(tree):
    """A tree as one real vector, and the way back."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64) for x in leaves]
    parts = [part for x in leaves for part in ((x.real, x.imag) if np.iscomplexobj(x) else (x,))]

    def unflatten(vector):
        values, at = [], 0
        for x in leaves:
            several = []
            for _ in range(2 if np.iscomplexobj(x) else 1):
                several.append(vector[at : at + x.size].reshape(x.shape))
                at += x.size
            values.append(several[0] if len(several) == 1 else jax.lax.complex(*several))
        return structure.unflatten(values)

    return np.concatenate([p.ravel() for p in parts]), unflatten


def linearise(f, params, z0):
    """The equilibrium of `f(z, params)` by Newton's method, and there the Jacobians by `z` and by `params`."""
    z, to_z = flatten(z0)
    p, to_params = flatten(params)

    @jax.jit
    def both(z):
        call = lambda z, p: _vector(f(to_z(z), to_params(p)))
        return call(z, p), *jax.jacfwd(call, (0, 1))(z, p)

    for _ in range(30):
        fz, by_z, by_params = map(np.asarray, both(z))
        z = z + np.linalg.solve(np.eye(z.size) - by_z, fz - z)
    assert np.abs(fz - z).max() < 1e-12
    return to_z(z), by_z, by_params


def _vector(tree):
    parts = [p for x in jax.tree.leaves(tree) for p in ((x.real, x.imag) if jnp.iscomplexobj(x) else (x,))]
    return jnp.concatenate([p.ravel() for p in parts])


def gradient(by_z, by_params, g, params, unknown):
    """The gradient of a loss whose gradient by `z` is `g`, if `unknown(J^T, g)` solves the adjoint equation."""
    flat, _ = flatten(jax.tree.map(np.conj, g))  # of a real loss, jax's gradient by a complex number is conjugate
    _, to_params = flatten(params)
    return jax.tree.map(np.conj, to_params(by_params.T @ unknown(by_z.T, flat)))


def implicit(transposed, g):
    """Solves `u = g + J^T u`."""
    return np.linalg.solve(np.eye(g.size) - transposed, g)


def series(terms, damping):
    """`damping * sum_{k < terms} (damping J^T + (1 - damping) I)^k g`."""

    def unknown(transposed, g):
        total, term = np.zeros_like(g), damping * g
        for _ in range(terms):
            total, term = total + term, damping * transposed @ term + (1 - damping) * term
        return total

    return unknown
