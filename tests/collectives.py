"""What devices send each other, read from a compiled program."""

import re
from collections import Counter

COLLECTIVE = r"= (\([^)]*\)|\S+) ((?:all-|reduce-scatter|collective-)[a-z-]*?)(?:-start)?\("


def collectives(text: str) -> Counter:
    """Each result of a collective in a program's text, by kind and shape."""
    found: Counter = Counter()
    for results, kind in re.findall(COLLECTIVE, re.sub(r"\{[^}]*\}|/\*.*?\*/", "", text)):
        for shape in re.findall(r"\[([\d,]*)\]", results):
            found[kind, tuple(int(n) for n in shape.split(",") if n)] += 1
    return found
