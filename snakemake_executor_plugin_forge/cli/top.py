"""``snakemake-forge top``: what runs, live. Reads files only, so any number of terminals can look on."""

from __future__ import annotations

import argparse
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..record.index import Index, Row, Selection, open_index
from ..record.live import Live, look, newest_line
from ..record.words import wildcards_in_words
from ..units import show_bytes, show_seconds
from .select import add_command
from .show import print_table

_EXAMPLES = """examples:
  snakemake-forge top                      in another terminal, while Snakemake runs; q or Ctrl-C to leave
  snakemake-forge top -d /work/project     the same from anywhere
  snakemake-forge top | cat                what runs now, once

it ends by itself when the run is over
"""
HEADER = ("RULE", "WILDCARDS", "TRY", "ELAPSED", "MEMORY", "CPUS", "NEWEST LINE")
_FULL, _HIGH = 0.9, 0.75


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "top", _EXAMPLES)
    parser.add_argument(
        "--interval", type=_interval, default=1.0, metavar="SECONDS", help="between two looks (default: 1)"
    )
    parser.set_defaults(run=run)


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be between 0.1 and 3600")
    return seconds


@dataclass(frozen=True, slots=True)
class Running:
    """A running attempt at one moment."""

    record: Row
    live: Live
    cores: float | None  # since the last look or, at the first, since its start
    line: str

    def cells(self) -> tuple[str, ...]:
        """What is shown, under :data:`HEADER`."""
        record, used, limits = self.record, self.live.memory_bytes, self.record["limits"]
        limit = f" of {show_bytes(limits['memory_bytes'])}" if limits["memory_bytes"] else ""
        wall = f" of {show_seconds(limits['seconds'])}" if limits["seconds"] else ""
        return (
            record["rule"],
            wildcards_in_words(record["wildcards"]) or "-",
            str(record["attempt"]),
            f"{show_seconds(record['seconds'])}{wall}",
            "-" if used is None else f"{show_bytes(used)}{limit}",
            f"{'-' if self.cores is None else f'{self.cores:.1f}'} of {limits['cpus']}",
            self.line,
        )

    @property
    def share(self) -> float:
        """Of its memory limit."""
        limit = self.record["limits"]["memory_bytes"]
        return (self.live.memory_bytes or 0) / limit if limit else 0.0


class Watch:
    """Looks again and again, and remembers the last look."""

    def __init__(self, index: Index) -> None:
        """With an index that is up to date."""
        self._index = index
        self._last: dict[str, tuple[float, float]] = {}  # directory to moment and CPU seconds

    def look(self) -> list[Running]:
        """All running attempts, longest first."""
        moment, found, seen = time.monotonic(), [], {}
        for record in self._index.unfinished(Selection(running=True)):
            live, directory = look(record), record["directory"]
            cores = None
            if live.cpu_seconds is not None:
                before = self._last.get(directory)
                spent = live.cpu_seconds - (before[1] if before else 0.0)
                cores = spent / max(0.001, moment - before[0] if before else record["seconds"])
                seen[directory] = (moment, live.cpu_seconds)
            found.append(Running(record, live, cores, newest_line(directory)))
        self._last = seen
        return found

    def refresh(self) -> None:
        """Read what is new."""
        self._index.refresh()

    def counts(self) -> dict[str, int]:
        """How the attempts of the newest run have ended so far."""
        runs = self._index.runs()
        if not runs:
            return {}
        ended = self._index.count(Selection(run=runs[-1][0]))
        failed = self._index.count(Selection(run=runs[-1][0], failed=True))
        return {"succeeded": ended - failed, "not succeeded": failed}

    def alive(self) -> bool:
        """Whether the newest run goes on."""
        return self._index.alive


def run(options: argparse.Namespace) -> int:
    """Show it until the run is over or the user leaves; exit code 1 if nothing runs."""
    with open_index(options.directory) as index:
        watch = Watch(index)
        if not watch.alive():
            print("No run of Forge is going on here.", file=sys.stderr)
            return 1
        if not sys.stdout.isatty():
            print_table(HEADER, [running.cells() for running in watch.look()])
            return 0
        return _show_live(watch, options.interval)


def _show_live(watch: Watch, interval: float) -> int:
    from rich.console import Console  # only on a terminal
    from rich.live import Live as Screen

    console = Console()
    with _keys() as keys, Screen(console=console, screen=True, auto_refresh=False) as screen:
        while watch.alive():
            screen.update(_picture(watch.look(), watch.counts(), console.height), refresh=True)
            if _leave(keys, interval):
                return 0
            watch.refresh()
    console.print("The run is over: snakemake-forge jobs --last")
    return 0


def _picture(found: list[Running], counts: dict[str, int], height: int) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    ended = ", ".join(f"{number} {what}" for what, number in counts.items())
    memory = sum(running.live.memory_bytes or 0 for running in found)
    cores = sum(running.cores or 0 for running in found)
    title = Text(f"{len(found)} running, {ended}; {show_bytes(memory)}, {cores:.1f} CPUs", style="bold")
    table = Table(*HEADER, box=None, header_style="bold", pad_edge=False, expand=True)
    for column in table.columns[:-1]:
        column.no_wrap = True
    table.columns[-1].no_wrap, table.columns[-1].overflow, table.columns[-1].ratio = True, "ellipsis", 1
    fit = max(1, height - 5)
    for running in found[:fit]:
        cells = [Text(cell) for cell in running.cells()]
        cells[4].stylize("red" if running.share > _FULL else "yellow" if running.share > _HIGH else "")
        table.add_row(*cells)
    more = f"{len(found) - fit} more   " if len(found) > fit else ""
    return Group(title, Text(""), table, Text(f"{more}q: leave", style="dim"))


@contextmanager
def _keys() -> Iterator[int | None]:
    """Single keys from the terminal, without their echo; None if there is no terminal to ask."""
    fd = sys.stdin.fileno() if sys.stdin is not None else -1
    if fd < 0 or not os.isatty(fd):
        yield None
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _leave(keys: int | None, seconds: float) -> bool:
    """Wait; True if q was pressed."""
    if keys is None:
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([keys], [], [], left)[0]:
            typed = os.read(keys, 64)
            if not typed or typed[:1] in b"qQ\x1b":  # nothing: the terminal is gone
                return True
    return False
