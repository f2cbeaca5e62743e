"""Words, their numbers, and streams of them."""

import numpy as np
import pytest

from experiments.data import StateOfTheUnion
from experiments.data.text import encode, once, state_of_the_union, streams, vocabulary
from tests.experiments.data.reading import ALONE, PAIR, assert_equal, assert_restores, first, together

WORDS = np.arange(101, dtype=np.int32)


def test_vocabulary_is_by_frequency_then_by_place():
    lines = [" b a a \n", "\n", " c a b d\n"]
    numbers = vocabulary(lines)
    assert list(numbers) == ["<eos>", "a", "b", "c", "d"]
    assert list(numbers.values()) == list(range(5))
    np.testing.assert_array_equal(encode(lines, numbers), [2, 1, 1, 0, 0, 3, 1, 2, 4, 0])


def test_a_word_that_training_does_not_have():
    numbers = vocabulary(["a <unk>\n"])
    np.testing.assert_array_equal(encode(["b a\n"], numbers), [numbers["<unk>"], numbers["a"], 0])
    with pytest.raises(ValueError, match="'b' is not in the vocabulary, which has no <unk>"):
        encode(["b\n"], vocabulary(["a\n"]))


def test_upper_case_is_kept():
    assert list(vocabulary(["A a A\n"])) == ["<eos>", "A", "a"]


def test_a_row_goes_on_where_it_stopped():
    batches = first(streams(WORDS, 3, 7, 0, ALONE), 30)
    for batch in batches:
        assert batch["tokens"].shape == batch["targets"].shape == (3, 7)
        assert batch["tokens"].dtype == batch["targets"].dtype == np.int32
    tokens, targets = (np.concatenate([batch[name] for batch in batches], axis=1) for name in ("tokens", "targets"))
    np.testing.assert_array_equal(tokens[:, 1:], targets[:, :-1])
    np.testing.assert_array_equal(np.diff(tokens) % len(WORDS), 1)  # the words are their places


def test_an_epoch_has_every_word():
    data = streams(WORDS, 3, 7, 0, ALONE)
    seen = np.concatenate([batch["tokens"].ravel() for batch in first(data, 5)])  # 105 words
    assert set(seen) == set(WORDS)


def test_the_seed_moves_the_start():
    starts = {first(streams(WORDS, 1, 5, seed, ALONE), 1)[0]["tokens"][0, 0] for seed in range(8)}
    assert len(starts) > 4


@pytest.mark.parametrize(("batch", "length"), [(1, 101), (3, 7), (7, 3), (4, 200), (60, 1)])
def test_evaluation_predicts_every_word_once_after_its_predecessor(batch, length):
    batches = first(once(WORDS, batch, length, ALONE))
    tokens, targets, weights = (
        np.concatenate([batch[name] for batch in batches], axis=1) for name in ("tokens", "targets", "weights")
    )
    np.testing.assert_array_equal(np.sort(targets[weights == 1]), WORDS)
    np.testing.assert_array_equal(tokens, (targets - 1) % len(WORDS))
    np.testing.assert_array_equal(tokens[:, 1:], targets[:, :-1])
    assert weights.dtype == np.float32
    assert set(weights.ravel()) <= {0, 1}


@pytest.mark.parametrize("read", [lambda host: streams(WORDS, 4, 5, 1, host), lambda host: once(WORDS, 4, 5, host)])
def test_rows_are_shared_by_hosts_and_restore(read):
    assert_equal(together([first(read(host), 3) for host in PAIR]), first(read(ALONE), 3))
    assert_restores(read(ALONE))


def test_state_of_the_union():
    data = StateOfTheUnion(length=8)
    assert data.vocab == 15_059
    _, words = state_of_the_union()
    assert {split: len(numbers) for split, numbers in words.items()} == {
        "train": 1_605_673,
        "valid": 183_048,
        "test": 193_258,
    }
    assert {numbers[-1] for numbers in words.values()} == {0}  # each ends with a line
    assert words["train"].max() == 15_058
    assert data.steps_per_epoch(4) == 50_178
    assert first(data.train(4, 0, ALONE), 1)[0]["tokens"].shape == (4, 8)
    split = StateOfTheUnion(length=500).evaluate("valid", 40, ALONE)
    assert sum(batch["weights"].sum() for batch in first(split)) == 183_048


def test_refusals():
    with pytest.raises(ValueError, match='split must be "valid" or "test"; got \'dev\''):
        StateOfTheUnion().evaluate("dev", 10, ALONE)
    with pytest.raises(ValueError, match="length must be at least 1; got 0"):
        StateOfTheUnion(length=0).train(10, 0, ALONE)
