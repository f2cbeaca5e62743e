"""Results as a table in Markdown."""

from collections import Counter
from collections.abc import Callable
from itertools import groupby

from benchmarks import plots
from benchmarks.cases import Row

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
HEAD = (
    "| problem | contender | median | quartiles | of shortest times | target | steps | residual | gradient error |",
    "| :-- | :-- | --: | :-: | --: | --: | --: | --: | --: |",
)


def line(row: Row) -> str:
    ratio = row.ratio
    cells = [
        row.problem,
        row.contender,
        f"{ratio.median:.2f}" if ratio else "refused",
        f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio else "",
        f"{ratio.best:.2f}" if ratio else "",
        "" if row.target is None else f"{row.target:.2f}",
        "" if row.steps is None else f"{row.steps:.0f}",
        "" if row.residual is None else f"{row.residual:.1e}",
        "" if row.gradient_error is None else f"{row.gradient_error:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def insert(text: str, setting: dict, rows: list[Row], cases: dict[str, Callable]) -> str:
    """The text with the sections of these rows' cases, between the two marks, made anew; those of others stay."""
    before, _, rest = text.partition(BEGIN)
    inside, _, after = rest.partition(END)
    sections = {part.partition("\n")[0]: part.strip() for part in inside.split("### ")[1:]}
    for case, group in groupby(rows, key=lambda row: row.case):
        sections[case] = section(case, str(cases[case].__doc__), setting, list(group))
    parts = [f"### {sections[case]}" for case in cases if case in sections]
    return "\n\n".join([f"{before}{BEGIN}", *parts, f"{END}{after}"])


def section(case: str, meaning: str, setting: dict, rows: list[Row]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    where = f"{setting['processor']}, {setting['cores']} cores, load {setting['load']:.1f}"
    devices = ", ".join(f"{n} {kind}" for kind, n in Counter(setting["devices"]).items())
    parts = [
        case,
        meaning,
        f"`{setting['command']}`, Python {setting['python']}, {versions}; {where}; devices: {devices}.",
        "\n".join([*HEAD, *map(line, rows)]),
    ]
    if case in plots.PICTURES:
        parts.append(f"![{case}, the median and the quartiles]({case}.svg)")
    return "\n\n".join(parts)
