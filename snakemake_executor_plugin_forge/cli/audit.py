"""``snakemake-forge audit``: the files that rules use without declaring them, as lines for the Snakefile."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from ..analysis.undeclared import UndeclaredFiles, undeclared
from ..record.index import Selection, open_index
from ..spec.printable import python_string
from ..spec.wildcards import can_be_declared
from .select import add_command, add_rule, check_job
from .show import print_json

_EXAMPLES = """examples:
  snakemake-forge audit                 lines to add to the Snakefile
  snakemake-forge audit --rule call     lines for one rule
  snakemake-forge audit --json

the record has reads of runs with --forge-audit (root), and new files of all runs
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "audit", _EXAMPLES)
    add_rule(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list: rule, jobs, reads, writes")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the lines; return 1 if there are none."""
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
            print("No rule on record uses a file that it does not declare.", file=sys.stderr)
        elif not any(entry.audited for entry in found):
            print("\n# The record has no reads: run with --forge-audit to see them.")
    return 0 if found else 1


def _print(entry: UndeclaredFiles) -> None:
    print(f"rule {entry.rule}:")
    for keyword, paths in (("input", entry.reads), ("output", entry.writes)):
        if paths:
            print(f"    {keyword}:")
        for path, count in sorted(paths.items()):
            lacks = [name for name in entry.wildcards if keyword == "output" and "{" + name + "}" not in path]
            line, of = python_string(path), f"{count} of {entry.jobs} job(s)"
            if lacks or not can_be_declared(re.sub(r"(?<!{){\w+}(?!})", "", path)):
                why = f"lacks {{{lacks[0]}}}, which all outputs of the rule need" if lacks else "is no name for a rule"
                print(f"#       {line} {why}; {of}")
                continue
            print(f"+       {line},  # {of}")
