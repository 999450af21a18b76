"""``snakemake-forge jobs``: a list of attempts, as a table or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..analysis.explain import wildcards_in_words
from ..record.index import Index, Row, Selection
from ..spec.errors import NothingFoundError, UsageError
from ..spec.printable import json_text
from ..spec.units import show_bytes, show_seconds
from .select import add_command, add_rule, add_run, check_job, open_records, parse_wildcards, pick_run
from .show import print_json, print_table, show_moment

_EXAMPLES = """examples:
  snakemake-forge jobs                         every attempt, oldest first
  snakemake-forge jobs --failed                only attempts that did not succeed
  snakemake-forge jobs --running               only running attempts: memory and CPUs against their limits
  snakemake-forge jobs --run -1                only attempts of the newest run
  snakemake-forge jobs --rule call sample=A    only attempts of one rule and wildcard value
  snakemake-forge jobs --run -1 --timings      how long each phase of each attempt took, and the medians
  snakemake-forge jobs --json | jq '.[].usage.memory_peak_bytes'

TRY is Snakemake's attempt; 1+2 is the second time that Forge ran it again with more memory (--forge-oom-retries)
"""
_LESS = ("CPU", "START", "TRY", "GPU", "MEMORY", "TIME", "WILDCARDS")
_COLUMNS = (
    *("rule", "wildcards", "attempt", "retry", "outcome", "reason", "notes", "started", "seconds", "gpus"),
    *("memory_peak_bytes", "memory_limit_bytes", "cpu_seconds"),
)


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "jobs", _EXAMPLES)
    add_rule(parser, text="only attempts of this rule")
    parser.add_argument("wildcards", nargs="*", metavar="WILDCARD=VALUE", help="only attempts with these values")
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--failed", action="store_true", help="only attempts that did not succeed")
    state.add_argument("--running", action="store_true", help="only running attempts, with their present usage")
    which = parser.add_mutually_exclusive_group()
    add_run(which, "all")
    which.add_argument("--last", dest="name", action="store_const", const="-1", help="like --run -1")
    parser.add_argument("--timings", action="store_true", help="the time of each phase in ms (JSON: seconds)")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the attempts; return 1 if none matches."""
    with open_records(options.directory) as index:
        if options.wildcards and options.wildcards[0] in index.rules():
            raise UsageError(f"A rule is named with --rule: snakemake-forge jobs --rule {' '.join(options.wildcards)}")
        wildcards = parse_wildcards(options.wildcards)
        check_job(index, options.rule, wildcards)
        selection = Selection(
            rule=options.rule,
            wildcards=wildcards,
            failed=options.failed,
            running=options.running,
            run=pick_run(index, options.name) if options.name else None,
        )
        if options.timings:
            found = _print_timings(index, selection, options.json)
        elif options.running:
            found = _print_running(index, selection, options.json)
        else:
            found = _print_json(index, selection) if options.json else _print_table(index, selection)
    if not found and not options.json:
        raise NothingFoundError("No attempts match.")
    return 0 if found else 1


def _print_json(index: Index, selection: Selection) -> bool:
    """Print one record per line, without having all of them in memory."""
    before = "["
    for text in index.texts(selection):
        sys.stdout.write(f"{before}\n{json_text(text)}")
        before = ","
    print("[]" if before == "[" else "\n]")
    return before == ","


def _print_running(index: Index, selection: Selection, as_json: bool) -> bool:
    """Print the running attempts, with their present usage."""
    from .top import HEADER, LESS, Sampler  # a tenth of the time that the other kinds of lists take to start

    found = Sampler(index).look(selection)
    if as_json:
        print_json([running.record | {"live": asdict(running.live), "newest_line": running.line} for running in found])
    elif found:
        print_table(HEADER, [running.cells() for running in found], less=LESS)
    return bool(found)


def _print_timings(index: Index, selection: Selection, as_json: bool) -> bool:
    """Print how long each phase of the attempts took, and the medians."""
    from ..analysis import timings  # other lists do without it

    found = list(index.rows(selection, ("run", "name", "rule", "wildcards", "attempt", "retry", "outcome")))
    times = list(timings.read(found, f"{index.state}/runs"))
    if as_json:
        print_json([row | {"timings": own} for row, own in zip(found, times, strict=True)])
    elif found:
        names = (*timings.PHASES, timings.CPU)
        header = ("RULE", "WILDCARDS", "TRY", "OUTCOME", *(name.upper().replace("_", " ") for name in names))
        rows = [(*_job(row), row["outcome"], *_milliseconds(own, names)) for row, own in zip(found, times, strict=True)]
        rows.append(("median", "", "", "", *_milliseconds(timings.medians(times), names)))
        print_table(header, rows, less=("OUTCOME", "TRY", "WAIT", "RECORD", "REPORT", "PLAN", "WILDCARDS"))
    return bool(found)


def _milliseconds(times: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    return ["-" if (seconds := times[name]) is None else f"{1000 * seconds:.1f}" for name in names]


def _job(row: Row) -> tuple[str, str, str]:
    """Return the cells that say which attempt it is."""
    tries = f"{row['attempt']}+{row['retry']}" if row["retry"] else str(row["attempt"])
    return row["rule"], wildcards_in_words(row["wildcards"]) or "-", tries


def _print_table(index: Index, selection: Selection) -> bool:
    found = list(index.rows(selection, _COLUMNS))
    if not found:
        return False
    with_gpus = any(row["gpus"] for row in found)
    header = (
        "RULE",
        "WILDCARDS",
        "TRY",
        "OUTCOME",
        "TIME",
        "MEMORY",
        "CPU",
        *(["GPU"] if with_gpus else []),
        "START",
        "REASON",
    )
    print_table(header, [_cells(row, with_gpus) for row in found], outcome=3, less=_LESS)
    return True


def _cells(row: Row, with_gpus: bool) -> tuple[str, ...]:
    used, limit, cpu = row["memory_peak_bytes"], row["memory_limit_bytes"], row["cpu_seconds"]
    memory = "-" if used is None else show_bytes(used) + (f" of {show_bytes(limit)}" if limit else "")
    reason = "" if row["outcome"] == "succeeded" else row["reason"]
    return (
        *_job(row),
        row["outcome"],
        show_seconds(row["seconds"]),
        memory,
        "-" if cpu is None else show_seconds(cpu),
        *([",".join(map(str, row["gpus"])) or "-"] if with_gpus else []),
        show_moment(row["started"]),
        reason or "; ".join(row["notes"]),
    )
