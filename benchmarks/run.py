"""Runs the benchmarks: python -m benchmarks.run [--only NAME ...] [--out FILE] [--write]."""

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

from benchmarks import against, cases, models, table
from benchmarks.cases import Plan, Row

CASES = {**against.CASES, **cases.CASES, **models.CASES}
Name = tyro.extras.literal_type_from_choices(CASES)
README = Path(__file__).parent / "README.md"


@dataclass(frozen=True)
class Options:
    """Measures jaxdeq in ratios within one run: times in bare evaluations of the same map, and the like."""

    only: tuple[Name, ...] = ()  # cases to run, such as `--only step stiff`; all if none is named
    out: Path | None = None  # JSON file for the results
    write: bool = False  # put the tables into benchmarks/README.md
    repetitions: int = 15  # rounds in which every contender has its turn
    tiny: bool = False  # sizes that only show that everything runs


def main(options: Options) -> dict:
    plan, rows = Plan(options.repetitions, options.tiny), []
    for name in options.only or CASES:
        print(f"\n{name}: {CASES[name].__doc__}\n" + "\n".join(table.HEAD), flush=True)
        for row in CASES[name](plan):
            print(table.line(row), flush=True)
            rows.append(row)
    results = {"setting": setting(options), "rows": [as_dict(row) for row in rows]}
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.write:
        README.write_text(table.insert(README.read_text(), results["setting"], rows))
    return results


def setting(options: Options) -> dict:
    """Where and with what it ran."""
    names = ("jaxdeq", "jax", "jaxlib", "numpy", "banax", "jaxopt", "lineax", "optimistix")
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {
        "command": f"python -m benchmarks.run --repetitions {options.repetitions}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names if name in installed},
        "processor": processor(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "load": os.getloadavg()[0],
    }


def processor() -> str:
    """Its name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def as_dict(row: Row) -> dict:
    return {**row._asdict(), "ratio": row.ratio and row.ratio._asdict()}


if __name__ == "__main__":
    main(tyro.cli(Options, args=sys.argv[1:]))
