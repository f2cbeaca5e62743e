"""Batches read as a training loop reads them."""

import contextlib
import itertools

import numpy as np

from experiments.data import Host

ALONE = Host(0, 1)
PAIR = Host(0, 2), Host(1, 2)


def first(batches, count=None):
    """The first batches, all if no number is given; then the threads that make them end."""
    with contextlib.closing(iter(batches)) as iterator:
        return list(itertools.islice(iterator, count))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], name)


def together(shares):
    """Global batches from those of the hosts."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]


def assert_restores(batches, before=2, after=2):
    """A state taken on the way gives the same batches, in an old iterator and in a new one."""
    with contextlib.closing(iter(batches)) as iterator, contextlib.closing(iter(batches)) as new:
        list(itertools.islice(iterator, before))
        state = iterator.get_state()
        assert state == {"step": before}
        expected = list(itertools.islice(iterator, after))
        for one in (iterator, new):
            one.set_state(state)
            assert_equal(list(itertools.islice(one, after)), expected)
