"""Says what got worse from one run to another: python -m benchmarks.compare OLD NEW [--tolerance 0.1]."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """Ends with 1 if a row is worse by more than the tolerance, and by more than both runs' quartiles explain."""

    old: Annotated[Path, tyro.conf.Positional]  # JSON file of a run
    new: Annotated[Path, tyro.conf.Positional]  # of a later one
    tolerance: float = 0.1  # relative


def main(options: Options) -> int:
    old, new = (rows(json.loads(path.read_text())) for path in (options.old, options.new))
    both = old.keys() & new.keys()
    found = [line for key in old if key in both and (line := worse(old[key], new[key], options.tolerance))]
    print(
        "\n".join(
            [*found, f"{len(found)} of {len(both)} rows in both are worse; {len(old.keys() ^ new.keys())} not in both."]
        )
    )
    return bool(found)


def rows(results: dict) -> dict[tuple[str, str, str], dict]:
    return {(row["case"], row["problem"], row["contender"]): row for row in results["rows"]}


def worse(old: dict, new: dict, tolerance: float) -> str | None:
    """What is worse, if anything."""
    name = " | ".join(old[key] for key in ("case", "problem", "contender"))
    if old["ratio"] is None:  # it could not get worse
        return None
    if new["ratio"] is None:
        return f"{name}: refused; it was {old['ratio']['median']:.3g}"
    before, after = old["ratio"], new["ratio"]
    if old.get("more"):
        beyond, change = after["high"] < before["low"], 1 - after["median"] / before["median"]
    else:
        # A number that was 0 may not become another.
        change = after["median"] / before["median"] - 1 if before["median"] else float(after["median"] > 0)
        beyond = after["low"] > before["high"]
    if beyond and change > tolerance:
        return f"{name}: {before['median']:.3g} became {after['median']:.3g}, {100 * change:.0f} % worse"
    return None


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
