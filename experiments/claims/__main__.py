"""Runs the paper's studies: python -m experiments.claims [--only NAME ...] [--out FOLDER] [--quick]."""

import json
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import tyro

from experiments.claims.cost import Cost
from experiments.claims.evaluations import Evaluations
from experiments.claims.explicit import Explicit
from experiments.claims.stability import Stability
from experiments.claims.stop import Stop
from experiments.claims.synthetic import Synthetic
from experiments.claims.table import Table
from experiments.claims.where import where

Name = Literal["synthetic", "stop", "evaluations", "stability", "cost", "explicit"]


@dataclass(frozen=True)
class Options:
    """Runs studies; each writes a table, NAME.md, its numbers, NAME.json, and a figure, NAME.png.

    What they train is kept in the folder's `runs`, shared by the studies: the same command goes on where it was
    stopped, and reads back what is done.
    """

    only: tuple[Name, ...] = ()  # studies to run; all if none is named
    out: Path = Path("work/claims")  # folder for what they write
    seeds: tuple[int, ...] = ()  # in place of the studies' own
    quick: bool = False  # a smoke test of seconds to minutes, in the folder's `quick`; its numbers mean nothing
    synthetic: Synthetic = Synthetic()
    stop: Stop = Stop()
    evaluations: Evaluations = Evaluations()
    stability: Stability = Stability()
    cost: Cost = Cost()
    explicit: Explicit = Explicit()


def main(options: Options) -> dict[str, Table]:
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax talks
    out = options.out / "quick" if options.quick else options.out
    out.mkdir(parents=True, exist_ok=True)
    tables = {}
    for name in options.only or get_args(Name):
        study, start = getattr(options, name), time.perf_counter()
        study = replace(study, quick=options.quick or study.quick, seeds=options.seeds or study.seeds)
        tables[name] = study.run(out / f"{name}.png")
        seconds = round(time.perf_counter() - start, 1)
        setting = {**where(), "seeds": " ".join(map(str, study.seeds)), "seconds": seconds}
        text = told(tables[name], setting, study.quick)
        print(f"\n{name}\n\n{text}", flush=True)
        (out / f"{name}.md").write_text(text)
        (out / f"{name}.json").write_text(json.dumps({"setting": setting, **tables[name]._asdict()}, indent=1))
    return tables


def told(table: Table, setting: dict[str, object], quick: bool) -> str:
    """The table, what there is to say, and how and on what it was made."""
    parts = ["A smoke test: these numbers mean nothing."] if quick else []
    parts += [table.markdown(), table.note, ", ".join(f"{key} {value}" for key, value in setting.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Options))
