"""The settings of a training run."""

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import grain

from jaxdeq import _checks as check
from jaxdeq.training._hosts import Hosts
from jaxdeq.training._mesh import Mesh
from jaxdeq.training._optimizer import Optimizer
from jaxdeq.training._plan import Budget, Penalty
from jaxdeq.training._task import Task
from jaxdeq.training._tasks import ModelConfig


@runtime_checkable
class Data(Protocol):
    """A data set as a config names it: a frozen dataclass of settings.

    Elements are dicts of NumPy arrays, this host's `batch // jax.process_count()` rows of each batch,
    with the names that the task asks for.

    Example:
      >>> from experiments.data import FashionMNIST
      >>> from jaxdeq import training
      >>> isinstance(FashionMNIST(), training.Data)
      True
    """

    def train(self, batch: int, seed: int) -> grain.IterDataset:
        """Endless; the same for the same seed. Its iterator's state can be saved and restored."""

    def evaluate(self, split: str, batch: int) -> grain.IterDataset:
        """Every example of `"valid"` or `"test"` once; `weights` are 0 for what fills up the last batch."""

    def steps_per_epoch(self, batch: int) -> int:
        """How many batches are about as many examples as there are."""


@dataclass(frozen=True)
class Evaluation:
    """When and how the model is tried.

    Attributes:
      every: steps. 0: only at the end.
      batch: rows at a time. 0: as in training.
      max_steps: the budget of a solve. 0: the model's.
      rtol: the tolerance of a solve. 0: the model's.
      radius: whether to estimate spectral radii too, on one batch.

    Example:
      >>> from jaxdeq.training import Evaluation
      >>> Evaluation(every=500, max_steps=30, radius=True).batch
      0
    """

    every: int = 1000
    batch: int = 0
    max_steps: int = 0
    rtol: float = 0.0
    radius: bool = False

    def __post_init__(self):
        for name in ("every", "batch", "max_steps"):
            check.count(name, getattr(self, name), least=0)
        check.nonnegative("rtol", self.rtol)


@dataclass(frozen=True)
class Checkpoints:
    """When the run is saved, and what is kept.

    A save contains everything: a run that is started again goes on from the last one by itself.
    There is one after each evaluation too, one at the end, and one on SIGTERM.

    Attributes:
      every: steps. 0: only those.
      keep: how many of the last ones are kept. The best one is kept besides.

    Example:
      >>> from jaxdeq.training import Checkpoints
      >>> Checkpoints(every=500).keep
      2
    """

    every: int = 1000
    keep: int = 2

    def __post_init__(self):
        check.count("every", self.every, least=0)
        check.count("keep", self.keep)


@dataclass(frozen=True)
class Log:
    """What people see.

    Attributes:
      every: steps between two records, each a mean over the steps between.
      tensorboard: whether records go to TensorBoard too.
      bar: whether to show a progress bar.
      profile: first and last step of a profile for TensorBoard or Perfetto. Empty: none.

    Example:
      >>> from jaxdeq.training import Log
      >>> Log(every=10, tensorboard=False, profile=(100, 105)).bar
      True
    """

    every: int = 50
    tensorboard: bool = True
    bar: bool = True
    profile: tuple[int, ...] = ()

    def __post_init__(self):
        check.count("every", self.every)
        if len(self.profile) not in (0, 2) or list(self.profile) != sorted(self.profile):
            raise ValueError(f"profile must be the first and the last step, or empty; got {self.profile}")


@dataclass(frozen=True)
class Config:
    """A training run: what is learnt from what, and how.

    Attributes:
      model: the model's own settings.
      task: what it learns.
      data: what from.
      optimizer: how.
      steps: of training, in all.
      batch: rows a step, over all devices and hosts.
      accumulate: parts of a batch that a step goes through one after the other, for less memory.
      pretrain: first steps, in which the layer is unrolled `model.unroll` times in place of a solve.
      penalty: the Jacobian penalty.
      budget: random changes of the solve's budget.
      ema: decay of an average of the weights, with which the model is tried. 0: none. It begins
        lower: `min(ema, (1 + step) / (10 + step))`.
      seed: for initial weights and every random draw.
      evaluation: when and how the model is tried.
      checkpoints: when the run is saved.
      log: what people see.
      mesh: how devices share the work.
      hosts: how processes find each other, if there are several; for the caller to `connect`.
      work: the folder of this run. A run that was begun there goes on.
      start: weights to begin with: the folder of another run, or a PyTorch checkpoint converted to
        `.safetensors`. What has no equal there begins as without.

    Example:
      >>> from dataclasses import replace
      >>> from experiments import configs
      >>> config = replace(configs.fashion_mdeq(), seed=1, batch=50)
      >>> config.pretrain, config.steps
      (1000, 4000)
    """

    model: ModelConfig
    task: Task
    data: Data
    optimizer: Optimizer
    steps: int
    batch: int
    accumulate: int = 1
    pretrain: int = 0
    penalty: Penalty = Penalty()
    budget: Budget = Budget()
    ema: float = 0.0
    seed: int = 0
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    log: Log = Log()
    mesh: Mesh = Mesh()
    hosts: Hosts = Hosts()
    work: Path = Path("work/run")
    start: Path | None = None

    def __post_init__(self):
        for name in ("steps", "batch", "accumulate"):
            check.count(name, getattr(self, name))
        for name in ("pretrain", "seed"):
            check.count(name, getattr(self, name), least=0)
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be a decay from 0 to below 1; got {self.ema}")
        if (self.pretrain or self.penalty.weight or self.penalty.unrolled_weight) and not self.implicit:
            raise ValueError(
                f"pretrain and penalty are for models with an equilibrium; {type(self.model).__name__} has none, so "
                f"they must be 0; got pretrain {self.pretrain} and {self.penalty}"
            )

    @property
    def implicit(self) -> bool:
        """Whether the model has an equilibrium."""
        return hasattr(self.model, "max_steps")


def describe(settings: Any) -> Any:
    """Settings as JSON, with the name of each dataclass."""
    if is_dataclass(settings):
        values = {f.name: describe(getattr(settings, f.name)) for f in fields(settings)}
        return {"type": type(settings).__name__, **values}
    if isinstance(settings, (list, tuple)):
        return [describe(value) for value in settings]
    return str(settings) if isinstance(settings, Path) else settings


def differences(old: Any, new: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """By dotted name, what two descriptions do not share."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {name: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*old, *new]):
        found |= differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    return found
