"""One step: parts of a batch, branches, layouts, averages."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxdeq import training
from jaxdeq.training import Adam, Cosine, Mesh, Penalty
from jaxdeq.training._mesh import check_rows, put_rows
from jaxdeq.training._plan import Plan
from jaxdeq.training._state import create
from jaxdeq.training._step import Programs
from tests.training import tiny

PLAIN = replace(
    tiny.TEXT,
    model=replace(tiny.TEXT.model, dropout=0.0),
    penalty=Penalty(weight=0.5, frequency=0.5, in_program=False),
    optimizer=training.SGD(Cosine(0.1)),
    ema=0.0,
    mesh=Mesh(data=1),
)

# On one worker: the fixture is made once.
pytestmark = pytest.mark.xdist_group("step")
PENALISED = Plan(
    unrolled=False, penalised=np.bool_(True), weight=np.float32(0.5), max_steps=np.int32(5), seed=np.uint32(0)
)
NOT = PENALISED._replace(penalised=np.bool_(False))


def stepped(config, plan, steps=1):
    """State and measures after some steps, on one device's memory."""
    mesh = config.mesh.make()
    with jax.set_mesh(mesh):
        programs, state = Programs(config, mesh), create(config, mesh)
        data = iter(config.data.train(config.batch, config.seed))
        for _ in range(steps):
            state, measures = programs.train(state, put_rows(next(data), mesh), plan)
    return jax.device_get((state, measures))


same = partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def plain():
    return stepped(PLAIN, NOT, steps=2)


def test_parts_of_a_batch_make_the_same_step(plain):
    """The memory too goes on with its own rows."""
    same(stepped(replace(PLAIN, accumulate=2), NOT, steps=2), plain)


@pytest.mark.mesh
def test_many_devices_make_the_same_step():
    # One step: a second one makes more of sums in another order.
    same(stepped(replace(PLAIN, accumulate=2, mesh=Mesh(data=2, fsdp=2, model=2)), NOT), stepped(PLAIN, NOT))


def test_a_branch_in_the_program_makes_the_same_step(plain):
    branches = replace(PLAIN, penalty=replace(PLAIN.penalty, in_program=True))
    same(stepped(branches, NOT, steps=2), plain)
    (state, measures), (branched, also) = stepped(PLAIN, PENALISED), stepped(branches, PENALISED)
    same((branched, also), (state, measures))
    assert measures["penalty"] > 0
    assert np.isnan(plain[1]["penalty"])


def test_averages_follow_the_weights():
    """With the decay that the first step has, 1/10 at most."""
    config = replace(PLAIN, ema=0.99)
    mesh = config.mesh.make()
    with jax.set_mesh(mesh):
        first = jax.device_get(create(config, mesh).params)
    state, _ = stepped(config, NOT)
    mixed = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, first, state.params)
    same(state.ema[0], mixed)


def test_seeds_share_a_compilation():
    """The seed, from which masks of dropout are drawn, is an argument of the program."""
    texts = set()
    for seed in (0, 1):
        config = replace(tiny.IMAGES, seed=seed)
        mesh = config.mesh.make()
        with jax.set_mesh(mesh):
            programs, batch = Programs(config, mesh), next(iter(config.data.train(config.batch, seed)))
            step = programs._train_program(False, False)
            texts.add(step.lower(programs.state, put_rows(batch, mesh), NOT._replace(seed=np.uint32(seed))).as_text())
    assert len(texts) == 1


@pytest.mark.mesh
def test_created_in_parts():
    """Parameters and moments lie by the names of their axes, as the same numbers."""
    config = replace(tiny.TEXT, mesh=Mesh(data=2, fsdp=2, model=2))
    mesh = config.mesh.make()
    with jax.set_mesh(mesh):
        state = create(config, mesh)
    kernel = state.params["deq"]["cell"]["feed_forward"]["widen"]["layer"]["kernel"][...]
    assert kernel.sharding.spec == P("fsdp", "model")
    leaves = [leaf for leaf in jax.tree.leaves((state.params, state.moments)) if leaf.ndim == 2]
    spread = [leaf for leaf in leaves if math.prod(leaf.sharding.shard_shape(leaf.shape)) <= leaf.size // 2]
    assert len(spread) >= 0.6 * len(leaves)
    assert state.carry.z.sharding.spec == P(("data", "fsdp"))
    alone = Mesh(data=1).make()
    with jax.set_mesh(alone):
        same(jax.device_get(state), jax.device_get(create(config, alone)))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 0}, "sizes of the mesh must be at least 1"),
        ({"data": -1, "fsdp": -1}, "one of them may be -1"),
    ],
)
def test_wrong_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Mesh(**sizes)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"must divide the number of devices; got 8"):
        Mesh(fsdp=3).make()
    with pytest.raises(ValueError, match=r"of all devices, or of fewer in one process; there are 8"):
        Mesh(data=16).make()
    with pytest.raises(
        ValueError, match=r"batch must be a multiple of 12: .* \(2 x 2\) and of accumulate \(3\); got 8"
    ):
        tiny.run(tiny.IMAGES, Path("unused"), accumulate=3, mesh=Mesh(data=2, fsdp=2))


@pytest.mark.usefixtures("unchecked")  # stand-ins for meshes
def test_rows_are_of_one_process():
    """Each reads its own: parts of layers on two would have different rows at one place in the batch."""
    device = lambda process: SimpleNamespace(process_index=process)
    devices = np.array([device(0), device(0), device(1), device(1)])
    for data, model in ((2, 2), (4, 1)):
        sizes = {"data": data, "fsdp": 1, "model": model}
        check_rows("batch", 8, 1, SimpleNamespace(shape=sizes, devices=devices.reshape(data, 1, model)))
    sizes = {"data": 1, "fsdp": 1, "model": 4}
    with pytest.raises(ValueError, match="on the devices of one process; got 4 over"):
        check_rows("batch", 8, 1, SimpleNamespace(shape=sizes, devices=devices.reshape(1, 1, 4)))


def test_rates():
    """The reference's: the very first at the peak, then linear, then the cosine from step 0 on."""
    rate = Cosine(1.0, warmup=10, first_at_peak=True)
    rates = [float(rate(jnp.int32(step), 100)) for step in (0, 1, 9, 10, 50, 100)]
    cosine = lambda step: 0.5 * (1 + math.cos(math.pi * step / 100))
    np.testing.assert_allclose(rates, [1, 0.1, 0.9, cosine(10), cosine(50), 0], atol=1e-6)
    assert float(Cosine(1.0, warmup=10)(jnp.int32(0), 100)) == 0
    assert float(Cosine(1.0, floor=0.25)(jnp.int32(100), 100)) == 0.25


@pytest.mark.parametrize("decoupled", [False, True])
def test_weight_decay(decoupled):
    """Through the gradient Adam divides it out again: the first step has the size of the rate."""
    directions = Adam(Cosine(1.0), decay=0.1, decoupled=decoupled).directions()
    params = jnp.full(2, 3.0)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        update, _ = directions.update(jnp.zeros(2), directions.init(params), params)
    np.testing.assert_allclose(update, 0.3 if decoupled else 1.0, rtol=1e-5)
