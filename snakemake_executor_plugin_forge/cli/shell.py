"""``snakemake-forge shell``: a prompt or a command in an attempt's sandbox; supervisor/shell.py opens it."""

from __future__ import annotations

import argparse
from typing import Any

from .select import add_command, add_job, newest

_EXAMPLES = """examples:
  snakemake-forge shell                                    a prompt where the newest failure happened
  snakemake-forge shell call sample=A                      a prompt where that job ran, with its files and limits
  snakemake-forge shell call sample=A --run 'ls -l; free -m'   one command

bash "$FORGE_JOB_DIR/command.sh" runs the job's own command. Inputs are read-only, outputs do not exist yet, and Forge
discards every change at the end. There is no wall time limit.
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "shell", _EXAMPLES)
    add_job(parser)
    parser.add_argument("--run", dest="command", metavar="COMMAND", help="run this command instead of a prompt")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Open the prompt, or run the command; return its exit code."""
    record = newest(options)
    from ..supervisor.shell import open_prompt  # not above: it imports all that makes sandboxes

    return open_prompt(record["directory"], options.command)
