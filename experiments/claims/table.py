"""What a study returns."""

from typing import NamedTuple


class Table(NamedTuple):
    """A row a setting; a cell with one number a seed holds them all.

    Attributes:
      columns: their titles.
      rows: text, numbers, and tuples of numbers.
      note: what else there is to say, below the table.
    """

    columns: tuple[str, ...]
    rows: list[tuple]
    note: str = ""

    def markdown(self) -> str:
        head = [self.columns, [":--", *["--:"] * (len(self.columns) - 1)]]
        return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in [*head, *self.rows])


class Spread(tuple):
    """One number a seed, shown as their mean and range; of seeds without one, None."""


def cell(value: object) -> str:
    if isinstance(value, Spread):
        return spread([number for number in value if number is not None])
    if isinstance(value, tuple):
        return " / ".join(map(cell, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def spread(numbers: list[float]) -> str:
    """Mean, least and most, to four digits."""
    if not numbers:
        return "-"
    mean, least, most = (f"{number:.4g}" for number in (sum(numbers) / len(numbers), min(numbers), max(numbers)))
    return mean if len(numbers) == 1 else f"{mean} ({least} to {most})"
