"""The Jacobian penalty, against explicit Jacobians and recorded numbers; and what it shares with the radius."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from jax.flatten_util import ravel_pytree

import jaxdeq
from jaxdeq._regularizers import MODES, gaussian, mean_square

RECORDED = np.load(Path(__file__).parent / "data" / "jacobian_tanh.npz")
KEY = random.key(0)

modes = pytest.mark.parametrize("mode", MODES)


def layer(z, weights, x):
    """The recorded map, batch first: z [b, d, l], x [b, i, l]."""
    w, u, b = weights
    return jnp.tanh(jnp.einsum("ij,bjl->bil", w, z) + jnp.einsum("ij,bjl->bil", u, x) + b[:, None])


def recorded(problem):
    single = lambda name: jnp.asarray(RECORDED[name], jnp.float32)
    return single(f"{problem}/z"), (single(f"{problem}/W"), single("U"), single("b")), single("x")


def matrix(n, seed, scale=1.0):
    return scale * random.normal(random.key(seed), (n, n)) / n**0.5


def pair(z):
    """A map on a tree whose leaves are coupled."""
    a, b = z["a"], z["b"]
    return {"a": jnp.sin(a) * b.sum(), "b": jnp.cos(b) * a.mean() + b**2}


def exact(f, z):
    """`||J||_F^2 / size` from the explicit Jacobian."""
    flat, unravel = ravel_pytree(z)
    jacobian = jax.jacobian(lambda v: ravel_pytree(f(unravel(v)))[0])(flat)
    return jnp.sum(jacobian**2) / flat.size


def basis(z):
    """All unit vectors, scaled so that the mean over them is the exact trace."""
    flat, unravel = ravel_pytree(z)
    return jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype) * flat.size**0.5)


@pytest.mark.parametrize("probes", [1, 2])
@pytest.mark.parametrize("problem", ["contractive", "stiff", "sym"])
def test_penalty_and_gradient_are_the_recorded_ones(problem, probes):
    z, weights, x = recorded(problem)
    noise = jnp.asarray(RECORDED[f"{problem}/probes"][:probes], jnp.float32)
    loss = jax.jit(lambda weights: mean_square(lambda z: layer(z, weights, x), z, noise, "vjp"))
    value, grads = jax.value_and_grad(loss)(weights)
    name = f"{problem}/loss_vecs{probes}"
    np.testing.assert_allclose(value, RECORDED[name], rtol=1e-5)
    for grad, which in zip(grads, "WUb", strict=True):
        want = RECORDED[f"{name}_grad_{which}"]
        np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@modes
def test_penalty_is_unbiased(mode):
    z, weights, x = recorded("stiff")
    estimate = jax.jit(lambda key: jaxdeq.jacobian_penalty(layer, z, key, weights, x, probes=400, mode=mode))
    np.testing.assert_allclose(estimate(KEY), RECORDED["stiff/expected_loss"], rtol=0.02)


@modes
def test_penalty_is_exact_on_a_basis(mode):
    z = {"a": jnp.arange(4.0).reshape(2, 2) / 4, "b": jnp.arange(1.0, 4.0) / 3}
    np.testing.assert_allclose(mean_square(pair, z, basis(z), mode), exact(pair, z), rtol=1e-5)


@modes
def test_the_gradient_of_the_penalty_is_that_of_the_jacobian_with_z_constant(mode):
    w, z = matrix(5, 1), random.normal(random.key(2), (5,))
    f = lambda w: lambda z: jnp.tanh(w @ z)
    got = jax.jit(jax.grad(lambda w: mean_square(f(w), 2 * z + 0 * w[0], basis(z), mode)))(w)
    want = jax.grad(lambda w: exact(f(w), jax.lax.stop_gradient(2 * z)))(w)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_z_gets_no_gradient():
    z = jnp.arange(1.0, 4.0)
    grad = jax.grad(lambda z: jaxdeq.jacobian_penalty(lambda z: z**2, z, KEY))(z)
    np.testing.assert_array_equal(grad, jnp.zeros(3))


def test_arguments_and_closures_get_the_same_gradient():
    w, z = matrix(4, 3), jnp.ones(4)
    closed = jax.grad(lambda w: jaxdeq.jacobian_penalty(lambda z: jnp.sin(w @ z), z, KEY))(w)
    passed = jax.grad(lambda w: jaxdeq.jacobian_penalty(lambda z, w: jnp.sin(w @ z), z, KEY, w))(w)
    assert jnp.abs(closed).max() > 0
    np.testing.assert_allclose(closed, passed)


@modes
def test_a_complex_state_counts_complex_derivatives(mode):
    w = jax.lax.complex(matrix(4, 4), matrix(4, 5))
    z = jnp.ones((3, 4), jnp.complex64)
    estimate = jax.jit(lambda key: jaxdeq.jacobian_penalty(lambda z: z @ w, z, key, probes=3000, mode=mode))(KEY)
    assert estimate.dtype == jnp.float32
    np.testing.assert_allclose(estimate, jnp.sum(jnp.abs(w) ** 2) / 4, rtol=0.03)


@modes
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_summed_in_float32(dtype, mode):
    z = jnp.ones((1000,), dtype)  # 1000 squares of 100: beyond the float16 range
    estimate = jaxdeq.jacobian_penalty(lambda z: 100 * z, z, KEY, probes=4, mode=mode)
    assert estimate.dtype == jnp.float32
    np.testing.assert_allclose(estimate, 1e4, rtol=0.1)


def test_float64_is_summed_in_float64():
    with jax.enable_x64(True):
        assert jaxdeq.jacobian_penalty(jnp.sin, jnp.ones(3, jnp.float64), KEY).dtype == jnp.float64


def test_probes_differ_between_probes_leaves_and_keys():
    z = (jnp.ones(3), jnp.ones(3))
    noise = jax.vmap(lambda key: gaussian(key, z))(random.split(KEY, 2))
    assert len({np.asarray(row).tobytes() for leaf in noise for row in leaf}) == 4
    one, two = (jaxdeq.jacobian_penalty(jnp.sin, jnp.ones(3), random.key(i)) for i in range(2))
    assert one != two


def test_penalty_under_vmap_and_jit():
    zs, keys = random.normal(KEY, (3, 4)), random.split(KEY, 3)
    one = lambda z, key: jaxdeq.jacobian_penalty(jnp.sin, z, key, probes=2)
    many = jax.jit(jax.vmap(one))(zs, keys)
    np.testing.assert_allclose(many, [one(z, key) for z, key in zip(zs, keys, strict=True)], rtol=1e-5)


def test_vjp_mode_serves_maps_without_a_forward_mode():
    @jax.custom_vjp
    def double(z):
        return 2 * z

    double.defvjp(lambda z: (2 * z, None), lambda _, g: (2 * g,))
    np.testing.assert_allclose(mean_square(double, jnp.ones(3), basis(jnp.ones(3)), "vjp"), 4.0, rtol=1e-6)


def test_what_the_penalty_refuses(unchecked):
    z = jnp.ones(3)
    with pytest.raises(ValueError, match="mode must be one of 'jvp', 'vjp'; got 'both'"):
        jaxdeq.jacobian_penalty(jnp.sin, z, KEY, mode="both")
    with pytest.raises(ValueError, match="probes must be at least 1; got 0"):
        jaxdeq.jacobian_penalty(jnp.sin, z, KEY, probes=0)
    with pytest.raises(TypeError, match="probes must be an int"):
        jaxdeq.jacobian_penalty(jnp.sin, z, KEY, probes=1.5)


@pytest.mark.parametrize("estimate", [jaxdeq.jacobian_penalty, jaxdeq.spectral_radius])
def test_what_both_refuse(unchecked, estimate):
    z = jnp.ones(3)
    with pytest.raises(ValueError, match=r"shapes.*\(3,\).*\(1, 3\)"):
        estimate(lambda z: z[None], z, KEY)
    with pytest.raises(TypeError, match="structure"):
        estimate(lambda z: (z, z), z, KEY)
    with pytest.raises(TypeError, match="floating or complex"):
        estimate(lambda z: z, jnp.ones(3, jnp.int32), KEY)
    with pytest.raises(ValueError, match="at least one array"):
        estimate(lambda z: z, (), KEY)


def test_both_lower_everywhere():
    def both(w, z):
        f = lambda z: jnp.tanh(z @ w)
        return jaxdeq.jacobian_penalty(f, z, KEY), jaxdeq.spectral_radius(f, z, KEY, batched=True)

    shapes = jax.ShapeDtypeStruct((4, 4), jnp.float32), jax.ShapeDtypeStruct((2, 4), jnp.float32)
    exported = jax.export.export(jax.jit(both), platforms=("cpu", "cuda", "tpu"))(*shapes)
    chex.assert_shape([jnp.zeros(a.shape) for a in exported.out_avals], [(), (2,)])


@pytest.mark.mesh
@modes
@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_sharded_states(kind, mode):
    mesh = jax.make_mesh((4, 2), ("batch", "model"), axis_types=(kind, kind))
    spread = lambda x, *axes: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*axes)))
    w = matrix(8, 6, 0.5)
    plain = jnp.ones((4, 8))

    def f(z, w):
        explicit = not jax.typeof(z).sharding.mesh.empty and kind == jax.sharding.AxisType.Explicit
        return jnp.tanh(jnp.dot(z, w, out_sharding=jax.P("batch", "model") if explicit else None))

    with jax.set_mesh(mesh):
        z, ws = spread(plain, "batch", "model"), spread(w, None, "model")
        got = jax.jit(lambda z, w: jaxdeq.jacobian_penalty(f, z, KEY, w, mode=mode))(z, ws)
        rho = jax.jit(lambda z, w: jaxdeq.spectral_radius(f, z, KEY, w, iters=20, batched=True))(z, ws)
    np.testing.assert_allclose(got, jaxdeq.jacobian_penalty(f, plain, KEY, w, mode=mode), rtol=1e-4)
    want = jaxdeq.spectral_radius(f, plain, KEY, w, iters=20, batched=True)
    np.testing.assert_allclose(rho, want, rtol=1e-3)


def test_probes_are_held_one_at_a_time():
    """Beyond those of a compiled program, one after another in a loop."""
    z = jnp.ones(1000)

    def temporaries(probes):
        penalty = lambda z, key: jaxdeq.jacobian_penalty(jnp.tanh, z, key, probes=probes)
        return jax.jit(penalty).lower(z, random.key(0)).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(256) < temporaries(16) + 16 * z.nbytes
