"""Which steps add the penalty, with which weight, and what the budget is."""

import numpy as np
import pytest

from experiments.data.batches import Host, shuffled
from jaxdeq.training import Budget, Penalty
from jaxdeq.training._plan import plan


def plans(penalty, budget=Budget(), steps=2000, pretrain=0):
    return [plan(step, 7, pretrain, penalty, budget, 12) for step in range(steps)]


def test_frequency():
    share = np.mean([p.penalised for p in plans(Penalty(weight=1.0, frequency=0.35))])
    assert share == pytest.approx(0.35, abs=0.03)
    assert not any(p.penalised for p in plans(Penalty(weight=0.0, frequency=0.35)))
    assert all(p.penalised for p in plans(Penalty(weight=1.0)))


def test_draws_are_not_those_of_the_augmentation():
    """Data sets draw from seed and step too."""
    rows = lambda examples, draws: {"draws": draws}
    data = iter(shuffled(rows, 1000, batch=2, seed=7, draws=3, host=Host(0, 1)))
    first = [next(data)["draws"][0, 0] < 0.5 for _ in range(500)]
    coins = [p.penalised for p in plans(Penalty(weight=1.0, frequency=0.5), steps=500)]
    assert np.mean(np.equal(first, coins)) == pytest.approx(0.5, abs=0.1)


def test_draws_are_functions_of_seed_and_step():
    penalty = Penalty(weight=1.0, frequency=0.5)
    assert plans(penalty) == plans(penalty)
    other = [plan(step, 8, 0, penalty, Budget(), 12) for step in range(2000)]
    assert other != plans(penalty)


def test_weights_of_the_language_models():
    """Intervals from the first step of training, counted after pre-training: 1.9 to 2.7, 2.0 to 2.8."""
    reg = Penalty(1.9, 0.35, increment=0.1, interval=35_000, from_start=True)
    weights = [reg.weight_at(step, 32_000) for step in (0, 31_999, 32_000, 34_999, 35_000, 299_999)]
    np.testing.assert_allclose(weights, [0, 0, 1.9, 1.9, 2.0, 2.7])
    preln = Penalty(2.0, 0.4, increment=0.1, interval=30_000, from_start=True)
    weights = [preln.weight_at(step, 32_000) for step in (32_000, 59_999, 60_000, 299_999)]
    np.testing.assert_allclose(weights, [2.0, 2.0, 2.1, 2.7 + 0.1])


def test_weights_of_the_image_models():
    """Intervals from the end of pre-training; a weight of its own before, none from some step on."""
    penalty = Penalty(2.5, 0.08, increment=0.1, interval=50_000, unrolled_weight=0.03, until=900_000)
    weights = [penalty.weight_at(step, 510_000) for step in (0, 510_000, 559_999, 560_000, 899_999, 900_000)]
    np.testing.assert_allclose(weights, [0.03, 2.5, 2.5, 2.6, 3.2, 0])


def test_budgets():
    every = {int(p.max_steps) for p in plans(Penalty(1.0, 0.35), Budget((-2, 0)))}
    assert every == {10, 11, 12}
    some = plans(Penalty(1.0, 0.35), Budget((-2, 1), only_penalised=True))
    assert {int(p.max_steps) for p in some if p.penalised} == {10, 11, 12, 13}
    assert {int(p.max_steps) for p in some if not p.penalised} == {12}
    assert plan(0, 0, 0, Penalty(), Budget((-9, -9)), 3).max_steps == 1


def test_unrolled_first():
    assert [p.unrolled for p in plans(Penalty(), steps=5, pretrain=3)] == [True] * 3 + [False] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Penalty(frequency=1.5), "frequency must be a share of the steps, from 0 to 1; got 1.5"),
        (lambda: Penalty(weight=-1.0), "weight must be a finite number of at least 0"),
        (lambda: Budget((1, 0)), "jitter must be the lowest and the highest change"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
