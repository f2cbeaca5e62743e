"""Broyden's method against its textbook form, and what its memory and line search promise."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdeq
from jaxdeq import Status, fixed_point
from jaxdeq._eliminate import eliminate
from jaxdeq._types import Map
from jaxdeq.solvers import Broyden
from tests.problems import PROBLEMS, draw, orthogonal

MATRIX = orthogonal(6, seed=8) @ np.diag([-2.0, -0.7, 0.1, 0.5, 0.8, 0.9]) @ orthogonal(6, seed=9)
SHIFT = draw(6, seed=10)


def f(z):
    return jnp.asarray(MATRIX, z.dtype) @ jnp.tanh(z) + jnp.asarray(SHIFT, z.dtype)


def iterates(solver, steps, f=f, z0=(0.0,) * 6):
    """The states after each step, in float64."""
    with jax.enable_x64(True):
        state = solver.init(Map(f), jnp.asarray(z0))
        step = jax.jit(lambda state: solver.step(Map(f), state))
        states = []
        for _ in range(steps):
            state = step(state)
            states.append(jax.tree.map(np.asarray, state))
    return states


def inverse_times(solver, state, y):
    """The inverse of the estimated Jacobian times `y`, from what the state holds."""
    with jax.enable_x64(True):
        slots = np.roll(np.arange(solver.history), -(int(state.done) % solver.history))  # oldest first
        dz, df = (np.asarray(x)[slots] for x in (state.dz, state.df))
        weights = eliminate(jnp.asarray(state.matrix), jnp.asarray(dz @ y), 1e-12)
        return -(y + np.asarray(weights) @ df)


def test_textbook():
    """The same iterates as with a dense inverse, updated by Sherman and Morrison's formula."""
    call = lambda z: MATRIX @ np.tanh(z) + SHIFT
    z, inverse = np.zeros(6), -np.eye(6)
    g = call(z) - z
    for state in iterates(Broyden(history=12), 12):
        np.testing.assert_allclose(state.z, z, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(state.fz, call(z), rtol=1e-6, atol=1e-8)
        s = -inverse @ g
        y = call(z + s) - z - s - g
        inverse += np.outer(s - inverse @ y, s @ inverse) / (s @ inverse @ y)
        z, g = z + s, g + y


@pytest.mark.parametrize("history", [1, 3, 5])
def test_secant_equation_once_the_memory_is_full(history):
    """After each step the newest pair is reproduced, however many have left."""
    solver = Broyden(history=history)
    states = iterates(solver, 4 * history + 3)
    for before, after in pairwise(states):
        s = after.z - before.z
        y = after.fz - after.z - (before.fz - before.z)
        np.testing.assert_allclose(inverse_times(solver, after, y), s, rtol=1e-6, atol=1e-9 * np.abs(s).max())


@pytest.mark.parametrize("name", ["linear 0.99", "rotating"])
def test_keeps_working_once_the_memory_is_full(name):
    p = PROBLEMS[name]
    z, stats = fixed_point(p.f, p.z0, *p.args, solver=Broyden(history=4), rtol=1e-5, max_steps=600, trace=600)
    assert stats.converged
    assert stats.steps > 40  # the memory was full ten times over
    assert p.distance(z) < p.error


def test_more_history_takes_fewer_steps():
    p = PROBLEMS["linear 0.99"]
    solve = lambda h: fixed_point(p.f, p.z0, *p.args, solver=Broyden(h), rtol=1e-5, max_steps=2000).stats.steps
    assert solve(3) > solve(8) > solve(16)


def test_twice_as_many_steps_as_unknowns():
    """On a linear map, as Gay showed, if all pairs are kept."""
    with jax.enable_x64(True):
        rate, x = jnp.array([-3.0, -5.0, 0.9, 0.5]), jnp.ones(4)
        z, stats = fixed_point(lambda z: rate * z + x, x, solver=Broyden(), rtol=1e-12)
        assert stats.steps <= 9
        np.testing.assert_allclose(z, 1 / (1 - np.asarray(rate)), rtol=1e-10)


def test_scale_of_the_equation_does_not_matter():
    """As with a cotangent of any size in the backward pass; half precision included."""
    rate = jnp.array([0.9, -0.8, 0.5, -3.0])
    for dtype, rtol, scales in ((jnp.float32, 1e-5, (1e-12, 1.0, 1e12)), (jnp.float16, 4e-3, (1e-2, 1.0, 1e2))):
        counts = set()
        for scale in scales:
            x = jnp.full(4, scale, dtype)
            z, stats = fixed_point(lambda z, r, x: r * z + x, x, rate.astype(dtype), x, solver=Broyden(), rtol=rtol)
            assert stats.converged, (dtype, scale)
            np.testing.assert_allclose(z / x, 1 / (1 - rate), rtol=100 * rtol)
            counts.add(int(stats.steps))
        assert max(counts) - min(counts) <= 1


def arctan(z):
    """Its residual flattens far out, so that full steps overshoot more and more."""
    return z - 3 * jnp.arctan(z)


def logarithm(z):
    """Not finite left of 0, where the first full step leads."""
    return z + 1 - 5 * jnp.log(z)


def test_line_search_backs_away_from_where_f_is_not_finite():
    z0 = jnp.array([[0.1], [9.0], [2.0]])
    solve = partial(fixed_point, logarithm, z0, batched=True, rtol=1e-5)
    assert np.all(solve(solver=Broyden()).stats.status == Status.NONFINITE)
    z, stats = solve(solver=Broyden(line_search=True))
    assert np.all(stats.converged)
    np.testing.assert_allclose(z, np.exp(0.2), rtol=1e-4)


def test_line_search_lowers_the_residual():
    """At every accepted point but those after a shortest step; a refused trial leaves `z` where it is."""
    states = iterates(Broyden(line_search=True), 14, arctan, (8.0, 1.4))
    norms = [np.linalg.norm(s.fz - s.z) for s in states]
    assert norms[-1] < 1e-8
    refused = [s.search.length < 1 for s in states]
    assert any(refused)
    for (before, after), refusal in zip(pairwise(states), refused[1:], strict=True):
        if refusal:
            np.testing.assert_array_equal(after.z, before.z)
            assert after.search.length == before.search.length / 2
        else:
            assert np.linalg.norm(after.fz - after.z) <= np.linalg.norm(before.fz - before.z)
            assert after.search.length == 1


def test_line_search_evaluates_f_once_a_step():
    seen = []

    def f(z):
        jax.debug.callback(seen.append, z)
        return arctan(z)

    stats = fixed_point(f, jnp.array([8.0, 1.4]), solver=Broyden(line_search=True), rtol=0.0, atol=1e-5).stats
    jax.effects_barrier()
    assert stats.converged
    assert len(seen) == stats.steps
    np.testing.assert_array_equal(seen[0], np.float32([8.0, 1.4]))
    call = jax.jit(lambda w: fixed_point(lambda z: jnp.tanh(z @ w), jnp.ones((2, 3)), solver=Broyden(2, True)).z)
    assert call.lower(jnp.eye(3)).as_text().count("stablehlo.tanh") == 1


def test_a_failed_trial_leaves_no_trace():
    """Neither the placeholder before the first step nor a trial that is not finite is learnt from."""
    states = iterates(Broyden(history=3, line_search=True), 3, logarithm, (9.0,))
    first, refused = states[0], states[1]
    assert not np.any(first.dz)
    assert not np.any(first.matrix)
    np.testing.assert_array_equal(refused.z, 9.0)
    for leaf in jax.tree.leaves(states):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"history": 0}, ValueError, "history must be at least 1; got 0"),
        ({"history": 2.0}, TypeError, "history must be an int of at least 1; got 2.0"),
        ({"history": True}, TypeError, "history must be an int"),
        ({"line_search": 1}, TypeError, "line_search must be True or False; got 1"),
        ({"line_search": "armijo"}, TypeError, "line_search must be True or False; got 'armijo'"),
        ({"damping": 0.5}, TypeError, "damping"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings(settings, error, text):
    with pytest.raises(error, match=text):
        jaxdeq.solvers.Broyden(**settings)
