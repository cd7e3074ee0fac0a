"""Tables for the terminal: aligned, and never cut, however narrow the terminal is."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] = ()) -> None:
    """Prints the rows below the columns' names, and ``total`` in bold; numbers stand to the right."""
    rows = list(rows)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        cells = [row[i] for row in rows if row[i]]
        number = bool(cells) and all(cell.replace(",", "").replace(".", "").isdigit() for cell in cells)
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if total:
        table.add_row(*total, style="bold")
    wide = Console(width=1000)
    Console(width=Measurement.get(wide, wide.options, table).maximum).print(table)
