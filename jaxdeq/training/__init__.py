"""Training of whole models: on one device or a mesh over many hosts, with the same config."""

from jaxdeq.training._checkpoint import CheckpointError
from jaxdeq.training._config import Checkpoints, Config, Data, Evaluation, Log
from jaxdeq.training._evaluate import evaluate
from jaxdeq.training._hosts import Hosts
from jaxdeq.training._mesh import Mesh
from jaxdeq.training._optimizer import SGD, Adam, Cosine, Optimizer
from jaxdeq.training._plan import Budget, Penalty
from jaxdeq.training._task import Outcome, Task
from jaxdeq.training._tasks import Classification, LanguageModelling, Segmentation
from jaxdeq.training.loop import Diverged, train
from jaxdeq.training.trained import load, saved

__all__ = [
    "SGD",
    "Adam",
    "Budget",
    "CheckpointError",
    "Checkpoints",
    "Classification",
    "Config",
    "Cosine",
    "Data",
    "Diverged",
    "Evaluation",
    "Hosts",
    "LanguageModelling",
    "Log",
    "Mesh",
    "Optimizer",
    "Outcome",
    "Penalty",
    "Segmentation",
    "Task",
    "evaluate",
    "load",
    "saved",
    "train",
]
