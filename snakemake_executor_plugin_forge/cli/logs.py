"""``snakemake-forge logs``: what a job wrote to stdout and stderr."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from typing import IO, Any

from ..errors import UsageError
from ..record.jobdir import STDERR, STDOUT, VERDICT
from ..record.reader import Attempt, read_attempts
from .select import add_command, matching, parse_wildcards

_EXAMPLES = """examples:
  snakemake-forge logs call sample=A             both streams of the newest attempt
  snakemake-forge logs call sample=A --stderr    one of them, and nothing else
  snakemake-forge logs call sample=A --follow    as it grows, until the job ends
"""
_POLL_SECONDS = 0.2


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "logs", "the streams of the newest attempt of a job", _EXAMPLES)
    parser.add_argument("rule", metavar="RULE")
    parser.add_argument("wildcards", nargs="*", metavar="WILDCARD=VALUE")
    stream = parser.add_mutually_exclusive_group()
    stream.add_argument("--stdout", action="store_true", help="only stdout")
    stream.add_argument("--stderr", action="store_true", help="only stderr")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the streams; exit code 1 if no attempt matches."""
    found = matching(read_attempts(options.directory), options.rule, parse_wildcards(options.wildcards))
    if not found:
        print("No attempts match.", file=sys.stderr)
        return 1
    attempt = found[-1]
    names = [STDOUT] if options.stdout else [STDERR] if options.stderr else [STDOUT, STDERR]
    if options.follow:
        _follow(attempt, names)
    else:
        _show(attempt, names)
    return 0


def _open(attempt: Attempt, name: str) -> IO[bytes]:
    path = os.path.join(attempt.directory, name)
    try:
        return open(path, "rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


def _show(attempt: Attempt, names: list[str]) -> None:
    for name in names:
        with _open(attempt, name) as file:
            if len(names) > 1:
                print(f"==> {file.name} <==", flush=True)
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _follow(attempt: Attempt, names: list[str]) -> None:
    files = [_open(attempt, name) for name in names]
    ended = False
    while True:
        grown = False
        for file in files:
            while chunk := file.read(65536):
                grown = True
                sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        if ended and not grown:
            return
        ended = os.path.exists(os.path.join(attempt.directory, VERDICT))
        if not ended:
            time.sleep(_POLL_SECONDS)
