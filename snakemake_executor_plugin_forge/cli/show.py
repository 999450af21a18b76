"""Functions that print: colours and tables on a terminal, plain columns in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TextIO

from ..spec.printable import json_text, printable


class PrintableStream:
    """A stream of text that shows control characters, and bytes that are no text, as escapes.

    Whatever a command prints, names that jobs have made give no orders to a terminal.
    """

    def __init__(self, plain: TextIO) -> None:
        """Take the stream that gets the text."""
        self.plain = plain

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def write(self, text: str) -> int:
        """Write."""
        return self.plain.write(printable(text, keep="\n\t"))


def plain(stream: Any) -> Any:
    """Return a stream for text that is printable but for colours."""
    return stream.plain if isinstance(stream, PrintableStream) else stream


COLOURS = {"succeeded": "green", "running": "cyan", "cancelled": "yellow"}
_ELSE = "red"
_GAP = 2  # blanks between columns
_LAST = 32  # of the last column, which has sentences


def fitting(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int, less: Sequence[str], last: int = _LAST
) -> list[int]:
    """Return the numbers of the columns that a terminal has room for. The last column has sentences.

    Args:
        less: the columns that go first, the least important one first.
        last: the width of the last column that suffices.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    widths[-1] = min(widths[-1], last)
    shown = list(range(len(header)))
    for name in less:
        if sum(widths[number] + _GAP for number in shown) - _GAP <= width:
            break
        shown = [number for number in shown if header[number] != name]
    return shown


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], outcome: int | None = None, less: Sequence[str] = ()
) -> None:
    """Print rows of text.

    Args:
        outcome: the number of the column with the outcome, which colours the row.
        less: the columns that a narrow terminal does not show, the least important one first.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(header, rows, outcome, less)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    line = "  ".join([*(f"%-{width}s" for width in widths[:-1]), "%s"])
    sys.stdout.write("".join([f"{(line % tuple(row)).rstrip()}\n" for row in (header, *rows)]))


def _print_rich(header: Sequence[str], rows: Sequence[Sequence[str]], outcome: int | None, less: Sequence[str]) -> None:
    # Imported here: scripts, which read from a pipe, do not need it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=plain(sys.stdout))
    shown = fitting(header, rows, console.width, less)
    table = Table(*(header[number] for number in shown), box=None, header_style="bold", pad_edge=False)
    for column in table.columns[:-1]:
        column.no_wrap = True
    for row in rows:
        style = None if outcome is None else COLOURS.get(row[outcome], _ELSE)
        table.add_row(*(Text(row[number]) for number in shown), style=style)
    console.print(table)
    if missing := [name for number, name in enumerate(header) if number not in shown]:
        console.print(Text(f"A wider terminal also shows {', '.join(missing)}.", style="dim"))


def show_moment(text: str) -> str:
    """Show a time of a record in the time zone of the user, to the second; "-" if it is none."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError):
        return "-"


def print_json(value: object) -> None:
    """Print an answer for programs, with escapes for what is not printable."""
    print(json_text(json.dumps(value, indent=1, ensure_ascii=False)))


def print_fields(fields: Iterable[tuple[str, str]], style: str) -> None:
    """Print lines that begin with a name; on a terminal the names are dim, and the first line has ``style``."""
    if not sys.stdout.isatty():
        for name, text in fields:
            print(f"{name:<9} {printable(text)}")
        return
    from rich.console import Console  # as above
    from rich.text import Text

    console = Console(file=plain(sys.stdout), soft_wrap=True)
    for number, (name, text) in enumerate(fields):
        colour = "" if number else style
        console.print(Text.assemble((f"{name:<9} ", "dim"), (printable(text), colour)))
