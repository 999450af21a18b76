"""``snakemake-forge logs``: a job's stdout and stderr, and the files of its rule's ``log:``."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from typing import IO, Any

from ..analysis.attempt_log import archived_stream, lost_with_archive, rule_logs
from ..record.index import Row
from ..record.jsonfile import STDERR, STDOUT, VERDICT
from ..record.plain_files import open_to_read
from ..spec.errors import NothingFoundError, UsageError
from ..spec.printable import terminal_bytes
from .select import add_command, add_job, add_run, newest

_EXAMPLES = """examples:
  snakemake-forge logs                           both streams of the newest failure, and its rule's log: files
  snakemake-forge logs call sample=A             those of the newest attempt of that job
  snakemake-forge logs call sample=A --stderr    only this stream
  snakemake-forge logs call sample=A --log       only the files of the rule's log:
  snakemake-forge logs call sample=A --follow    all of them as they grow, until the job ends
"""
_POLL_SECONDS = 0.2
_CHUNK = 65536


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "logs", _EXAMPLES)
    add_job(parser)
    add_run(parser, "the newest with that job")
    stream = parser.add_mutually_exclusive_group()
    stream.add_argument("--stdout", action="store_true", help="print only stdout")
    stream.add_argument("--stderr", action="store_true", help="print only stderr")
    stream.add_argument("--log", action="store_true", help="print only the files of the rule's log:")
    parser.add_argument("-f", "--follow", action="store_true", help="print until the job ends")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the streams."""
    if options.follow and options.rule is None:
        raise UsageError("--follow needs the rule of a job: snakemake-forge logs RULE WILDCARD=VALUE --follow.")
    attempt = newest(options, running=options.follow)
    if options.follow:
        _follow(attempt, options)
    else:
        _show(attempt, _names(attempt, options))
    return 0


def _names(attempt: Row, options: argparse.Namespace) -> list[str]:
    """Return the streams by their names in the job directory, and the logs by their paths."""
    if options.stdout or options.stderr:
        return [STDOUT if options.stdout else STDERR]
    logs = [path for _, path in rule_logs(attempt["directory"])]
    if options.log:
        if not logs and not options.follow:
            raise NothingFoundError("The rule has no log: file, or the job has not written it.")
        return logs
    return [STDOUT, STDERR, *logs]


def _open(attempt: Row, name: str) -> IO[bytes]:
    path = os.path.join(attempt["directory"], name)
    try:
        return open_to_read(path, straight=os.path.isabs(name))  # as those of rule_logs()
    except OSError as error:
        text = archived_stream(attempt["directory"], name)
        if text is not None:
            kept = io.BytesIO(text.encode())
            kept.name = path
            return kept
        lost = lost_with_archive(attempt["directory"])
        raise UsageError(f"{path} cannot be read: {lost or error.strerror}.") from None


class _Output:
    """Stdout for the bytes of a job: what a terminal may get, to a terminal; everything, to a pipe or file."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._rest = b""

    def write(self, data: bytes) -> None:
        """Write a part."""
        if self._is_terminal:
            data, self._rest = terminal_bytes(self._rest + data)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def end(self) -> None:
        """Write what the last part has left."""
        sys.stdout.buffer.write(terminal_bytes(self._rest, last=True)[0])
        sys.stdout.buffer.flush()


def _show(attempt: Row, names: list[str]) -> None:
    for name in names:
        with _open(attempt, name) as file:
            if len(names) > 1:
                print(f"==> {file.name} <==", flush=True)
            output = _Output()
            while chunk := file.read(_CHUNK):
                output.write(chunk)
            output.end()


def _follow(attempt: Row, options: argparse.Namespace) -> None:
    files: dict[str, tuple[IO[bytes], _Output]] = {}
    ended, newest_file = False, ""
    while True:
        grown = False
        for name in _names(attempt, options) if not ended else ():
            if name not in files:
                files[name] = _open(attempt, name), _Output()
        for name, (file, output) in files.items():
            while chunk := file.read(_CHUNK):
                if name != newest_file and (len(files) > 1 or options.log):
                    print(f"==> {file.name} <==", flush=True)
                grown, newest_file = True, name
                output.write(chunk)
        if ended and not grown:
            for _, output in files.values():
                output.end()
            return
        ended = os.path.exists(os.path.join(attempt["directory"], VERDICT))
        if not ended:
            time.sleep(_POLL_SECONDS)
