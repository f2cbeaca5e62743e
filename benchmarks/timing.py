"""Times that can be compared: taken in turns, and given as ratios."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

SHORTEST = 0.05  # seconds a measurement; faster functions are called several times
PAUSE = 0.05  # seconds before each: right behind torchdeq, 1.3 ms of bare `f` took 2.2
LIMIT, FEWEST = 15.0, 5  # after so many seconds no round begins, but there are at least so many


class Ratio(NamedTuple):
    """A time in units of another."""

    median: float  # of the ratios within each round
    low: float  # their lower quartile
    high: float  # their upper quartile
    best: float  # shortest time over shortest time: what is left of a busy machine's noise is least


def interleave(runs: dict[str, Callable[[], Any]], repetitions: int, shortest: float = SHORTEST) -> dict[str, Any]:
    """Seconds a call, up to `[repetitions]` each: in every round each function has its turn.

    In an order drawn anew for each round, so that no function always follows one that leaves the machine busy.
    Each is called once before, to compile and to warm up, and then to see how many calls make a
    measurement of `shortest` seconds. Slow functions get fewer rounds: see `LIMIT`.
    """
    calls = {}
    for name, run in runs.items():
        measure(run, 1)
        calls[name] = max(1, math.ceil(shortest / measure(run, 1)))
    rounds: list[dict[str, float]] = []
    order = np.random.default_rng(0)
    start = time.perf_counter()
    while len(rounds) < repetitions and (len(rounds) < FEWEST or time.perf_counter() - start < LIMIT):
        rounds.append({name: measure(runs[name], calls[name]) for name in order.permutation(list(runs))})
    return {name: np.array([times[name] for times in rounds]) for name in runs}


def measure(run: Callable[[], Any], calls: int) -> float:
    time.sleep(PAUSE)
    if calls > 1:  # a fast one finds its caches cold after the pause
        jax.block_until_ready(run())
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(run())
    return (time.perf_counter() - start) / calls


def ratio(times: Any, base: Any) -> Ratio:
    """Of two results of one `interleave`."""
    low, median, high = np.quantile(times / base, [0.25, 0.5, 0.75])
    return Ratio(float(median), float(low), float(high), float(np.min(times) / np.min(base)))


def exactly(value: float) -> Ratio:
    """A number that is not a time, such as a compiled program's memory."""
    return Ratio(value, value, value, value)
