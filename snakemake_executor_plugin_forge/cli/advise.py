"""``snakemake-forge advise``: suggested resources of rules, from the usage of their jobs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from ..analysis.advise import COLUMNS, FEWEST_JOBS, Advice, Spread, advise, memory_of_newest, profile_block
from ..record.index import Selection
from ..spec.units import show_bytes, show_seconds
from .select import add_command, add_rule, add_run, check_job, number, open_records, pick_run
from .show import print_json, print_table

_EXAMPLES = """examples:
  snakemake-forge advise                              resources asked for, used, and suggested
  snakemake-forge advise --run -1                     from the newest run only
  snakemake-forge advise --yaml >> profile/config.yaml    only the block, ready for snakemake --profile profile
  snakemake-forge advise --rule call --min-jobs 20    one rule, and only if 20 of its jobs have succeeded
"""
_HEADER = (
    *("RULE", "JOBS", "MEMORY ASKED", "USED MEDIAN/P95/MAX", "mem_mb", "CPUS", "USED", "threads"),
    *("TIME MAX", "runtime"),
)

_LESS = ("JOBS", "CPUS", "MEMORY ASKED", "TIME MAX", "USED", "USED MEDIAN/P95/MAX")


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "advise", _EXAMPLES)
    add_rule(parser)
    add_run(parser, "all")
    parser.add_argument(
        "--min-jobs",
        type=number(int, 1),
        default=FEWEST_JOBS,
        metavar="N",
        help=f"make no suggestion for rules with fewer jobs that succeeded (default: {FEWEST_JOBS})",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--yaml", action="store_true", help="print only the block for a profile")
    form.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the suggestions; return 1 if no attempt is on record."""
    with open_records(options.directory) as index:
        check_job(index, options.rule, {})
        run = pick_run(index, options.name) if options.name else None
        rows = index.rows(Selection(rule=options.rule, run=run), COLUMNS)
        found = advise(rows, options.min_jobs, memory_of_newest(index.runs()))
    if options.json:
        print_json([asdict(item) | {"resources": item.resources()} for item in found])
    elif options.yaml:
        print(profile_block(found), end="")
    elif found:
        _print(found, options.min_jobs)
    else:
        print("No attempt is on record.", file=sys.stderr)
    return 0 if found else 1


def _print(found: list[Advice], fewest: int) -> None:
    print_table(_HEADER, [_cells(item) for item in found], less=_LESS)
    few = [f"{item.rule} ({item.jobs})" for item in found if not item.enough]
    if few:
        print(
            f"\nToo few jobs have succeeded for a suggestion (fewer than {fewest}): {', '.join(few)}. "
            "A value with ? is tentative."
        )
    for item in found:
        if item.ooms or item.timeouts:
            times = [f"{n} {what}" for n, what in ((item.ooms, "out of memory"), (item.timeouts, "timed out")) if n]
            print(f"{item.rule}: {' and '.join(times)}.")
    memory = sum(max(0.0, item.frees_memory_byte_seconds) for item in found)
    cores = sum(item.frees_core_seconds for item in found)
    block = profile_block(found)
    if not block:
        print("\nNothing to change.")
        return
    print(
        f"\nFor the jobs on record this would have freed {memory / 2**30 / 3600:.3g} GiB·h of memory and "
        f"{cores / 3600:.3g} core-hours."
    )
    print("For config.yaml of a profile. It replaces values that a rule computes (from its input or attempt):\n")
    print(block, end="")


def _cells(item: Advice) -> tuple[str, ...]:
    return (
        item.rule,
        str(item.jobs),
        "-" if item.memory_limit_bytes is None else show_bytes(item.memory_limit_bytes),
        _spread(item.memory_bytes),
        _suggestion(item.mem_mb, item.enough, item.tentative.get("mem_mb")),
        str(item.cpus),
        "-" if item.cores is None else f"{item.cores.most:.1f}",
        _suggestion(item.threads, item.enough),
        "-" if item.seconds is None else show_seconds(item.seconds.most),
        _suggestion(item.runtime, item.enough, item.tentative.get("runtime")),
    )


def _suggestion(value: int | None, enough: bool, tentative: int | None = None) -> str:
    if value is None and tentative is not None:
        return f"{tentative}?"
    return str(value) if value is not None else "as is" if enough else "too few"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return " / ".join(show_bytes(value) for value in (spread.median, spread.p95, spread.most))
