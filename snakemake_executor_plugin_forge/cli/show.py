"""Printing: colours and tables on a terminal, plain columns in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

COLOURS = {"succeeded": "green", "running": "cyan", "cancelled": "yellow"}
_ELSE = "red"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], outcome: int | None = None) -> None:
    """Print rows of text.

    Args:
        outcome: the column that says how it ended, which colours the row.

    """
    if sys.stdout.isatty():
        _print_rich(header, rows, outcome)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    line = "  ".join([*(f"%-{width}s" for width in widths[:-1]), "%s"])
    sys.stdout.write("".join([f"{(line % tuple(row)).rstrip()}\n" for row in (header, *rows)]))


def _print_rich(header: Sequence[str], rows: Sequence[Sequence[str]], outcome: int | None) -> None:
    # Imported here: a pipe, the common case in scripts, does not need it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        style = None if outcome is None else COLOURS.get(row[outcome], _ELSE)
        table.add_row(*map(Text, row), style=style)
    Console().print(table)


def print_json(value: object) -> None:
    """Print an answer for programs; bytes of file names that are no text are escaped."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, indent=1)
    print(text)


def print_fields(fields: Iterable[tuple[str, str]], style: str | None = None) -> None:
    """Print lines that begin with a name; on a terminal the names are dim, and the first line has ``style``."""
    if not sys.stdout.isatty():
        for name, text in fields:
            print(f"{name:<9} {text}")
        return
    from rich.console import Console  # as above
    from rich.text import Text

    console = Console(soft_wrap=True)
    for number, (name, text) in enumerate(fields):
        colour = style if number == 0 and style else ""
        console.print(Text.assemble((f"{name:<9} ", "dim"), (text, colour)))
