"""What changes from step to step: budget, penalty, and whether this step adds it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxdeq import _checks as check


@dataclass(frozen=True)
class Penalty:
    """When the Jacobian penalty is added to the loss, and with which weight.

    Attributes:
      weight: at first, once the model is solved and no longer unrolled.
      frequency: share of the steps that add it, drawn at random; only these pay for it.
      increment: added to the weight after each interval.
      interval: steps. 0: the weight stays.
      from_start: whether intervals are counted from the first step of training, and not from the
        first that solves. Either way the weight begins as `weight`.
      until: the step from which on there is no penalty. 0: there always is.
      unrolled_weight: before, at the state that the unrolled layer ends with.
      probes: random vectors to average over. 0: as many as the model has by default.
      in_program: whether the compiled step branches by itself (`lax.cond`), or there is one program
        with and one without, of which the host runs one. The draws are the same. None: in the
        program, but not on a CPU, where XLA takes 13 times as long for gradients of convolutions
        inside a branch.

    Example:
      >>> from jaxdeq.training import Penalty
      >>> penalty = Penalty(weight=2.0, frequency=0.35, increment=0.1, interval=1000)
      >>> round(float(penalty.weight_at(step=3500, pretrain=500)), 2)
      2.3
    """

    weight: float = 0.0
    frequency: float = 1.0
    increment: float = 0.0
    interval: int = 0
    from_start: bool = False
    until: int = 0
    unrolled_weight: float = 0.0
    probes: int = 0
    in_program: bool | None = None

    def __post_init__(self):
        for name in ("weight", "frequency", "increment", "unrolled_weight"):
            check.nonnegative(name, getattr(self, name))
        for name in ("interval", "until", "probes"):
            check.count(name, getattr(self, name), least=0)
        if self.frequency > 1:
            raise ValueError(f"frequency must be a share of the steps, from 0 to 1; got {self.frequency}")

    def weight_at(self, step: int, pretrain: int) -> float:
        """The weight in this step, where the first `pretrain` are unrolled."""
        if self.until and step >= self.until:
            return 0.0
        if step < pretrain:
            return self.unrolled_weight
        if not self.interval:
            return self.weight
        start = 0 if self.from_start else pretrain
        passed = (step - start) // self.interval - (pretrain - start) // self.interval
        return self.weight + self.increment * passed


@dataclass(frozen=True)
class Budget:
    """How many evaluations a solve may take; the model's `max_steps`, changed at random.

    Attributes:
      jitter: lowest and highest change, each as likely as any between.
      only_penalised: whether only steps with the penalty change it.

    Example:
      >>> from jaxdeq.training import Budget
      >>> Budget(jitter=(-2, 1), only_penalised=True).jitter
      (-2, 1)
    """

    jitter: tuple[int, int] = (0, 0)
    only_penalised: bool = False

    def __post_init__(self):
        if self.jitter[0] > self.jitter[1]:
            raise ValueError(f"jitter must be the lowest and the highest change, in this order; got {self.jitter}")


class Plan(NamedTuple):
    """One step's settings.

    Attributes:
      unrolled: whether the layer is unrolled in place of a solve.
      penalised: whether the loss has the penalty.
      weight: of the penalty.
      max_steps: the budget of the solve.
      seed: of the random draws within the step.
    """

    unrolled: bool
    penalised: np.bool_
    weight: np.float32
    max_steps: np.int32
    seed: np.uint32


def plan(step: int, seed: int, pretrain: int, penalty: Penalty, budget: Budget, max_steps: int) -> Plan:
    """The settings of a step: a function of its number, so that all hosts and any resumed run agree."""
    rng = np.random.default_rng((seed, step, 2))  # data sets draw from (seed, step) and (seed, epoch, 1)
    coin, change = rng.random() < penalty.frequency, int(rng.integers(*budget.jitter, endpoint=True))
    weight = penalty.weight_at(step, pretrain)
    penalised = coin and weight > 0
    if budget.only_penalised and not penalised:
        change = 0
    max_steps = max(1, max_steps + change)
    return Plan(step < pretrain, np.bool_(penalised), np.float32(weight), np.int32(max_steps), argument(seed))


def argument(seed: int) -> np.uint32:
    """A seed as an argument of a program, so that runs that differ in it alone share a compilation."""
    return np.uint32(seed % 2**32)
