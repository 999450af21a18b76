"""``snakemake-forge audit``: what rules read and write without declaring it, as lines for the Snakefile."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..record.index import Selection, open_index
from ..record.undeclared import Undeclared, undeclared
from .select import add_command, add_rule, check_job
from .show import print_json

_EXAMPLES = """examples:
  snakemake-forge audit                 lines to add to the Snakefile
  snakemake-forge audit --rule call     of one rule
  snakemake-forge audit --json

reads are on record for runs with --forge-audit (root), new files for all runs
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "audit", _EXAMPLES)
    add_rule(parser)
    parser.add_argument("--json", action="store_true", help="a JSON list: rule, jobs, reads, writes")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print it; exit code 1 if there is nothing."""
    with open_index(options.directory) as index:
        check_job(index, options.rule, {})
        found = undeclared(index.records(Selection(rule=options.rule)))
    if options.json:
        rows = [
            {"rule": entry.rule, "jobs": entry.jobs, "reads": sorted(entry.reads), "writes": sorted(entry.writes)}
            for entry in found
        ]
        print_json(rows)
    else:
        for entry in found:
            _print(entry)
        if not found:
            print("No rule is on record that uses what it does not declare.", file=sys.stderr)
        elif not any(entry.audited for entry in found):
            print("\n# What rules read is not on record: run with --forge-audit to see it.")
    return 0 if found else 1


def _print(entry: Undeclared) -> None:
    print(f"rule {entry.rule}:")
    for keyword, paths in (("input", entry.reads), ("output", entry.writes)):
        if paths:
            print(f"    {keyword}:")
        for path, count in sorted(paths.items()):
            print(f"+       {json.dumps(path, ensure_ascii=False)},  # {count} of {entry.jobs} job(s)")
