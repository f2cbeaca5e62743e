"""What people see of a run: a progress bar, JSON lines, TensorBoard, one warning."""

import json
import math
import warnings
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxdeq.training._config import Config, describe

Record = dict[str, Any]

SHOWN = {  # in the bar, by name in a record
    "loss": "loss {:.3f}",
    "accuracy": "accuracy {:.3f}",
    "forward_steps": "forward {:.1f}",
    "forward_residual": "({:.1e})",
    "backward_steps": "backward {:.1f}",
    "backward_residual": "({:.1e})",
    "penalty": "penalty {:.3f}",
    "radius": "radius {:.2f}",
}


class Records:
    """The records of a run, in `metrics.jsonl` and elsewhere; on the first host only.

    Args:
      config: of the run.
      step: at which the run begins or goes on. Records of later steps are dropped: they will be
        made again.
    """

    def __init__(self, config: Config, step: int):
        self.config = config
        self.path = config.work / "metrics.jsonl"
        self.writes = jax.process_index() == 0
        self.records = [r for r in read(self.path) if r["step"] <= step and r["kind"] != "test"]
        self.bar: Any = None
        self.board: Any = None
        if self.writes:
            self._open(step)

    def _open(self, step):
        from tqdm import tqdm

        (self.config.work / "config.json").write_text(json.dumps(describe(self.config), indent=2) + "\n")
        part = self.path.with_suffix(".part")  # so that a kill leaves the old records or the new ones
        part.write_text("".join(_line(record) for record in self.records))
        part.replace(self.path)
        if self.config.log.bar:
            self.bar = tqdm(total=self.config.steps, initial=step, unit="step", dynamic_ncols=True, mininterval=0.5)
        if self.config.log.tensorboard:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(self.config.work / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Adds a record; `kind` is `train`, `valid` or `test`."""
        record = {"kind": kind, "step": step, **values}
        self.records.append(record)
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.write(_line(record))
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)
        if self.bar is not None:
            self._show(kind, step, values)

    def advance(self, steps: int = 1) -> None:
        """Moves the bar on."""
        if self.bar is not None:
            self.bar.update(steps)

    def say(self, text: str) -> None:
        """A line beside the bar."""
        if self.bar is not None:
            self.bar.write(text)
        elif self.writes:
            print(text, flush=True)

    def _show(self, kind, step, values):
        if kind == "train":
            parts = [text.format(values[name]) for name, text in SHOWN.items() if _finite(values.get(name))]
            rate = next(
                f"{value:,.0f} {name[:-11]}/s" for name, value in values.items() if name.endswith("_per_second")
            )
            self.bar.set_postfix_str(", ".join([*parts, rate]), refresh=False)
        else:
            named = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if _finite(value))
            self.bar.write(f"step {step}, {kind}: {named}")

    def close(self) -> None:
        for out in (self.bar, self.board):
            if out is not None:
                out.close()


def read(path: Path) -> list[Record]:
    """The records of a file; none if there is no file. Lines that a crash left unfinished are left out."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [record for record in map(_record, lines) if record]


def _record(line):
    try:
        return json.loads(line)
    except ValueError:
        return None


def _line(record):
    """Numbers that JSON does not have become null."""
    tidy = {name: None if isinstance(value, float) and not _finite(value) else value for name, value in record.items()}
    return json.dumps(tidy) + "\n"


def _finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


class Watch:
    """Warns, once, when solves that used to converge no longer do, forward or backward."""

    USUAL, FEW, FAR = 0.8, 0.5, 0.1
    BUDGETS: ClassVar = {"forward": "--model.max-steps", "backward": "--model.adjoint.max-steps"}

    def __init__(self):
        self.most, self.least = dict.fromkeys(self.BUDGETS, 0.0), dict.fromkeys(self.BUDGETS, math.inf)
        self.warned = False

    def look(self, step: int, record: Record) -> None:
        """Reads a record of training."""
        for way, budget in self.BUDGETS.items():
            if self.warned or f"{way}_converged" not in record:
                continue
            share, residual = record[f"{way}_converged"], record[f"{way}_residual"]
            self.most[way], self.least[way] = max(self.most[way], share), min(self.least[way], residual)
            fewer = self.most[way] > self.USUAL and share < self.FEW
            worse = residual > max(self.FAR, 4 * self.least[way])
            if fewer or worse or record[f"{way}_failed"] > 0:
                self.warned = True
                warnings.warn(
                    f"solves stop converging at step {step}, {way}: {share:.0%} reach the tolerance, mean relative "
                    f"residual {residual:.1e}. What helps: a larger --penalty.weight or --penalty.frequency, a larger "
                    f"{budget}, a lower --optimizer.rate.peak, longer --pretrain",
                    stacklevel=2,
                )
