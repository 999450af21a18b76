"""``snakemake-forge gc``: removes old records and leftovers of dead runs, and reports what and how much."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..record import retention
from ..record.attempt_dir import now
from ..record.identity import user_name
from ..record.index import open_index, remove_index
from ..record.reader import state_directory
from ..record.retention import Action
from ..run import garbage
from ..spec.job import RECORD_SCHEMA
from ..spec.units import parse_bytes, parse_seconds, show_bytes
from .select import add_command, number
from .show import print_json, print_table

_EXAMPLES = """examples:
  snakemake-forge gc --dry-run                        what would be done
  snakemake-forge gc                                  compact runs that ended more than 30 days ago, and remove what
                                                      runs that died more than a day ago have left
  snakemake-forge gc --only scratch --kept-after 1d   remove kept scratch directories
  snakemake-forge gc --only home --kept-after 1s      remove what jobs have written to $HOME and caches
  snakemake-forge gc --compact-after 7d --remove-after 365d --max-size 2GiB
  snakemake-forge gc --reindex                        rebuild the index of the records

a compacted run keeps its verdicts, commands, events and the ends of its streams, in one file; jobs, why, logs, report,
advise and metrics still work on it. gc notes what it has done in .snakemake/forge/gc.jsonl
"""
_LIMITS = (
    ("--compact-after", "TIME", "30d", "compact runs that ended longer ago; none: never"),
    ("--remove-after", "TIME", "none", "remove the records of runs that ended longer ago"),
    ("--max-size", "SIZE", "none", "compact, then remove, the oldest runs until all records together are smaller"),
    ("--leftovers-after", "TIME", "1d", "remove other leftovers of dead runs if unchanged for longer; none: never"),
    ("--kept-after", "TIME", "30d", "remove kept scratch, checkpoints, outputs and homes if unchanged for longer"),
    ("--max-kept", "SIZE", "none", "of each of these, remove the oldest until all are smaller"),
)  # fmt: skip
JOURNAL = "gc.jsonl"


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something to compact or remove."""

    part: str
    action: str
    path: str
    size_bytes: int
    why: str
    do: Callable[[], int]  # returns the freed bytes


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "gc", _EXAMPLES)
    parser.add_argument("-n", "--dry-run", action="store_true", help="change nothing, only report what would be done")
    parser.add_argument("--only", choices=list(PARTS), help="restrict gc to this part")
    for flag, metavar, default, text in _LIMITS:
        parser.add_argument(flag, metavar=metavar, default=default, help=f"{text} (default: {default})")
    parser.add_argument(
        "--keep-runs", type=number(int, 0), default=3, metavar="N", help="never touch the newest N (default: 3)"
    )
    parser.add_argument(
        "--reindex", action="store_true", help="rebuild the index from the records, and do nothing else"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list of what is (or would be) done")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Find garbage, remove it, and report."""
    if options.reindex:
        remove_index(state_directory(options.directory))
        with open_index(options.directory) as index:
            print(f"{sum(1 for _ in index.rows(columns=('rule',)))} attempts are in the index.")
        return 0
    parts = [options.only] if options.only else list(PARTS)
    found = [finding for part in parts for finding in PARTS[part](options)]
    freed, failed = [], 0
    for finding in found:
        size = finding.size_bytes
        if not options.dry_run:
            try:
                size = finding.do()
            except OSError as error:
                print(f"snakemake-forge: {finding.path}: {error.strerror}", file=sys.stderr)
                failed += 1
                size = 0
            else:
                _note(state_directory(options.directory), finding, size)
        freed.append(size)
    if options.json:
        keys = ("part", "action", "path", "why")
        pairs = zip(found, freed, strict=True)
        rows = [{key: getattr(finding, key) for key in keys} | {"bytes": size} for finding, size in pairs]
        print_json(rows)
    else:
        _print(found, freed, dry_run=options.dry_run)
    return 1 if failed else 0


def _print(found: list[Garbage], freed: list[int], *, dry_run: bool) -> None:
    if not found:
        print("Nothing to remove.")
        return
    rows = [
        (finding.part, finding.action, os.path.basename(finding.path), show_bytes(size), finding.why)
        for finding, size in zip(found, freed, strict=True)
    ]
    print_table(("PART", "ACTION", "WHAT", "AT MOST" if dry_run else "FREED", "BECAUSE OF"), rows)
    print(f"\n{'Nothing was changed; it would free at most' if dry_run else 'Freed'} {show_bytes(sum(freed))}.")


def _records(options: argparse.Namespace) -> list[Garbage]:
    """Old records."""
    policy = retention.Policy(
        compact_after_seconds=_optional(options.compact_after, parse_seconds, "--compact-after"),
        remove_after_seconds=_optional(options.remove_after, parse_seconds, "--remove-after"),
        max_bytes=_optional(options.max_size, parse_bytes, "--max-size"),
        keep_runs=options.keep_runs,
    )
    hands = {Action.COMPACT: retention.compact, Action.REMOVE: retention.remove}
    return [
        Garbage(
            "records",
            str(step.action),
            step.run.path,
            step.run.size_bytes,
            step.why,
            partial(hands[step.action], step.run.path),
        )
        for step in retention.decide(retention.measure(state_directory(options.directory)), policy)
    ]


def _optional(text: str, parse: Callable[[str, str], Any], flag: str) -> Any:
    return None if text == "none" else parse(text, flag)


def _leftovers(part: str, options: argparse.Namespace) -> list[Garbage]:
    """Leftovers of dead runs."""
    age = garbage.Age(
        after_seconds=_optional(options.leftovers_after, parse_seconds, "--leftovers-after"),
        wanted_after_seconds=_optional(options.kept_after, parse_seconds, "--kept-after"),
        wanted_max_bytes=_optional(options.max_kept, parse_bytes, "--max-kept"),
    )
    found = garbage.find(state_directory(options.directory), os.path.realpath(options.directory), part)
    return [
        Garbage(part, "remove", item.paths[0], item.size_bytes, why, partial(garbage.remove, item))
        for item, why in garbage.decide(found, age)
    ]


def _note(state: str, finding: Garbage, size_bytes: int) -> None:
    """Note in the journal what was done; a failure is reported, and gc continues."""
    line = {
        "schema": RECORD_SCHEMA,
        "at": now(),
        "host": socket.gethostname(),
        "user": user_name(),
        "part": finding.part,
        "action": finding.action,
        "path": finding.path,
        "bytes": size_bytes,
        "why": finding.why,
    }
    try:
        with open(f"{state}/{JOURNAL}", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        print(f"snakemake-forge: {state}/{JOURNAL} could not be written: {error.strerror}", file=sys.stderr)


# Records last: they lead to everything else.
PARTS: dict[str, Callable[[argparse.Namespace], list[Garbage]]] = {
    **{part: partial(_leftovers, part) for part in garbage.PARTS},
    "records": _records,
}
"""The parts of ``--only``, each with the function that finds its garbage."""
