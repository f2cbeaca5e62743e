"""The loop, with solvers of a few lines: what it measures, keeps and ends on."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdeq import Status, fixed_point
from jaxdeq._loop import NOISE, PATIENCE, relative

EPS = float(jnp.finfo(jnp.float32).eps)


class Visited(NamedTuple):
    z: Any
    fz: Any
    index: Any


@dataclass(frozen=True)
class Visit:
    """Goes to the given points, whatever `f` is."""

    points: tuple

    def init(self, f, z0):
        return Visited(z0, z0, jnp.int32(0))

    def step(self, f, state):
        z = jnp.asarray(self.points, state.z.dtype)[state.index] + 0 * state.z
        return Visited(z, f(z), state.index + 1)


class Counted(NamedTuple):
    z: Any
    fz: Any
    left: Any


@dataclass(frozen=True)
class Twice:
    """Two evaluations a step."""

    def init(self, f, z0):
        return Counted(z0, z0, jnp.int32(0))

    def step(self, f, state):
        z = f(state.fz)
        return Counted(z, f(z), state.left - 2)


def visit(residuals, rtol=1e-3):
    """A run whose relative residuals are these: at `z = 1 - r` the map returns 1."""
    points = tuple(1 - r for r in residuals)
    f = lambda z: jnp.where(jnp.isnan(z), z, 1.0)
    return fixed_point(f, 0.0, solver=Visit(points), rtol=rtol, max_steps=len(points), trace=len(points))


residual_runs = st.lists(st.sampled_from([0.9, 0.5, 0.25, 0.125, 0.0, np.nan]), min_size=1, max_size=6)


@settings(max_examples=12)  # each is a compilation
@given(residual_runs)
def test_status_steps_and_best(residuals):
    """The rules in plain Python: stop at the first residual within tolerance, or not finite, or at the end."""
    z, stats = visit(residuals)
    best, best_z, status, steps = np.inf, 0.0, Status.MAX_STEPS, 0
    for r in residuals:
        steps += 1
        if np.isnan(r):
            status = Status.NONFINITE
            break
        if r < best:
            best, best_z = r, 1 - r
        if r <= 1e-3:
            status = Status.CONVERGED
            break
    assert (stats.steps, stats.status, stats.residual) == (steps, status, best)
    assert z == best_z
    np.testing.assert_array_equal(stats.trace[:steps], np.float32(residuals[:steps]))
    assert jnp.all(jnp.isnan(stats.trace[steps:]))


def test_the_iterate_that_meets_the_absolute_tolerance_is_the_answer():
    """Its relative residual may be above an earlier one; the status speaks of the returned `z`."""
    f = lambda z: jnp.where(z > 10, 1.1 * z, z + 0.5)
    z, stats = fixed_point(f, 0.0, solver=Visit((20.0, 1.0)), rtol=0.0, atol=0.6)
    assert (z, stats.status) == (1.0, Status.CONVERGED)
    np.testing.assert_allclose(stats.residual, 0.5 / 1.5, rtol=1e-6)


def test_round_off_ends_the_run_after_some_patience():
    low = NOISE * EPS / 2
    stats = visit([0.5, low] + 20 * [2 * low], rtol=0.0).stats
    assert (stats.status, stats.steps) == (Status.MAX_STEPS, 2 + PATIENCE)
    assert stats.residual == pytest.approx(low, rel=0.05)


def test_a_long_run_is_given_more_patience():
    low = NOISE * EPS / 2
    falling = list(np.geomspace(0.5, low, 160))
    stats = visit(falling + 60 * [2 * low], rtol=0.0).stats
    assert 17 < stats.steps - 160 < 30


def test_a_plateau_above_round_off_does_not():
    assert visit([0.5] + 20 * [0.75], rtol=0.0).stats.steps == 21


def test_in_bfloat16_a_plateau_at_a_half_is_no_round_off():
    """Transient growth of a non-normal map, for more steps than the patience."""
    a = (0.5 * jnp.eye(12) + 1.2 * jnp.eye(12, k=1)).astype(jnp.bfloat16)
    f = lambda z: a @ z + jnp.ones(12, jnp.bfloat16)
    stats = fixed_point(f, jnp.full(12, 1e5, jnp.bfloat16), rtol=0.1, max_steps=300, trace=40).stats
    assert jnp.sum(stats.trace > 0.4) > PATIENCE + 2
    assert stats.converged


def test_a_slow_descent_near_round_off_does_not():
    falling = [NOISE * EPS * 0.9**k for k in range(20)]
    assert visit(falling, rtol=0.0).stats.steps == 20


def test_a_tolerance_below_twice_epsilon_counts_as_that():
    assert visit([2 * EPS, 0.5], rtol=0.0).stats.steps == 1
    assert visit([4 * EPS, 0.5], rtol=0.0).stats.steps == 2


def test_solvers_with_several_evaluations_a_step():
    stats = fixed_point(jnp.cos, 1.0, solver=Twice(), rtol=1e-3, trace=4).stats
    assert stats.converged
    assert stats.steps == 2 * jnp.sum(
        ~jnp.isnan(fixed_point(jnp.cos, 1.0, solver=Twice(), rtol=1e-3, trace=40).stats.trace)
    )
    stats = fixed_point(jnp.cos, 1.0, solver=Twice(), rtol=1e-6, max_steps=6).stats
    assert (stats.steps, stats.status) == (6, Status.MAX_STEPS)


@pytest.mark.parametrize(
    ("error", "size", "want"),
    [(0, 0, 0), (0, 2, 0), (1, 2, 0.5), (8, 0, 3.4028235e38), (3e38, 1e-30, 3.4028235e38), (np.nan, 1, np.nan)],
)
def test_relative(error, size, want):
    have = relative(jnp.float32(error), jnp.float32(size))
    np.testing.assert_equal(float(have), float(np.float32(want)))


def test_no_steps_at_all():
    """A traced budget of zero cannot be refused; it is an answer too."""
    z, stats = jax.jit(lambda n: fixed_point(jnp.cos, 2.0, max_steps=n, trace=2))(0)
    assert (z, stats.steps, stats.status, stats.residual) == (2.0, 0, Status.MAX_STEPS, jnp.inf)


def test_memory_does_not_grow_with_the_budget():
    sizes = [
        jax.jit(lambda z, n=n: fixed_point(jnp.cos, z, max_steps=n).z).lower(jnp.ones(50)).compile().memory_analysis()
        for n in (10, 1000)
    ]
    assert sizes[0].temp_size_in_bytes == sizes[1].temp_size_in_bytes
