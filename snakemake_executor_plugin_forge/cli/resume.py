"""``snakemake-forge resume``: goes on after a crash, a failure or an interruption, by the command that was given."""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from .. import resume
from ..errors import BusyError, UsageError
from ..record.reader import RunDirectory, state_directory
from ..staged import alone
from .select import add_command

_EXAMPLES = """examples:
  snakemake-forge resume                       clear up after a crash, and repeat the command of the newest run
  snakemake-forge resume --keep-going -j 16    the same, with more arguments for Snakemake
  snakemake-forge resume --stop                end the jobs that go on without Snakemake
  snakemake-forge resume -n                    only say what would be done
  snakemake-forge resume -- -n                 clear up, and repeat the command as a dry run of Snakemake's

it becomes Snakemake: its exit code is Snakemake's
"""
_LOCK = "resume.lock"


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "resume", _EXAMPLES)
    parser.usage = "snakemake-forge resume [-h] [-d DIR] [-n] [--stop] [--dead-host HOST] [arguments for Snakemake …]"
    parser.allow_abbrev = False  # what is not known here is Snakemake's
    parser.add_argument("-n", "--dry-run", action="store_true", help="change nothing, only say what would be done")
    parser.add_argument(
        "--dead-host",
        metavar="HOST",
        help="that host, which shares this file system, runs nothing of this directory any more",
    )
    parser.add_argument(
        "--stop",
        action="store_true",
        help="end the jobs that go on without their Snakemake (--forge-on-disconnect finish), and do nothing else",
    )
    parser.set_defaults(run=run, takes_more=True)


def run(options: argparse.Namespace) -> int:
    """Check, clear, say, become Snakemake.

    Raises:
        UsageError: if there is nothing to be repeated.
        BusyError: if somebody is at work in the directory.

    """
    workdir = os.path.realpath(options.directory)
    state = state_directory(workdir)
    lock = _take_lock(f"{state}/{_LOCK}")
    runs = resume.runs_of(state)
    if options.dead_host and not options.dry_run:
        count = resume.declare_dead(runs, options.dead_host)
        _say(f"{count} run(s) of host {options.dead_host} are over, as you say.")
        runs = resume.runs_of(state)
    if options.stop:
        return _stop(runs, workdir, state, dry_run=options.dry_run)
    command = resume.complete(resume.command_of(runs), _without_dashes(options.more), workdir)
    line = shlex.join((command.program, *command.arguments))
    if options.dry_run:
        for sentence in [*resume.living(runs, workdir), *resume.preview(runs, workdir)]:
            _say(sentence)
        _say(f"would run, in {command.directory}: {line}")
        return 0
    resume.check(runs, workdir, state)
    resume.check_queue(runs)
    try:
        cleared = resume.clear(runs, state, workdir)
    except OSError as error:
        raise UsageError(
            f"An earlier run was ended while it published outputs, and that cannot be finished: {error}. Mend that and "
            f"try again; the journals are in {state}/staging."
        ) from error
    for sentence in cleared.sentences():
        _say(sentence)
    _say(f"runs, in {command.directory}: {line}")
    sys.stdout.flush()
    os.set_inheritable(lock, True)  # held until Snakemake ends: of two at once, the second is refused
    resume.repeat(command)
    return 1  # not reached


def _stop(runs: Sequence[RunDirectory], workdir: str, state: str, *, dry_run: bool) -> int:
    """End what goes on without Snakemake, and nothing else."""
    found = resume.living(runs, workdir)
    if found:
        raise BusyError(f"Nothing was changed, since a run that lives may have adopted the jobs: {' '.join(found)}")
    stopped = list(alone(state).values()) if dry_run else resume.stop(state)
    for entry in stopped:
        _say(f"{'would end' if dry_run else 'ended'} the job of rule {entry.rule} ({entry.directory}).")
    if not stopped:
        _say("no job goes on without its Snakemake here.")
    return 0


def _take_lock(path: str) -> int:
    """Whoever resumes holds it; descriptors of Snakemake are not passed on to its jobs."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise BusyError(
            f"Nothing was changed: another snakemake-forge resume, or the Snakemake that it became, holds {path}."
        ) from None
    return fd


def _without_dashes(words: list[str]) -> list[str]:
    """Of ``resume -- -n`` the ``-n``."""
    return words[1:] if words[:1] == ["--"] else words


def _say(sentence: str) -> None:
    print(f"snakemake-forge resume: {sentence}", flush=True)
