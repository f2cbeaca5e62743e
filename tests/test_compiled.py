"""What the compiled program holds: how often `f`, how much memory, on which platforms."""

import re

import jax
import jax.numpy as jnp
import pytest

import jaxdeq
from jaxdeq import adjoints, solvers
from tests.pairs import pairs

SHORT = {
    "Anderson": {"history": 3},
    "Broyden": {"history": 3},
    "NewtonKrylov": {"krylov": 3},
}  # short memories compile fast
SOLVERS = [getattr(solvers, name)(**SHORT.get(name, {})) for name in solvers.__all__]
SEVERAL_A_STEP = {"NewtonKrylov"}  # solvers with a line search or a Krylov loop
ONE_A_STEP = [s for s in SOLVERS if type(s).__name__ not in SEVERAL_A_STEP] + [solvers.Picard(0.5)]
ADJOINTS = [
    adjoints.Implicit(),
    adjoints.ImplicitJVP(),
    adjoints.OneStep(),
    adjoints.Phantom(2),
    adjoints.Neumann(2),
    adjoints.Reversible(length=4),
    adjoints.Shine(refine=1),
    adjoints.Unrolled(length=4, segment=2),
]
W, X = jnp.eye(7) / 2, jnp.ones((3, 7))


def solve(w, x, **settings):
    return jaxdeq.fixed_point(lambda z: jnp.tanh(z @ w + x), jnp.zeros(x.shape), **settings).z


def loss(w, x, **settings):
    return jnp.sum(solve(w, x, **settings) ** 2)


def gradient(**settings):
    return jax.jit(lambda w, x: jax.value_and_grad(loss)(w, x, **settings))


def products(text):
    """Matrix products of the map in optimised HLO. Inner products, which a solver makes, have other shapes."""
    return len(re.findall(r" = f32\[(?:3,7|7,3|7,7)\]\S* (?:dot|convolution)\(", text))


def tanhs(text):
    return len(re.findall(r" = \S+ tanh\(", text))


def temporaries(lowered):
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("solver", ONE_A_STEP, ids=str)
def test_one_instance_of_f_forward(solver, batched):
    lowered = jax.jit(lambda w, x: solve(w, x, solver=solver, batched=batched)).lower(W, X)
    assert lowered.as_text().count("stablehlo.tanh") == 1
    text = lowered.compile().as_text()
    assert (tanhs(text), products(text)) == (1, 1)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("solver", [solvers.Anderson(5), solvers.Broyden(5)], ids=str)
def test_the_history_is_updated_in_place(solver, batched):
    """XLA copies it where it cannot tell that whoever reads it comes before the update, or only after."""
    text = jax.jit(lambda w, x: solve(w, x, solver=solver, batched=batched)).lower(W, X).compile().as_text()
    loops = "\n".join(part for part in re.split(r"\n(?=\S)", text) if not part.startswith("ENTRY"))
    assert re.findall(r" = f32\[5,3,7\]\S* ", loops)
    assert not re.findall(r" = f32\[5,3,7\]\S* copy\(", loops)


@pytest.mark.parametrize("solver", ONE_A_STEP, ids=str)
def test_one_linearisation_backward(solver):
    """Four products: the forward loop's, the linearisation's, the backward loop's, the gradient of `w`."""
    text = gradient(solver=solver).lower(W, X).compile().as_text()
    assert tanhs(text) == 2
    assert products(text) == 4


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_memory_does_not_grow_with_the_budget(solver):
    few, many = (temporaries(gradient(solver=solver, max_steps=n).lower(W, X)) for n in (10, 1000))
    assert few == many > 0


@pytest.mark.parametrize(("solver", "adjoint"), pairs(SOLVERS, ADJOINTS), ids=str)
def test_lowers_for_every_platform(solver, adjoint):
    """And calls no library, which some platform might not have."""
    settings = {"solver": solver, "adjoint": adjoint, "batched": True}
    exported = jax.export.export(gradient(**settings), platforms=("cpu", "cuda", "tpu"))(W, X)
    assert not re.findall(r"custom_call @\w+", exported.mlir_module())
