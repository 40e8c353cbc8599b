"""Tables: by rich on a terminal; elsewhere plain text, a row a line, without a header."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that have the same keys."""
    if not rows:
        return
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(re.sub(r"\s+", " ", str(value)) for value in row.values()))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*[escape(key) for key in rows[0]])
    for row in rows:
        table.add_row(*[escape(str(value)) for value in row.values()])
    Console().print(table)
