"""``snakemake-forge top``: a live view of running jobs. It reads files only, so that any number of them can run."""

from __future__ import annotations

import argparse
import math
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

from ..analysis.explain import wildcards_in_words
from ..analysis.forecast import progress_of_newest_run, times_of_rules
from ..analysis.live import Live, look, newest_line
from ..record.index import Index, Row, Selection, open_index
from ..spec.printable import printable
from ..spec.progress import Times, estimate
from ..spec.units import show_bytes, show_seconds
from .select import add_command, number
from .show import fitting, plain, print_table

_EXAMPLES = """examples:
  snakemake-forge top                      in another terminal, while Snakemake runs; q or Ctrl-C to leave
  snakemake-forge top -d /work/project     a view of a run in another directory
  snakemake-forge top | cat                the running jobs at this moment

the first line is about the whole run: jobs done, failed and pending, and the time that it still takes, estimated by
earlier jobs of the same rules ("> 5 min": at least; "?": not known yet). It ends by itself when the run is over
"""
HEADER = ("RULE", "WILDCARDS", "TRY", "ELAPSED", "MEMORY", "CPUS", "NEWEST LINE")
LESS = ("TRY", "CPUS", "ELAPSED", "MEMORY", "WILDCARDS")
_TIMES_SECONDS = 10.0  # between two updates of how long jobs take
_LINE = 20  # columns that the newest line gets at least
_FULL, _HIGH = 0.9, 0.75


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "top", _EXAMPLES)
    parser.add_argument(
        "--interval",
        type=number(float, 0.1, 3600),
        default=1.0,
        metavar="SECONDS",
        help="time between updates (default: 1)",
    )
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Running:
    """A running attempt at one moment."""

    record: Row
    live: Live
    cores: float | None  # in use since the last look or, at the first look, since its start
    line: str

    def cells(self) -> tuple[str, ...]:
        """The cells of its row, under :data:`HEADER`."""
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
        """The part of its memory limit that it uses, from 0 to 1; 0 without a limit."""
        limit = self.record["limits"]["memory_bytes"]
        return (self.live.memory_bytes or 0) / limit if limit else 0.0


class Sampler:
    """Samples the running attempts, and remembers the last sample."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._last: dict[str, tuple[float, float]] = {}  # directory to moment and CPU seconds
        self._times: dict[str, Times] = {}
        self._renew = 0.0

    def look(self) -> list[Running]:
        """List all running attempts, the longest first."""
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

    def counts(self) -> list[str]:
        """Say how far the newest run is."""
        moment = time.monotonic()
        if moment >= self._renew:
            self._times, self._renew = times_of_rules(self._index), moment + _TIMES_SECONDS
        progress = progress_of_newest_run(self._index, self._times)
        if progress is None:
            return []
        failed = [f"{progress.failed} failed"] if progress.failed else []
        counts = [f"{progress.done} of {progress.total} done", *failed, f"{progress.pending} pending"]
        return [*counts, f"ETA {estimate(progress).words()}"]


def run(options: argparse.Namespace) -> int:
    """Show the view until the run is over or the user leaves; return 1 if no run is alive."""
    with open_index(options.directory) as index:
        if not index.alive:
            print("No run of Forge is active here.", file=sys.stderr)
            return 1
        if not sys.stdout.isatty():
            sampler = Sampler(index)
            found = sampler.look()
            print(_title(found, sampler.counts()))
            print_table(HEADER, [running.cells() for running in found])
            return 0
        return _show_live(index, options.interval)


def _show_live(index: Index, interval: float) -> int:
    from rich.console import Console  # only on a terminal
    from rich.live import Live as Screen

    console, sampler = Console(file=plain(sys.stdout)), Sampler(index)
    with _keys() as keys, Screen(console=console, screen=True, auto_refresh=False) as screen:
        while index.alive:
            screen.update(picture(sampler.look(), sampler.counts(), console.height, console.width), refresh=True)
            if _leave(keys, interval):
                return 0
            index.refresh()
    console.print("The run is over: snakemake-forge jobs --last")
    return 0


def _title(found: list[Running], counts: list[str]) -> str:
    memory = sum(running.live.memory_bytes or 0 for running in found)
    cores = sum(running.cores or 0 for running in found)
    return f"{', '.join([f'{len(found)} running', *counts])}; {show_bytes(memory)}, {cores:.1f} CPUs"


def picture(found: list[Running], counts: list[str], height: int, width: int = 1000) -> Any:
    """The view as rich shows it, in a terminal of so many lines and columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = Text(_title(found, counts), style="bold")
    fit = max(1, height - 4 - math.ceil(len(title) / width))
    rows = [[printable(cell) for cell in running.cells()] for running in found[:fit]]
    shown = fitting(HEADER, rows, width, LESS, _LINE)
    table = Table(*(HEADER[number] for number in shown), box=None, header_style="bold", pad_edge=False, expand=True)
    for column in table.columns[:-1]:
        column.no_wrap = True
    table.columns[-1].no_wrap, table.columns[-1].overflow, table.columns[-1].ratio = True, "ellipsis", 1
    for running, row in zip(found, rows, strict=False):
        cells = [Text(cell) for cell in row]
        cells[4].stylize("red" if running.share > _FULL else "yellow" if running.share > _HIGH else "")
        table.add_row(*(cells[number] for number in shown))
    more = f"{len(found) - fit} more   " if len(found) > fit else ""
    return Group(title, Text(""), table, Text(f"{more}q: leave", style="dim"))


@contextmanager
def _keys() -> Iterator[int | None]:
    """Read single keys from the terminal, without their echo; None if there is no terminal."""
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
    """Wait; return True if the user presses q or Escape."""
    if keys is None:
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([keys], [], [], left)[0]:
            typed = os.read(keys, 64)
            if not typed or typed[:1] in b"qQ\x1b":  # an empty read: the terminal is gone
                return True
    return False
