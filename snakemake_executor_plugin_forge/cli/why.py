"""``snakemake-forge why``: the verdict in plain words, with the evidence and what to change."""

from __future__ import annotations

import argparse
from typing import Any

from ..record.explain import explain
from ..record.streamfile import read_telling
from .select import add_command, add_job, newest
from .show import COLOURS, print_fields, print_json

_EXAMPLES = """examples:
  snakemake-forge why call sample=A            the newest attempt of that job
  snakemake-forge why call                     the newest attempt of any job of the rule
  snakemake-forge why call --json | jq -r .change

five lines: what happened, the evidence, the lines of stderr that matter, what to change (to paste into the Snakefile or
to add to the command line), and where the files are
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "why", _EXAMPLES)
    add_job(parser)
    parser.add_argument("--json", action="store_true", help="an object with these five texts")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the five lines; exit code 1 if no attempt matches."""
    record = newest(options)
    explanation = explain(record, read_telling(record["directory"]))
    if options.json:
        print_json(dict(explanation.fields()))
    else:
        print_fields(explanation.fields(), COLOURS.get(record["outcome"], "bold red"))
    return 0
