"""``snakemake-forge report``: one HTML page about a run."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from ..record.index import open_index
from ..spec.errors import UsageError
from .select import add_command, add_run, pick_run
from .show import plain

_EXAMPLES = """examples:
  snakemake-forge report                        the newest run, as forge-report.html
  snakemake-forge report --output run.html --all    every run on record
  snakemake-forge report --run 20261122-230528-1573-ef85

the page is one file with everything in it: you can send, archive and print it, and read it without a network
"""
_DEFAULT = "forge-report.html"


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "report", _EXAMPLES)
    parser.add_argument(
        "-o",
        "--output",
        default=_DEFAULT,
        metavar="FILE",
        help=f"the file to write, - for stdout (default: {_DEFAULT})",
    )
    which = parser.add_mutually_exclusive_group()
    add_run(which)
    which.add_argument("--all", action="store_true", help="a page about all runs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    from ..analysis.report import render  # plotly and jinja2

    with open_index(options.directory) as index:
        newest_or_named = pick_run(index, options.name)
        page = render(index, None if options.all else newest_or_named)
    if options.output == "-":
        plain(sys.stdout).write(page)
        return 0
    try:
        with open(options.output, "w", encoding="utf-8", errors="replace") as file:
            file.write(page)
    except OSError as error:
        raise UsageError(f"--output {options.output}: cannot be written: {error.strerror}.") from None
    print(os.path.abspath(options.output))
    return 0
