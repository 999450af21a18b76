"""``snakemake-forge runs``: a list of runs, as a table or as JSON."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ..record.attempt_dir import now
from ..record.index import Row
from ..record.reader import run_outcome
from ..spec.errors import NothingFoundError
from ..spec.units import show_seconds
from .select import add_command, open_records
from .show import print_json, print_table, show_moment

_EXAMPLES = """examples:
  snakemake-forge runs                     every run, oldest first
  snakemake-forge runs --json | jq -r '.[-1].run'
  snakemake-forge jobs --run -1            the attempts of the newest run

succeeded: the last attempt of each job succeeded. interrupted: Snakemake was killed; snakemake-forge resume continues
"""
_LESS = ("TIME", "RUN", "JOBS")


_LONGEST = 100  # characters of a command; --json has all of it


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "runs", _EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the runs."""
    with open_records(options.directory) as index:
        outcomes = index.last_outcomes()
        found = [_describe(name, record, outcomes.get(name, ())) for name, record in index.runs()]
    if options.json:
        print_json(found)
    elif found:
        header = ("RUN", "START", "TIME", "OUTCOME", "JOBS", "COMMAND")
        print_table(header, [_cells(item) for item in found], outcome=3, less=_LESS)
    else:
        raise NothingFoundError("No runs are on record.")
    return 0


def _describe(name: str, record: Row, outcomes: Sequence[str]) -> dict[str, object]:
    return {
        "run": name,
        "started": record.get("started"),
        "ended": record.get("ended"),
        "outcome": run_outcome(record, outcomes),
        "jobs": dict(sorted(Counter(outcomes).items())),
        "command": record.get("command") or [],
    }


def _cells(item: dict[str, Any]) -> tuple[str, ...]:
    jobs: dict[str, int] = item["jobs"]
    command = shlex.join(map(str, item["command"]))
    program, blank, more = command.partition(" ")
    more = more if len(more) <= _LONGEST else f"{more[:_LONGEST]}…"
    return (
        item["run"],
        show_moment(str(item["started"])),
        _duration(item["started"], item["ended"] or (None if item["outcome"] == "interrupted" else now())),
        item["outcome"],
        ", ".join(f"{count} {outcome}" for outcome, count in jobs.items()) or "-",
        f"{program.rpartition('/')[2]}{blank}{more}",
    )


def _duration(started: object, ended: object) -> str:
    try:
        return show_seconds((datetime.fromisoformat(str(ended)) - datetime.fromisoformat(str(started))).total_seconds())
    except (ValueError, TypeError):
        return "-"
