"""``snakemake-forge advise``: what rules should ask for, from what their jobs used."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from ..record.advise import COLUMNS, FEWEST_JOBS, Advice, Spread, advise, profile_block
from ..record.index import Selection, open_index
from ..units import show_bytes, show_seconds
from .select import add_command, add_rule, check_job
from .show import print_json, print_table

_EXAMPLES = """examples:
  snakemake-forge advise                              asked for, used, and what to ask for instead
  snakemake-forge advise --yaml >> profile/config.yaml    only the block, ready for snakemake --profile profile
  snakemake-forge advise --rule call --min-jobs 20    one rule, and only if 20 of its jobs have succeeded
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "advise", _EXAMPLES)
    add_rule(parser)
    parser.add_argument(
        "--min-jobs",
        type=_positive,
        default=FEWEST_JOBS,
        metavar="N",
        help=f"suggest nothing for rules of which fewer jobs have succeeded (default: {FEWEST_JOBS})",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--yaml", action="store_true", help="only the block for a profile")
    form.add_argument("--json", action="store_true", help="a JSON list (docs/reference/cli.md has the fields)")
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def run(options: argparse.Namespace) -> int:
    """Print it; exit code 1 if no attempts are on record."""
    with open_index(options.directory) as index:
        check_job(index, options.rule, {})
        found = advise(index.rows(Selection(rule=options.rule), COLUMNS), options.min_jobs)
    if options.json:
        print_json([asdict(item) | {"resources": item.resources()} for item in found])
    elif options.yaml:
        print(profile_block(found), end="")
    elif found:
        _print(found, options.min_jobs)
    else:
        print("No attempts are on record.", file=sys.stderr)
    return 0 if found else 1


def _print(found: list[Advice], fewest: int) -> None:
    header = (
        "RULE",
        "JOBS",
        "MEMORY ASKED",
        "USED MEDIAN/P95/MAX",
        "mem_mb",
        "CPUS",
        "USED",
        "threads",
        "TIME MAX",
        "runtime",
    )
    print_table(header, [_cells(item) for item in found])
    few = [f"{item.rule} ({item.jobs})" for item in found if not item.enough]
    if few:
        print(f"\nToo few jobs have succeeded for a suggestion (fewer than {fewest}): {', '.join(few)}.")
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
    print("For config.yaml of a profile; a value that a rule computes (from its input or attempt) is replaced by it:\n")
    print(block, end="")


def _cells(item: Advice) -> tuple[str, ...]:
    return (
        item.rule,
        str(item.jobs),
        "-" if item.memory_limit_bytes is None else show_bytes(item.memory_limit_bytes),
        _spread(item.memory_bytes),
        _suggestion(item.mem_mb, item.enough),
        str(item.cpus),
        "-" if item.cores is None else f"{item.cores.most:.1f}",
        _suggestion(item.threads, item.enough),
        "-" if item.seconds is None else show_seconds(item.seconds.most),
        _suggestion(item.runtime, item.enough),
    )


def _suggestion(value: int | None, enough: bool) -> str:
    return str(value) if value is not None else "as is" if enough else "too few"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return " / ".join(show_bytes(value) for value in (spread.median, spread.p95, spread.most))
