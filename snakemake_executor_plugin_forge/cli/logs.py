"""``snakemake-forge logs``: what a job wrote to stdout and stderr."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import time
from typing import IO, Any

from ..errors import UsageError
from ..record.index import Row
from ..record.layout import STDERR, STDOUT, VERDICT
from ..record.streamfile import archived_stream
from .select import add_command, add_job, newest

_EXAMPLES = """examples:
  snakemake-forge logs call sample=A             both streams of the newest attempt
  snakemake-forge logs call sample=A --stderr    one of them, and nothing else
  snakemake-forge logs call sample=A --follow    as it grows, until the job ends
"""
_POLL_SECONDS = 0.2


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "logs", _EXAMPLES)
    add_job(parser)
    stream = parser.add_mutually_exclusive_group()
    stream.add_argument("--stdout", action="store_true", help="only stdout")
    stream.add_argument("--stderr", action="store_true", help="only stderr")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the streams; exit code 1 if no attempt matches."""
    attempt = newest(options)
    names = [STDOUT] if options.stdout else [STDERR] if options.stderr else [STDOUT, STDERR]
    if options.follow:
        _follow(attempt, names)
    else:
        _show(attempt, names)
    return 0


def _open(attempt: Row, name: str) -> IO[bytes]:
    path = os.path.join(attempt["directory"], name)
    try:
        return open(path, "rb")
    except OSError as error:
        text = archived_stream(attempt["directory"], name)
        if text is not None:
            return _Archived(text.encode(), path)
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


class _Archived(io.BytesIO):
    """A stream of which only this is left."""

    def __init__(self, data: bytes, path: str) -> None:
        super().__init__(data)
        self.name = path


def _show(attempt: Row, names: list[str]) -> None:
    for name in names:
        with _open(attempt, name) as file:
            if len(names) > 1:
                print(f"==> {file.name} <==", flush=True)
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _follow(attempt: Row, names: list[str]) -> None:
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
        ended = os.path.exists(os.path.join(attempt["directory"], VERDICT))
        if not ended:
            time.sleep(_POLL_SECONDS)
