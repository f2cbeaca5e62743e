"""Adjoints as values: equal ones compare, print and compile as one; wrong settings are refused."""

import jax
import jax.numpy as jnp
import pytest

import jaxdeq
from jaxdeq import adjoints, solvers

EXAMPLES = [
    adjoints.Implicit(),
    adjoints.Implicit(solvers.Picard(0.5), rtol=1e-3, max_steps=10),
    adjoints.ImplicitJVP(solvers.Picard(0.5), rtol=1e-3, max_steps=10),
    adjoints.OneStep(),
    adjoints.Reversible(9),
    adjoints.Shine(refine=2, fallback=1.3),
    adjoints.Phantom(3, 0.5),
    adjoints.Neumann(3, 0.5),
    adjoints.Unrolled(9, segment=3),
]
REFUSED = [
    (adjoints.Implicit, {"solver": "anderson"}, TypeError, r"solver must be a solver object .* got 'anderson'"),
    (adjoints.Implicit, {"solver": solvers.Picard}, TypeError, r"solver must be a solver object .* got <class"),
    (adjoints.Implicit, {"rtol": -1e-3}, ValueError, r"rtol must be a finite number of at least 0; got -0.001"),
    (adjoints.Implicit, {"rtol": float("nan")}, ValueError, r"rtol must be a finite number of at least 0; got nan"),
    (adjoints.Implicit, {"max_steps": 0}, ValueError, r"max_steps must be at least 1; got 0"),
    (adjoints.Implicit, {"max_steps": 2.0}, TypeError, r"max_steps must be an int of at least 1; got 2.0 \(float\)"),
    (adjoints.ImplicitJVP, {"rtol": -1e-3}, ValueError, r"rtol must be a finite number of at least 0; got -0.001"),
    (adjoints.Reversible, {"length": 0}, ValueError, r"length must be at least 1; got 0"),
    (adjoints.Shine, {"refine": -1}, ValueError, r"refine must be at least 0; got -1"),
    (adjoints.Shine, {"fallback": -1.0}, ValueError, r"fallback must be a finite number of at least 0; got -1.0"),
    (adjoints.Phantom, {"steps": 0}, ValueError, r"steps must be at least 1; got 0"),
    (adjoints.Phantom, {"damping": 0.0}, ValueError, r"damping must be a number in \(0, 1\].* got 0.0"),
    (adjoints.Neumann, {"terms": True}, TypeError, r"terms must be an int of at least 1; got True \(bool\)"),
    (adjoints.Neumann, {"damping": 1.5}, ValueError, r"damping must be a number in \(0, 1\].* got 1.5"),
    (adjoints.Unrolled, {"length": -1}, ValueError, r"length must be at least 1; got -1"),
    (adjoints.Unrolled, {"segment": None}, TypeError, r"segment must be an int of at least 1; got None"),
]


@pytest.mark.parametrize("adjoint", EXAMPLES, ids=str)
def test_prints_as_it_is_written(adjoint):
    again = eval(repr(adjoint), {**vars(solvers), **vars(adjoints)})
    assert again == adjoint
    assert hash(again) == hash(adjoint)


def test_every_adjoint_has_an_example():
    assert {type(a).__name__ for a in EXAMPLES} == set(adjoints.__all__)
    assert len(set(EXAMPLES)) == len(EXAMPLES)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("kind", "settings", "error", "text"), REFUSED)
def test_refuses_wrong_settings(kind, settings, error, text):
    with pytest.raises(error, match=text):
        kind(**settings)


def test_equal_settings_are_traced_once():
    traced = []

    def gradient(adjoint, a):
        traced.append(adjoint)
        return jax.grad(lambda a: jaxdeq.fixed_point(jnp.cos, jnp.ones(()), adjoint=adjoint).z * a)(a)

    gradient = jax.jit(gradient, static_argnums=0)
    for steps in (3, 3, 4, 3):
        gradient(adjoints.Phantom(steps), 1.0)
    assert traced == [adjoints.Phantom(3), adjoints.Phantom(4)]
