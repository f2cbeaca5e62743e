"""Trains a model as a config says, or goes on where it was left.

python -m experiments.main CONFIG [--dotted.option value ...]
python -m experiments.main CONFIG --help
"""

import dataclasses
import inspect
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments import configs
from jaxdeq import training


def main(args: Sequence[str]) -> int:
    """Returns the exit status."""
    config = read(args)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax talks
    config.hosts.connect()
    try:
        results = training.train(config)
    except (training.CheckpointError, training.Diverged, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for name in ("last", "best"):
        if name in results:
            told = (f"{what} {v if isinstance(v, int) else format(v, '.6g')}" for what, v in results[name].items())
            print(f"{name}:", ", ".join(told))
    return 0


def read(args: Sequence[str]) -> training.Config:
    """The config that the command line asks for; a wrong option is refused with those that are valid."""
    made = {name: getattr(configs, name) for name in configs.__all__}
    choices = {
        name: (inspect.getdoc(make), dataclasses.replace(make(), work=Path("work") / name))
        for name, make in made.items()
    }
    try:
        return tyro.extras.overridable_config_cli(choices, args=args, prog="experiments.main")
    except SystemExit as stop:
        if stop.code and args and args[0] in choices:
            valid = list(options(choices[args[0]][1]))
            if any(arg.startswith("--") and plain(arg) not in valid for arg in args):
                print(f"Options of {args[0]}:", *valid, file=sys.stderr)
        raise


def plain(arg: str) -> str:
    """An option as `options` has it: without its value, and flags without their `no-`."""
    *path, last = arg.split("=")[0].replace("_", "-").removeprefix("--").split(".")
    return "--" + ".".join([*path, last.removeprefix("no-")])


def options(settings: Any, prefix: str = "--") -> Iterator[str]:
    """The names of all options, dotted."""
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name.replace("_", "-")
        nested = dataclasses.is_dataclass(value)
        yield from options(value, f"{name}.") if nested else [name]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
