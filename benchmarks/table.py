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
    """The text with everything between the two marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render(setting, rows, cases)}\n{END}{after}"


def render(setting: dict, rows: list[Row], cases: dict[str, Callable]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    where = f"{setting['processor']}, {setting['cores']} cores, load {setting['load']:.1f}"
    devices = ", ".join(f"{n} {kind}" for kind, n in Counter(setting["devices"]).items())
    parts = [f"`{setting['command']}`, Python {setting['python']}, {versions}; {where}; devices: {devices}."]
    for case, group in groupby(rows, key=lambda row: row.case):
        parts += [f"### {case}", str(cases[case].__doc__), "\n".join([*HEAD, *map(line, group)])]
        if case in plots.PICTURES:
            parts.append(f"![{case}, the median and the quartiles]({case}.svg)")
    return "\n\n".join(parts)
