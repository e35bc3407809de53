"""Printing of tables."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from vigil_data.errors import one_line

_OF = re.compile(r"[\d,]+ of [\d,]+")


def print_table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table with numbers aligned right; markup is not interpreted, as ids and reasons are untrusted text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    lines = [list(row) for row in rows]
    for place, title in enumerate(header):
        numeric = place > 0 and all(isinstance(line[place], int) or _OF.fullmatch(str(line[place])) for line in lines)
        table.add_column(Text(title), justify="right" if numeric else "left")
    for line in lines:
        table.add_row(*(Text(f"{value:,}" if isinstance(value, int) else one_line(str(value))) for value in line))
    console = Console() if Console().is_terminal else Console(width=160)  # piped tables are not cut to 80 columns
    console.print()
    console.print(table)
