"""What a study returns."""

from typing import NamedTuple


class Table(NamedTuple):
    """A row a setting; a cell with one number a seed holds them all.

    Attributes:
      columns: their titles.
      rows: text, numbers, and tuples of numbers.
    """

    columns: tuple[str, ...]
    rows: list[tuple]

    def markdown(self) -> str:
        head = [self.columns, [":--", *["--:"] * (len(self.columns) - 1)]]
        return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in [*head, *self.rows])


def cell(value: object) -> str:
    if isinstance(value, tuple):
        return " / ".join(map(cell, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
