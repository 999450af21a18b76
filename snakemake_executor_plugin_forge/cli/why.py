"""``snakemake-forge why``: the verdict in plain words, with the evidence and what to change."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from ..analysis.attempt_log import with_context
from ..analysis.explain import explain
from .select import add_command, add_job, add_run, newest
from .show import COLOURS, print_fields, print_json

_EXAMPLES = """examples:
  snakemake-forge why                          the newest failure
  snakemake-forge why call sample=A            the newest attempt of that job
  snakemake-forge why call                     of the rule's jobs one that failed, or else the newest
  snakemake-forge why call --json | jq -r .change

five lines: what happened, the evidence, the lines of stderr that matter, what to change (to paste into the Snakefile or
to add to the command line), and the paths of the files
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "why", _EXAMPLES)
    add_job(parser)
    add_run(parser, "the newest with that job")
    parser.add_argument("--json", action="store_true", help="print a JSON object with these texts")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the five lines."""
    record = with_context(newest(options))
    explanation = explain(record, record["told"])
    if options.json:
        print_json(asdict(explanation))
    else:
        print_fields(explanation.fields(), COLOURS.get(record["outcome"], "bold red"))
    return 0
