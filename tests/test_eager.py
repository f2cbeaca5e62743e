"""Calls outside `jit`: they compile once, and never use what was compiled for something else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeq import fixed_point, jacobian_penalty, solvers

X = jnp.array([0.5, -1.0, 2.0])
COMPILATIONS = []


@jax.monitoring.register_event_duration_secs_listener
def note(event, duration, **kwargs):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILATIONS.append(event)


def compilations(run, values):
    before = len(COMPILATIONS)
    for value in values:
        run(value)
    return len(COMPILATIONS) - before


def layer(z, a):
    return jnp.tanh(a * z) + X


FLOATS = [0.1 + 0.005 * i for i in range(100)]
ARRAYS = list(jnp.asarray(FLOATS))
CALLS = {
    "same function, arrays": (lambda a: fixed_point(layer, X, a), ARRAYS),
    "same function, floats": (lambda a: fixed_point(layer, X, a), FLOATS),
    "numpy": (lambda a: fixed_point(layer, np.ones(3, np.float32), np.float32(a)), FLOATS),
    "new lambdas": (lambda a: fixed_point(lambda z: layer(z, a), X), ARRAYS),
    "new lambdas, jitted": (lambda a: fixed_point(jax.jit(lambda z: layer(z, a)), X), ARRAYS),
    "new lambdas with rules inside": (lambda a: fixed_point(lambda z: a * jax.nn.relu(z) + X, X), ARRAYS),
    "partial": (lambda a: fixed_point(partial(layer, a=a), X), ARRAYS),
    "new limits": (lambda a: fixed_point(layer, X, 0.5, rtol=a, atol=a / 2, max_steps=int(200 * a)), FLOATS),
    "new equal settings": (lambda a: fixed_point(layer, X, a, solver=solvers.Anderson(3)), FLOATS),
}


@pytest.mark.parametrize(("run", "values"), CALLS.values(), ids=CALLS)
def test_a_hundred_calls_compile_once(run, values):
    assert compilations(run, values) <= 1


@pytest.mark.parametrize("mode", ["jvp", "vjp"])
def test_penalties_compile_once(mode):
    penalty = lambda a: jacobian_penalty(lambda z: layer(z, a), X, jax.random.key(0), probes=2, mode=mode)
    penalty(ARRAYS[0])
    assert compilations(penalty, ARRAYS[1:30]) == 0


@pytest.mark.parametrize("lazy", [False, True], ids=["argument", "closure"])
def test_gradients_compile_once(lazy):
    def value(a):
        f, args = (lambda z: a * jax.nn.relu(z) + X, ()) if lazy else (layer, (a,))
        return fixed_point(f, X, *args).z[0]

    jax.grad(value)(FLOATS[0])  # a forward and a backward pass, and what `grad` itself needs
    assert compilations(jax.grad(value), FLOATS[1:30]) == 0


def test_constants_of_f_are_told_apart():
    for shift in (1.0, 2.0, 3.0):
        np.testing.assert_allclose(fixed_point(lambda z, shift=shift: z / 2 + shift, 0.0).z, 2 * shift, rtol=1e-3)


def test_dtypes_and_structures_are_told_apart():
    for z0 in (jnp.zeros(2), jnp.zeros(2, jnp.bfloat16), [jnp.zeros(2)], (jnp.zeros(2),), {"a": jnp.zeros(2)}):
        z = fixed_point(
            lambda z: jax.tree.map(lambda x: x / 2 + jnp.ones((), x.dtype), z), z0, solver=solvers.Picard()
        ).z
        assert jax.tree.structure(z) == jax.tree.structure(z0)
        assert jax.tree.leaves(z)[0].dtype == jax.tree.leaves(z0)[0].dtype


class Layer:
    def __init__(self):
        self.shift = jnp.ones(2)

    def step(self, z):
        return z / 2 + self.shift


def test_what_f_captures_may_change_between_calls():
    layer, table, captured = Layer(), {"shift": jnp.ones(2)}, np.ones(2, np.float32)
    maps = [layer.step, lambda z: z / 2 + table["shift"], lambda z: z / 2 + captured]
    first = [fixed_point(f, jnp.zeros(2)).z for f in maps]
    layer.shift = table["shift"] = jnp.full(2, -3.0)
    captured[:] = -3
    second = [fixed_point(f, jnp.zeros(2)).z for f in maps]
    np.testing.assert_allclose(first, 2.0, rtol=1e-3)
    np.testing.assert_allclose(second, -6.0, rtol=1e-3)


def test_python_values_that_f_captures_may_change_between_calls():
    settings = {"scale": 0.5, "steps": 1}

    def f(z):
        for _ in range(settings["steps"]):
            z = settings["scale"] * z + 1
        return z

    assert fixed_point(f, 0.0, rtol=1e-6).z == pytest.approx(2.0)
    settings["scale"] = 0.0
    assert fixed_point(f, 0.0, rtol=1e-6).z == pytest.approx(1.0)
    settings.update(scale=-1.0, steps=2)
    assert fixed_point(f, 3.0).z == 3.0


def vjp_rule(scale):
    @jax.custom_vjp
    def sine(z):
        return jnp.sin(z)

    sine.defvjp(lambda z: (jnp.sin(z), z), lambda z, g: (scale * jnp.cos(z) * g,))
    return sine


def jvp_rule(scale):
    @jax.custom_jvp
    def sine(z):
        return jnp.sin(z)

    sine.defjvp(lambda z, t: (jnp.sin(*z), scale * jnp.cos(*z) * t[0]))
    return sine


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled_vjp(scale, z):
    return jnp.sin(z)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def scaled_jvp(scale, z):
    return jnp.sin(z)


scaled_vjp.defvjp(lambda scale, z: (jnp.sin(z), z), lambda scale, z, g: (scale * jnp.cos(z) * g,))
scaled_jvp.defjvp(lambda scale, z, t: (jnp.sin(*z), scale * jnp.cos(*z) * t[0]))

RULES = {
    "vjp": vjp_rule,
    "jvp": jvp_rule,
    "vjp, static argument": lambda scale: partial(scaled_vjp, scale),
    "jvp, static argument": lambda scale: partial(scaled_jvp, scale),
    "vjp inside jit": lambda scale: jax.jit(vjp_rule(scale)),
    "jvp inside cond": lambda scale: lambda z, rule=jvp_rule(scale): jax.lax.cond(z > 0, rule, jnp.sin, z),
    "vjp inside scan": lambda scale: (
        lambda z, rule=vjp_rule(scale): jax.lax.scan(lambda z, _: (rule(z), None), z, length=1)[0]
    ),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_equal_forward_code_with_other_derivatives(rule):
    """`z = a sin z` with a rule that scales the derivative: `dz/da = sin z / (1 - scale a cos z)`.

    Once as two maps, once as one map whose rule is exchanged between the calls.
    """
    a, z, table = 1.2, 1.0267, {}
    for _ in range(50):
        z = a * np.sin(z)
    shared = lambda z, a: a * table["rule"](z)
    for scale in (0.5, 1.0):
        table["rule"] = rule(scale)
        own = lambda z, a, sine=table["rule"]: a * sine(z)
        want = np.sin(z) / (1 - scale * a * np.cos(z))
        for f in (shared, own)[: 1 + (scale == 1.0)]:
            grad = jax.grad(lambda a, f=f: fixed_point(f, 1.0, a, rtol=1e-6).z)(a)
            np.testing.assert_allclose(grad, want, rtol=1e-4)


def test_callbacks_are_told_apart():
    calls = []
    for name in "ab":

        def f(z, name=name):
            jax.debug.callback(lambda z: calls.append(name), z)
            return z / 2

        jax.block_until_ready(fixed_point(f, 0.0))
        jax.effects_barrier()
    assert sorted(set(calls)) == ["a", "b"]
