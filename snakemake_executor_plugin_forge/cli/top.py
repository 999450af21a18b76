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
from ..analysis.host_runs import HostRun, runs_of_host
from ..analysis.live import Live, look, newest_line
from ..record.index import Index, Row, Selection, open_index
from ..spec.printable import printable
from ..spec.progress import Times, estimate
from ..spec.units import show_bytes, show_seconds
from . import host_runs
from .select import add_command, number
from .show import fitting, plain, print_table

_EXAMPLES = """examples:
  snakemake-forge top                      in another terminal, while Snakemake runs; q or Ctrl-C to leave
  snakemake-forge top -d /work/project     a view of a run in another directory
  snakemake-forge top | cat                the running jobs at this moment
  snakemake-forge top --all                all runs of this host side by side: what each uses, and what it may use

the first line is about the whole run: jobs done, failed and pending, and the time that it still takes, estimated by
earlier jobs of the same rules ("> 5 min": at least; "?": not known yet). It ends by itself when the run is over

--all: an ordinary user sees their own runs, root sees all. MEMORY and PROCESSES: of all jobs of a run together, and
what --forge-run-memory and --forge-run-pids allow them. CPUS: in use, of the cores that Snakemake counts (-j).
CPU SHARE: the part that a run gets while all of these want the CPU; --forge-nice changes it
"""
HEADER = ("RULE", "WILDCARDS", "TRY", "ELAPSED", "MEMORY", "CPUS", "NEWEST LINE")
LESS = ("TRY", "CPUS", "ELAPSED", "MEMORY", "WILDCARDS")
_TIMES_SECONDS = 10.0  # between two updates of how long jobs take
_LINE = 20  # columns that the newest line gets at least
_FULL, _HIGH = 0.9, 0.75
_ALL = Selection(running=True)


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
    parser.add_argument("--all", action="store_true", help="the runs of this host side by side, in any directory")
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Running:
    """A running attempt at one moment."""

    record: Row
    live: Live
    cores: float | None  # in use since the last sample or, at first, since its start
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
            f"[Slurm {record['slurm_job']}] {self.line}" if record.get("slurm_job") else self.line,
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

    def look(self, selection: Selection = _ALL) -> list[Running]:
        """List running attempts, the longest first."""
        moment, found, seen = time.monotonic(), [], {}
        for record in self._index.unfinished(selection):
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
    if options.all:
        return _run_all(options.interval)
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


def _run_all(interval: float) -> int:
    """Show all runs of the host until the last one is over or the user leaves; return 1 if none is alive."""
    runs = runs_of_host()
    if not runs:
        print(host_runs.NONE, file=sys.stderr)
        return 1
    if not sys.stdout.isatty():
        print_table(host_runs.HEADER, host_runs.as_rows(runs, {}))
        return 0
    from rich.console import Console  # only on a terminal
    from rich.live import Live as Screen

    console, pace = Console(file=plain(sys.stdout)), Pace()
    with _keys() as keys, Screen(console=console, screen=True, auto_refresh=False) as screen:
        while runs:
            screen.update(picture_of_host(runs, pace.cores(runs), console.height, console.width), refresh=True)
            if _leave(keys, interval):
                return 0
            runs = runs_of_host()
    console.print("No run is active any more.")
    return 0


class Pace:
    """The cores that runs use: their CPU time from sample to sample."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}  # run to moment and CPU seconds

    def cores(self, runs: list[HostRun]) -> dict[str, float]:
        """The cores in use since the last sample, of the runs that were in it."""
        moment = time.monotonic()
        now = {run.name: (moment, run.usage.cpu_seconds) for run in runs if run.usage.cpu_seconds is not None}
        before, self._last = self._last, now
        return {
            name: max(0.0, (seconds - before[name][1]) / max(0.001, moment - before[name][0]))
            for name, (_, seconds) in now.items()
            if name in before
        }


def picture_of_host(runs: list[HostRun], cores: dict[str, float], height: int, width: int) -> Any:
    """The view of all runs as rich shows it, in a terminal of so many lines and columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    used = sum(run.usage.memory_bytes or 0 for run in runs)
    title = Text(f"{len(runs)} runs on this host; {show_bytes(used)}", style="bold")
    fit = max(1, height - 5)
    rows = [[printable(cell) for cell in row] for row in host_runs.as_rows(runs, cores)][:fit]
    shown = fitting(host_runs.HEADER, rows, width, host_runs.LESS, _LINE)
    table = Table(*(host_runs.HEADER[number] for number in shown), box=None, header_style="bold", pad_edge=False)
    for column in table.columns[:-1]:
        column.no_wrap = True
    for run, row in zip(runs, rows, strict=False):
        cells = [Text(cell) for cell in row]
        cells[host_runs.MEMORY].stylize(_colour(host_runs.share_of_memory(run)))
        table.add_row(*(cells[number] for number in shown))
    more = f"{len(runs) - fit} more   " if len(runs) > fit else ""
    return Group(title, Text(""), table, Text(f"{more}q: leave", style="dim"))


def _colour(share: float) -> str:
    return "red" if share > _FULL else "yellow" if share > _HIGH else ""


def _title(found: list[Running], counts: list[str]) -> str:
    memory = sum(running.live.memory_bytes or 0 for running in found)
    cores = sum(running.cores or 0 for running in found)
    return f"{', '.join([f'{len(found)} running', *counts])}; {show_bytes(memory)}, {cores:.1f} CPUs"


def picture(found: list[Running], counts: list[str], height: int, width: int) -> Any:
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
        cells[4].stylize(_colour(running.share))
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
