"""``snakemake-forge report``: one HTML page about a run, or a table of its attempts."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from ..analysis.trace import NEEDED, tsv
from ..record.index import Selection
from ..spec.errors import UsageError
from .select import add_command, add_run, local_path, open_records, pick_run
from .show import plain

_EXAMPLES = """examples:
  snakemake-forge report                        the newest run, as forge-report.html
  snakemake-forge report --output run.html --all    every run on record
  snakemake-forge report --run 20261122-230528-1573-ef85
  snakemake-forge report --tsv | cut -f 4,5,12  a table of all attempts, with the columns of Nextflow's trace

the page is one file with everything in it: you can send, archive and print it, and read it without a network
"""
_DEFAULT = "forge-report.html"


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "report", _EXAMPLES)
    parser.add_argument(
        "-o",
        "--output",
        type=local_path,
        metavar="FILE",
        help=f"the file to write, - for stdout (default: {_DEFAULT}; for --tsv stdout)",
    )
    parser.add_argument(
        "--tsv", action="store_true", help="tab-separated values instead of the page, one line an attempt"
    )
    which = parser.add_mutually_exclusive_group()
    add_run(which)
    which.add_argument("--all", action="store_true", help="a page about all runs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the page or the table."""
    output = options.output or ("-" if options.tsv else _DEFAULT)
    with open_records(options.directory) as index:
        newest_or_named = pick_run(index, options.name)
        run = None if options.all else newest_or_named
        if options.tsv:
            text = "".join(tsv(index.rows(Selection(run=run), NEEDED)))
        else:
            from ..analysis.report import render  # jinja2

            text = render(index, run, None if output == "-" else os.path.dirname(os.path.abspath(output)))
    if output == "-":
        plain(sys.stdout).write(text)
        return 0
    try:
        with open(output, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written: {error.strerror}.") from None
    print(os.path.abspath(output))
    return 0
