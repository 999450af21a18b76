"""``snakemake-forge jobs``: the attempts, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..record.reader import RUNNING, Attempt, read_attempts
from ..units import show_bytes, show_seconds
from .select import add_command, matching, parse_wildcards

_EXAMPLES = """examples:
  snakemake-forge jobs                         every attempt, oldest first
  snakemake-forge jobs --failed                only those that went wrong
  snakemake-forge jobs --rule call sample=A    those of one rule and wildcard value
  snakemake-forge jobs --json | jq '.[].usage.memory_peak_bytes'
"""
_COLOURS = {"succeeded": "green", RUNNING: "cyan", "cancelled": "yellow"}


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "jobs", "list attempts: rule, wildcards, outcome, time, memory", _EXAMPLES)
    parser.add_argument("--rule", metavar="RULE", help="only attempts of this rule")
    parser.add_argument("wildcards", nargs="*", metavar="WILDCARD=VALUE", help="with --rule: only these values")
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--failed", action="store_true", help="only attempts that did not succeed")
    state.add_argument("--running", action="store_true", help="only attempts that still run")
    parser.add_argument("--json", action="store_true", help="a JSON list (docs/reference/record.md has the fields)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print them; exit code 1 if there are none."""
    attempts = read_attempts(options.directory)
    if options.rule is not None:
        attempts = matching(attempts, options.rule, parse_wildcards(options.wildcards))
    elif options.wildcards:
        attempts = [a for a in attempts if parse_wildcards(options.wildcards).items() <= a.wildcards.items()]
    if options.failed:
        attempts = [a for a in attempts if a.outcome not in ("succeeded", RUNNING)]
    if options.running:
        attempts = [a for a in attempts if a.outcome == RUNNING]
    if options.json:
        json.dump([a.record for a in attempts], sys.stdout, indent=1, ensure_ascii=False)
        print()
    elif attempts:
        _print_table(attempts)
    else:
        print("No attempts match.", file=sys.stderr)
    return 0 if attempts else 1


def _print_table(attempts: list[Attempt]) -> None:
    with_gpus = any(a.record["limits"].get("gpus") for a in attempts)
    header = ("RULE", "WILDCARDS", "TRY", "OUTCOME", "TIME", "MEMORY", "CPU", *(["GPU"] if with_gpus else []), "REASON")
    rows = [_row(a, with_gpus) for a in attempts]
    if sys.stdout.isatty():
        _print_rich(header, rows)
        return
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header) - 1)]
    for row in (header, *rows):
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip())


def _print_rich(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    # Imported here: a pipe, the common case in scripts, does not need it.
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row, style=_COLOURS.get(row[3], "red"))
    Console().print(table)


def _row(attempt: Attempt, with_gpus: bool) -> tuple[str, ...]:
    record = attempt.record
    limit = record["limits"]["memory_bytes"]
    used = record["usage"].get("memory_peak_bytes")
    memory = "-" if used is None else show_bytes(used) + (f" of {show_bytes(limit)}" if limit else "")
    cpu = record["usage"].get("cpu_seconds")
    succeeded = attempt.outcome == "succeeded"
    return (
        attempt.rule,
        " ".join(f"{k}={v}" for k, v in attempt.wildcards.items()) or "-",
        str(record["attempt"]),
        attempt.outcome,
        show_seconds(record["seconds"]),
        memory,
        "-" if cpu is None else show_seconds(cpu),
        *([",".join(map(str, record["limits"].get("gpus") or ())) or "-"] if with_gpus else []),
        "; ".join(record["notes"]) if succeeded else record["reason"],
    )
