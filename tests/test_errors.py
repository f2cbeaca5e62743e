"""Wrong input is refused while tracing, with what was wrong, what was got and what would do."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdeq
from jaxdeq import BackwardStats, adjoints, fixed_point, solvers

pytestmark = pytest.mark.usefixtures("unchecked")

ONES = jnp.ones((3, 4))
PAIR = {"a": jnp.ones(2), "b": (jnp.ones((2, 3)), jnp.ones(()))}


def half(z, *args):
    return jax.tree.map(lambda x: x / 2, z)


def replaced(**leaves):
    return lambda z: {**half(z), **leaves}


# What f returns, z0, the exception, and what its message must contain.
RESULTS = [
    ("list for tuple", list, (jnp.ones(2), jnp.ones(2)), TypeError, ["f must return the structure of z0", "[*, *]"]),
    ("missing key", lambda z: {"a": z["a"]}, PAIR, TypeError, ["structure of z0", "'b'", "got PyTreeDef({'a': *})"]),
    ("nothing", lambda z: None, ONES, TypeError, ["structure of z0", "got PyTreeDef(None)"]),
    ("pair", lambda z: (z, 1.0), ONES, TypeError, ["f must return the new z alone", "auxiliary results"]),
    ("pair of trees", lambda z: (half(z), z["a"]), PAIR, TypeError, ["f must return the new z alone"]),
    ("transposed", jnp.transpose, ONES, ValueError, ["shapes of z0", "(3, 4)", "returned (4, 3)"]),
    ("row", lambda z: z[:1], ONES, ValueError, ["shapes of z0", "(3, 4)", "returned (1, 4)"]),
    ("sum", jnp.sum, ONES, ValueError, ["shapes of z0", "(3, 4)", "returned ()"]),
    ("leaf's shape", replaced(a=ONES), PAIR, ValueError, ["at z['a']", "(2,)", "(3, 4)"]),
    ("nested leaf", replaced(b=(ONES, 1.0)), PAIR, ValueError, ["at z['b'][0]", "(2, 3)", "(3, 4)"]),
    (
        "float32 for bfloat16",
        lambda z: z.astype(jnp.float32),
        ONES.astype(jnp.bfloat16),
        TypeError,
        ["dtypes of z0", "got bfloat16 and returned float32", ".astype(bfloat16)", "z0 of float32"],
    ),
    ("real for complex", jnp.real, ONES.astype(jnp.complex64), TypeError, ["complex64", "returned float32"]),
    ("complex for real", lambda z: jax.lax.complex(z, z), 1.0, TypeError, ["got float32 and returned complex64"]),
    ("integer for float", lambda z: jnp.round(z).astype(jnp.int32), ONES, TypeError, ["returned int32"]),
    ("leaf's dtype", replaced(a=jnp.ones(2, jnp.float16)), PAIR, TypeError, ["at z['a']", "returned float16"]),
]


def parts(texts):
    """A pattern: all of these, in this order."""
    return "(?s)" + ".*".join(map(re.escape, texts))


@pytest.mark.parametrize(("f", "z0", "error", "texts"), [pytest.param(*c[1:], id=c[0]) for c in RESULTS])
def test_results_unlike_z0(f, z0, error, texts):
    with pytest.raises(error, match=parts(texts)):
        fixed_point(f, z0)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad, jax.checkpoint, jax.make_jaxpr])
def test_refused_while_tracing(transform):
    def solve(z):
        return jnp.sum(fixed_point(lambda z: z[None], z).z)

    with pytest.raises(ValueError, match=r"shapes of z0; at z it got \(\) and returned \(1,\)"):
        transform(solve)(jnp.ones(2) if transform is jax.vmap else 1.0)


STATES = [
    ("integer leaf", {"n": np.arange(3)}, TypeError, ["z0['n'] must be floating or complex", "int32", ".astype"]),
    ("python int", 1, TypeError, ["z0 must be floating or complex", "int32"]),
    ("bool leaf", (jnp.ones(1), jnp.array(True)), TypeError, ["z0[1]", "got bool"]),
    ("key", jax.random.key(0), TypeError, ["z0 must be floating or complex", "key<fry>"]),
    ("text", {"a": "1.0"}, TypeError, ["z0['a'] must be a floating or complex array", "'1.0'"]),
    ("function", {"a": jnp.sin}, TypeError, ["z0['a'] must be a floating or complex array"]),
    ("empty dict", {}, ValueError, ["z0 must hold at least one array", "{}"]),
    ("none", None, ValueError, ["z0 must hold at least one array", "None"]),
]


@pytest.mark.parametrize(("z0", "error", "texts"), [pytest.param(*c[1:], id=c[0]) for c in STATES])
def test_bad_initial_guess(z0, error, texts):
    with pytest.raises(error, match=parts(texts)):
        fixed_point(half, z0)


@pytest.mark.parametrize("z0", [{"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}, {"a": jnp.ones(2), "b": jnp.ones(())}])
def test_batched_without_a_common_axis(z0):
    with pytest.raises(ValueError, match=parts(["batched=True needs one leading batch axis", "['a']", "['b']"])):
        fixed_point(half, z0, batched=True)


NUMBER = "must be a finite number of at least 0"
SETTINGS = [
    *(({"rtol": value}, ValueError, [f"rtol {NUMBER}", str(value)]) for value in (-1e-3, np.inf, np.nan, True, 1j)),
    *(({"rtol": value}, ValueError, [f"rtol {NUMBER}", repr(value)]) for value in ("tight", None)),
    ({"atol": -1}, ValueError, [f"atol {NUMBER}", "-1"]),
    ({"rtol": np.ones(2)}, ValueError, ["rtol must be one number", "(2,)"]),
    ({"rtol": np.ones((), complex)}, TypeError, ["rtol must be floating", "complex128"]),
    ({"atol": jnp.ones(3)}, ValueError, ["atol must be one number for all problems", "(3,)"]),
    ({"atol": jnp.int32(1)}, TypeError, ["atol must be floating", "int32"]),
    ({"max_steps": 0}, ValueError, ["max_steps must be at least 1", "0"]),
    ({"max_steps": 10.0}, TypeError, ["max_steps must be an int", "10.0 (float)"]),
    ({"max_steps": True}, TypeError, ["max_steps must be an int", "True"]),
    ({"max_steps": None}, TypeError, ["max_steps must be an int", "None"]),
    ({"max_steps": jnp.float32(9)}, TypeError, ["max_steps must be integer", "float32"]),
    ({"max_steps": np.arange(2)}, ValueError, ["max_steps must be one number", "(2,)"]),
    ({"trace": -1}, ValueError, ["trace must be at least 0", "-1"]),
    ({"trace": 2.0}, TypeError, ["trace must be an int", "2.0"]),
    ({"batched": 1}, TypeError, ["batched must be True or False", "1 (int)"]),
    ({"solver": "anderson"}, TypeError, ["solver must be a solver object such as", "Anderson()", "'anderson'"]),
    ({"solver": solvers.Anderson}, TypeError, ["solver must be a solver object", "class"]),
    ({"solver": adjoints.Implicit()}, TypeError, ["solver must be a solver object", "Implicit("]),
    ({"adjoint": None}, TypeError, ["adjoint must be an adjoint object such as", "Implicit()", "None"]),
    ({"adjoint": adjoints.Implicit}, TypeError, ["adjoint must be an adjoint object", "class"]),
    ({"adjoint": solvers.Picard()}, TypeError, ["adjoint must be an adjoint object", "Picard("]),
    ({"tap": BackwardStats.empty(2)}, ValueError, ["tap must be BackwardStats.empty()", "(2,)"]),
    ({"tap": BackwardStats.empty(), "batched": True}, ValueError, ["tap must be BackwardStats.empty(3,)", "()"]),
    ({"tol": 1e-3}, TypeError, ["tol"]),
    ({"maxiter": 10}, TypeError, ["maxiter"]),
]


@pytest.mark.parametrize(("settings", "error", "texts"), [pytest.param(*c, id=str(c[0])[1:40]) for c in SETTINGS])
def test_bad_settings(settings, error, texts):
    with pytest.raises(error, match=parts(texts)):
        fixed_point(half, ONES, **settings)


def test_traced_settings_are_checked_as_far_as_they_can_be():
    with pytest.raises(TypeError, match="max_steps must be integer; got an array of float32"):
        jax.jit(lambda n: fixed_point(half, ONES, max_steps=n))(2.0)
    with pytest.raises(ValueError, match="rtol must be one number"):
        jax.jit(lambda t: fixed_point(half, ONES, rtol=t))(jnp.ones(3))


def test_arguments_in_the_wrong_order():
    with pytest.raises(TypeError, match=parts(["f must be a function of z, followed by z0", "fixed_point(f, z0"])):
        fixed_point(ONES, half)


BUILT = [
    *((partial(solvers.Picard, d), ValueError, ["damping must be a number in (0, 1]"]) for d in (0, 1.5, np.nan, "1")),
    (partial(solvers.Anderson, damping=-0.1), ValueError, ["damping", "where 1 is a full step", "-0.1"]),
    (partial(solvers.Anderson, history=0), ValueError, ["history must be at least 1", "0"]),
    (partial(solvers.Anderson, history=2.5), TypeError, ["history must be an int", "2.5 (float)"]),
    (partial(solvers.Anderson, every=0), ValueError, ["every must be at least 1", "0"]),
    (partial(solvers.Anderson, ridge=-1.0), ValueError, ["ridge must be a finite number of at least 0", "-1.0"]),
    (partial(solvers.Anderson, memory=5), TypeError, ["memory"]),
    (partial(solvers.Reversible, 1.0), ValueError, ["damping must be below 1", "got 1", "Picard()"]),
    (partial(solvers.Reversible, 0.0), ValueError, ["damping must be a number in (0, 1]", "0.0"]),
    (partial(adjoints.Implicit, "cg"), TypeError, ["solver must be a solver object", "'cg'"]),
    (partial(adjoints.Implicit, rtol=-1.0), ValueError, ["rtol", "-1.0"]),
    (partial(adjoints.Implicit, max_steps=0), ValueError, ["max_steps must be at least 1"]),
    (partial(adjoints.Implicit, max_steps=9.5), TypeError, ["max_steps must be an int"]),
    (partial(adjoints.Implicit, tol=1.0), TypeError, ["tol"]),
]


@pytest.mark.parametrize(("build", "error", "texts"), [pytest.param(*c, id=str(i)) for i, c in enumerate(BUILT)])
def test_bad_solvers_and_adjoints(build, error, texts):
    with pytest.raises(error, match=parts(texts)):
        build()


PAIRED = [
    (adjoints.Shine(), {}, TypeError, ["Shine takes its estimate from solver=Broyden(...)", "got Anderson("]),
    (adjoints.Reversible(), {}, TypeError, ["adjoints.Reversible undoes the steps of", "got Anderson("]),
    (adjoints.ImplicitJVP(), {"tap": BackwardStats.empty()}, ValueError, ["cannot report through tap", "Implicit()"]),
]


@pytest.mark.parametrize(("adjoint", "settings", "error", "texts"), [pytest.param(*c, id=str(c[0])) for c in PAIRED])
def test_adjoints_that_do_not_go_with_it(adjoint, settings, error, texts):
    with pytest.raises(error, match=parts(texts)):
        fixed_point(half, ONES, adjoint=adjoint, **settings)


def test_not_converging_is_an_answer():
    assert fixed_point(lambda z: 1 - z, 0.0, solver=solvers.Picard()).stats.status == jaxdeq.Status.MAX_STEPS
