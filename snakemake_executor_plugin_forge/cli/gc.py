"""``snakemake-forge gc``: gives up what is old, and says what and how much. Never anything that is alive."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..leftovers import Age, Leftover, dead_runs, find_cgroups, find_checkpoints, find_scratch, find_staging
from ..leftovers import decide as decide_leftovers
from ..model import RECORD_SCHEMA
from ..record.identity import user_name
from ..record.index import open_index, remove_index
from ..record.jobdir import now
from ..record.reader import state_directory
from ..record.retention import Action, Policy, compact, decide, measure, remove
from ..units import parse_bytes, parse_seconds, show_bytes
from .select import add_command
from .show import print_json, print_table

_EXAMPLES = """examples:
  snakemake-forge gc --dry-run                        what would be done
  snakemake-forge gc                                  compact runs that ended more than 30 days ago, and remove what
                                                      runs that died more than a day ago have left
  snakemake-forge gc --only scratch --kept-after 1d   give up kept scratch directories
  snakemake-forge gc --compact-after 7d --remove-after 365d --max-size 2GiB
  snakemake-forge gc --reindex                        make the index of the records anew

a compacted run keeps its verdicts, commands, events and the ends of its streams, in one file; jobs, why, logs, report,
advise and metrics go on knowing it. What was done is noted in .snakemake/forge/gc.jsonl
"""
JOURNAL = "gc.jsonl"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that can be given up."""

    part: str
    action: str
    path: str
    size_bytes: int
    why: str
    do: Callable[[], int]  # returns how many bytes that freed


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "gc", _EXAMPLES)
    parser.add_argument("-n", "--dry-run", action="store_true", help="change nothing, only say what would be done")
    parser.add_argument("--only", choices=list(PARTS), help="only this part")
    parser.add_argument(
        "--compact-after", default="30d", metavar="TIME", help="age since the end of a run (default: 30d), or none"
    )
    parser.add_argument(
        "--remove-after", default="none", metavar="TIME", help="remove older runs altogether (default: none)"
    )
    parser.add_argument(
        "--max-size",
        default="none",
        metavar="SIZE",
        help="compact, then remove, the oldest runs until all records together are smaller (default: none)",
    )
    parser.add_argument(
        "--keep-runs", type=_count, default=3, metavar="N", help="never touch the newest N (default: 3)"
    )
    parser.add_argument(
        "--leftovers-after",
        default="1d",
        metavar="TIME",
        help="remove staging, scratch and cgroups of dead runs, unchanged for so long (default: 1d), or none",
    )
    parser.add_argument(
        "--kept-after",
        default="30d",
        metavar="TIME",
        help="the same for scratch that --forge-keep-scratch has kept, checkpoints of jobs, and outputs that wait for "
        "a run that adopts them (default: 30d), or none",
    )
    parser.add_argument(
        "--max-kept", default="none", metavar="SIZE", help="of each of these, remove the oldest until all are smaller"
    )
    parser.add_argument("--reindex", action="store_true", help="make the index anew from the records, and nothing else")
    parser.add_argument("--json", action="store_true", help="a JSON list of what is (or would be) done")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def run(options: argparse.Namespace) -> int:
    """Find, do, say."""
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


def _print(found: list[Finding], freed: list[int], *, dry_run: bool) -> None:
    if not found:
        print("Nothing to give up.")
        return
    rows = [
        (finding.part, finding.action, os.path.basename(finding.path), show_bytes(size), finding.why)
        for finding, size in zip(found, freed, strict=True)
    ]
    print_table(("PART", "ACTION", "WHAT", "AT MOST" if dry_run else "FREED", "BECAUSE OF"), rows)
    print(f"\n{'Nothing was changed; it would free at most' if dry_run else 'Freed'} {show_bytes(sum(freed))}.")


def _records(options: argparse.Namespace) -> list[Finding]:
    """Old runs."""
    policy = Policy(
        compact_after_seconds=_optional(options.compact_after, parse_seconds, "--compact-after"),
        remove_after_seconds=_optional(options.remove_after, parse_seconds, "--remove-after"),
        max_bytes=_optional(options.max_size, parse_bytes, "--max-size"),
        keep_runs=options.keep_runs,
    )
    hands = {Action.COMPACT: compact, Action.REMOVE: remove}
    return [
        Finding(
            "records",
            str(step.action),
            step.run.path,
            step.run.size_bytes,
            step.why,
            partial(hands[step.action], step.run.path),
        )
        for step in decide(measure(state_directory(options.directory)), policy)
    ]


def _optional(text: str, parse: Callable[[str, str], Any], flag: str) -> Any:
    return None if text == "none" else parse(text, flag)


def _leftovers(options: argparse.Namespace, found: Iterable[Leftover]) -> list[Finding]:
    age = Age(
        after_seconds=_optional(options.leftovers_after, parse_seconds, "--leftovers-after"),
        wanted_after_seconds=_optional(options.kept_after, parse_seconds, "--kept-after"),
        wanted_max_bytes=_optional(options.max_kept, parse_bytes, "--max-kept"),
    )
    return [
        Finding(item.part, "remove", item.path, item.size_bytes, why, partial(_removed, item))
        for item, why in decide_leftovers(list(found), age)
    ]


def _removed(item: Leftover) -> int:
    item.remove()
    return item.size_bytes


def _scratch(options: argparse.Namespace) -> list[Finding]:
    workdir = os.path.realpath(options.directory)
    return _leftovers(options, find_scratch(dead_runs(state_directory(options.directory)), workdir))


def _staging(options: argparse.Namespace) -> list[Finding]:
    workdir = os.path.realpath(options.directory)
    return _leftovers(options, find_staging(dead_runs(state_directory(options.directory)), workdir))


def _cgroups(options: argparse.Namespace) -> list[Finding]:
    return _leftovers(options, find_cgroups(dead_runs(state_directory(options.directory))))


def _checkpoints(options: argparse.Namespace) -> list[Finding]:
    return _leftovers(options, find_checkpoints(state_directory(options.directory)))


def _note(state: str, finding: Finding, size_bytes: int) -> None:
    """Record what was done. That it cannot be written is no reason to stop."""
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
PARTS: dict[str, Callable[[argparse.Namespace], list[Finding]]] = {
    "staging": _staging,
    "scratch": _scratch,
    "cgroups": _cgroups,
    "checkpoints": _checkpoints,
    "records": _records,
}
"""What is looked at: each part finds its own."""
