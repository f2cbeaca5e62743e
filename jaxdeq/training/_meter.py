"""Measures of training steps, collected while the device works on."""

import math
import time
import warnings
from typing import Any

import jax
import numpy as np

LATE = 2  # steps that the device may be behind when measures are fetched, so that it never waits


class Diverged(Exception):
    """The loss is no longer a number; the message says which checkpoint is the last good one.

    Example:
      >>> from jaxdeq import training
      >>> def patiently(config, lower):  # once more, if need be
      ...     try:
      ...         return training.train(config)
      ...     except training.Diverged:
      ...         return training.train(lower)
    """


class Meter:
    """Means over intervals of steps, and seconds a step without what is done between steps.

    Args:
      every: steps of an interval.
      step: steps made so far.
    """

    def __init__(self, every: int, step: int):
        self.every, self.step = every, step
        self.pending: list[dict[str, Any]] = []
        self.seconds, self.timed, self.began = 0.0, 0, time.perf_counter()

    def add(self, measures: dict[str, jax.Array]) -> tuple[int, dict[str, float]] | None:
        """Takes a step's measures, still being computed.

        Returns:
          The last step and the means of an interval, when it is time for them.

        Raises:
          Diverged: the loss or the gradient of a step is not finite.
        """
        self.pending.append(measures)
        self.step += 1
        self.timed += 1
        behind = min(LATE, self.every - 1)
        if (self.step - behind) % self.every:
            return None
        return self._take(len(self.pending) - behind)

    def drain(self, early: bool = False) -> tuple[int, dict[str, float]] | None:
        """Waits for all steps, and stops the clock; the same as `add` otherwise.

        Args:
          early: whether the interval ends here, although it has fewer steps.
        """
        self.pending = jax.device_get(self.pending)
        self._check(self.pending, self.step - len(self.pending))
        self.seconds += time.perf_counter() - self.began
        self.began = math.nan
        return self._take(len(self.pending)) if early or self.step % self.every == 0 else None

    def resume(self) -> None:
        """Lets the clock run again."""
        self.began = time.perf_counter()

    def _take(self, count):
        if count <= 0:
            return None
        first = self.step - len(self.pending)
        interval, self.pending = jax.device_get(self.pending[:count]), self.pending[count:]
        self._check(interval, first)
        return first + count, _means(interval) | {"seconds_per_step": self._lap()}

    def _lap(self):
        if not math.isnan(self.began):
            now = time.perf_counter()
            self.seconds, self.began = self.seconds + now - self.began, now
        each = self.seconds / max(1, self.timed)
        self.seconds, self.timed = 0.0, 0
        return each

    def _check(self, measures, step):
        for i, values in enumerate(measures):
            for name in ("loss", "gradient"):
                if not np.isfinite(values[name]):
                    raise Diverged(f"the {name} of step {step + i + 1} is {float(values[name])}")


def _means(measures):
    """Over steps; a penalty counts where there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of no numbers at all: NaN
        mean = lambda name: (np.nanmean if name == "penalty" else np.mean)([values[name] for values in measures])
        return {name: float(mean(name)) for name in measures[0]}
