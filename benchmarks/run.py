"""Runs the benchmarks: python -m benchmarks.run [--only NAME ...] [--sizes SIZES] [--out FILE] [--write]."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import tyro

from benchmarks import adjoints, against, batches, cases, devices, layers, loop, memory, peers, plots, steps, table
from benchmarks.cases import Plan, Row

CASES = {
    name: case
    for module in (against, cases, adjoints, batches, devices, steps, loop, layers, memory)
    for name, case in module.CASES.items()
}
Name = tyro.extras.literal_type_from_choices(CASES)
README = Path(__file__).parent / "README.md"


@dataclass(frozen=True)
class Options:
    """Measures jaxdeq in ratios within one run: times in bare evaluations of the same map, and the like."""

    only: tuple[Name, ...] = ()  # cases to run, such as `--only step gradient`; all if none is named
    out: Path | None = None  # JSON file for the results
    write: bool = False  # put tables and pictures into benchmarks/README.md, in place of those of the same cases
    repetitions: int = 15  # rounds in which every contender has its turn
    sizes: Literal["laptop", "gpu", "tiny"] | None = None  # as the device is; tiny only shows that everything runs


def main(options: Options) -> dict:
    sizes = options.sizes or ("gpu" if jax.default_backend() == "gpu" else "laptop")
    plan, rows, where = Plan(options.repetitions, sizes), [], setting(options)
    for name in options.only or CASES:
        print(f"\n{name}: {CASES[name].__doc__}\n" + "\n".join(table.HEAD), flush=True)
        for row in CASES[name](plan):
            print(table.line(row), flush=True)
            rows.append(row)
    results = {"setting": where, "rows": [as_dict(row) for row in rows]}
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.write:
        README.write_text(table.insert(README.read_text(), where, rows, CASES))
        plots.draw(rows, README.parent)
    return results


def setting(options: Options) -> dict:
    """Where and with what it ran."""
    names = ("jaxdeq", "jax", "jaxlib", "flax", "optax", "numpy", "banax", "jaxopt", "lineax", "optimistix")
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {
        "command": command(options),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names if name in installed} | torch_versions(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "load": os.getloadavg()[0],
    }


def command(options: Options) -> str:
    words = [f"--repetitions {options.repetitions}"]
    words += [f"--only {' '.join(options.only)}"] if options.only else []
    words += [f"--sizes {options.sizes}"] if options.sizes else []
    return " ".join(["python -m benchmarks.run", *words])


def torch_versions() -> dict[str, str]:
    """Of the environment that `peers.torch_python` names."""
    python, names = peers.torch_python(), ("torch", "torchdeq")
    if not python:
        return {}
    code = f"from importlib.metadata import version; print(*map(version, {names}))"
    found = subprocess.run([python, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    return dict(zip(names, found, strict=True))


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
