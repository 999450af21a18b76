"""``snakemake-forge audit``: the files that rules use without declaring them, as lines for the Snakefile."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from ..analysis.undeclared import UndeclaredFiles, undeclared
from ..record.index import Selection
from ..spec.printable import python_string
from ..spec.wildcards import can_be_declared
from .select import add_command, add_rule, check_job, open_records
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
    with open_records(options.directory) as index:
        check_job(index, options.rule, {})
        found = undeclared(
            index.records(Selection()), lambda path: os.path.isdir(os.path.join(options.directory, path))
        )
    found = [entry for entry in found if options.rule in (None, entry.rule)]
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
        expanded = entry.expanded if keyword == "input" else {}
        for pattern, made in expanded.items():
            print(
                f"+       {_expand(pattern, list(made.values()))},  # {paths[next(iter(made))]} of {entry.jobs} job(s)"
            )
        several = {path for made in expanded.values() for path in made}
        for path, count in sorted(paths.items()):
            if path in several:
                continue
            lacks = [name for name in entry.wildcards if keyword == "output" and "{" + name + "}" not in path]
            line, of = python_string(path), f"{count} of {entry.jobs} job(s)"
            if lacks or not can_be_declared(re.sub(r"(?<!{){\w+}(?!})", "", path)):
                why = f"lacks {{{lacks[0]}}}, which all outputs of the rule need" if lacks else "is no name for a rule"
                print(f"#       {line} {why}; {of}")
                continue
            line = f"directory({line})" if keyword == "output" and path in entry.directories else line
            print(f"+       {line},  # {of}")


def _expand(pattern: str, made: list[Mapping[str, str]]) -> str:
    names = [name for name in made[0] if "{" + name + "}" in pattern]
    values = [f"{name}=[{', '.join(python_string(one[name]) for one in made)}]" for name in names]
    return f"expand({', '.join([python_string(pattern), *(['zip'] if len(names) > 1 else []), *values])})"
