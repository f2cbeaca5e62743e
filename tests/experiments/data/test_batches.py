"""A batch is a function of the seed and the step, whoever makes it."""

import numpy as np
import pytest

from experiments.data.batches import Batches, Host, Reading, here, in_order, shuffled
from tests.experiments.data.reading import ALONE, PAIR, assert_equal, assert_restores, first, together

COUNT = 10


def make(examples, draws):
    made = {"examples": examples}
    return made if draws is None else made | {"draws": draws}


def train(batch=4, seed=0, host=ALONE, reading=Reading()):
    return shuffled(make, COUNT, batch, seed, draws=2, reading=reading, host=host)


def test_an_epoch_has_every_example_once_in_an_order_of_its_own():
    examples = np.concatenate([batch["examples"] for batch in first(train(), 5)])  # two epochs of 10 in batches of 4
    epochs = examples.reshape(2, COUNT)
    np.testing.assert_array_equal(np.sort(epochs), [range(COUNT)] * 2)
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] != range(COUNT)).any()


def test_the_seed_decides():
    assert_equal(first(train(), 4), first(train(), 4))
    ours, theirs = first(train(), 1)[0], first(train(seed=1), 1)[0]
    assert (ours["examples"] != theirs["examples"]).any()
    assert (ours["draws"] != theirs["draws"]).all()


def test_draws_are_uniform_and_new_in_every_row_and_step():
    draws = np.concatenate([batch["draws"] for batch in first(train(batch=50), 40)])
    assert draws.shape == (2000, 2)
    assert len(np.unique(draws)) == draws.size
    counts, _ = np.histogram(draws, 10, (0, 1))
    assert abs(counts - 400).max() < 80  # four standard deviations of 19 and a little


@pytest.mark.parametrize("reading", [Reading(threads=3), Reading(ahead=7), Reading(workers=2)], ids=repr)
def test_who_makes_them_does_not_matter(reading):
    assert_equal(first(train(reading=reading), 4), first(train(), 4))


@pytest.mark.parametrize("batches", [train(), train(reading=Reading(threads=2)), in_order(make, COUNT, 2, host=ALONE)])
def test_the_state_is_the_step(batches):
    assert_restores(batches)


def test_a_state_may_move_to_other_readers():
    iterator = iter(train(reading=Reading(workers=1)))
    iterator.set_state({"step": 2})
    assert_equal([next(iterator)], first(train(), 3)[2:])
    iterator.close()


@pytest.mark.parametrize("batches", [train, lambda host: in_order(make, COUNT, 4, host=host)])
def test_hosts_share_a_batch(batches):
    count = 3
    assert_equal(together([first(batches(host=host), count) for host in PAIR]), first(batches(host=ALONE), count))


@pytest.mark.parametrize("host", [ALONE, *PAIR], ids=repr)
def test_evaluation_has_every_example_once(host):
    batches = first(in_order(make, COUNT, 4, host=host))
    assert len(batches) == 3
    weights = np.concatenate([batch["weights"] for batch in batches])
    examples = np.concatenate([batch["examples"] for batch in batches])
    assert weights.dtype == np.float32
    rows = np.arange(12).reshape(3, host.count, -1)[:, host.index].ravel()
    np.testing.assert_array_equal(examples[weights == 1], rows[rows < COUNT])
    np.testing.assert_array_equal(weights, rows < COUNT)


def test_this_process_is_the_only_host():
    assert here() == ALONE


@pytest.mark.parametrize("batch", [0, 3, -2])
def test_hosts_refuse_a_batch_that_they_cannot_share(batch):
    with pytest.raises(ValueError, match=f"positive multiple of the 2 hosts; got {batch}"):
        Host(0, 2).rows(batch)


def test_an_error_stops_the_reading():
    def broken(step):
        raise ValueError(f"no batch {step}")

    with pytest.raises(ValueError, match="no batch 0"):
        first(Batches(broken), 1)


def test_finite_batches_end_and_can_start_again():
    iterator = iter(in_order(make, COUNT, 5, host=ALONE))
    assert len(list(iterator)) == 2
    with pytest.raises(StopIteration):
        next(iterator)
    iterator.set_state({"step": 1})
    assert len(list(iterator)) == 1
    iterator.close()
