"""``snakemake-forge shell``: a prompt, or a command, in a sandbox like that of an attempt. prompt.py opens it."""

from __future__ import annotations

import argparse
from typing import Any

from .select import add_command, add_job, newest

_EXAMPLES = """examples:
  snakemake-forge shell call sample=A                      a prompt where that job ran, with its files and limits
  snakemake-forge shell call sample=A --run 'ls -l; free -m'   one command

the job's own command: bash "$FORGE_JOB_DIR/command.sh". Inputs are read-only, outputs are not there yet, and nothing of
what is written stays. It has no wall time limit.
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "shell", _EXAMPLES)
    add_job(parser)
    parser.add_argument("--run", dest="command", metavar="COMMAND", help="run this, instead of a prompt")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Open it; the exit code is that of the shell or command."""
    record = newest(options)
    from .prompt import open_prompt  # not above: a mistake is answered without all that makes sandboxes

    return open_prompt(record["directory"], options.command)
