"""Runs the paper's studies: python -m experiments.claims [--only NAME ...] [--out FOLDER]."""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import jax
import tyro

from experiments.claims.synthetic import Synthetic
from experiments.claims.table import Table

Name = Literal["synthetic"]


@dataclass(frozen=True)
class Options:
    """Runs studies; each writes a table, NAME.md, its numbers, NAME.json, and a figure, NAME.png."""

    only: tuple[Name, ...] = ()  # studies to run; all if none is named
    out: Path = Path("work/claims")  # folder for what they write
    synthetic: Synthetic = Synthetic()


def main(options: Options) -> dict[str, Table]:
    options.out.mkdir(parents=True, exist_ok=True)
    tables = {}
    for name in options.only or get_args(Name):
        start = time.perf_counter()
        tables[name] = getattr(options, name).run(options.out / f"{name}.png")
        setting = {**where(), "seconds": round(time.perf_counter() - start, 1)}
        text = f"{tables[name].markdown()}\n\n{', '.join(f'{key} {value}' for key, value in setting.items())}\n"
        print(f"\n{name}\n\n{text}", flush=True)
        (options.out / f"{name}.md").write_text(text)
        (options.out / f"{name}.json").write_text(json.dumps({"setting": setting, **tables[name]._asdict()}, indent=1))
    return tables


def where() -> dict[str, str | int]:
    """How and on what it ran."""
    versions = {name: importlib.metadata.version(name) for name in ("jaxdeq", "jax", "optax")}
    device = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    command = shlex.join(["python", "-m", "experiments.claims", *sys.argv[1:]])
    return {
        "command": command,
        "Python": platform.python_version(),
        **versions,
        "device": device,
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
