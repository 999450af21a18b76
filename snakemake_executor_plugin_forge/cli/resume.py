"""``snakemake-forge resume``: continues after a crash, a failure or an interruption, with the recorded command."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..record.reader import RunDirectory, run_directories, state_directory
from ..run import resume
from ..sandbox.filesystem.overlay import staging_of
from ..spec.errors import BusyError, UsageError
from ..spec.printable import printable, shell_words
from ..staging.liveness import detached_supervisors
from .select import add_command

_EXAMPLES = """examples:
  snakemake-forge resume                       clear up after a crash, and repeat the command of the newest run
  snakemake-forge resume --keep-going -j 16    add arguments for Snakemake
  snakemake-forge resume --stop                end the jobs that continue without Snakemake
  snakemake-forge resume -n                    only say what would be done
  snakemake-forge resume -- -n                 clear up, and repeat the command as a dry run of Snakemake's

it becomes Snakemake: its exit code is Snakemake's
"""
_LOCK = "resume.lock"


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "resume", _EXAMPLES)
    parser.usage = "snakemake-forge resume [-h] [-d DIR] [-n] [--stop] [--dead-host HOST] [arguments for Snakemake …]"
    parser.allow_abbrev = False  # Snakemake gets all unknown options
    parser.add_argument("-n", "--dry-run", action="store_true", help="change nothing, only say what would be done")
    parser.add_argument(
        "--dead-host",
        metavar="HOST",
        help="that host, which shares this file system, runs nothing of this directory any more",
    )
    parser.add_argument(
        "--stop",
        action="store_true",
        help="end the jobs that continue without their Snakemake (--forge-on-disconnect finish), and do nothing else",
    )
    parser.set_defaults(run=run, takes_more=True)


def run(options: argparse.Namespace) -> int:
    """Check, clear, report, and become Snakemake.

    Raises:
        UsageError: if no command is on record.
        BusyError: if a process is at work in the directory.
    """
    workdir = os.path.realpath(options.directory)
    state = state_directory(workdir)
    if os.stat(state).st_uid != os.geteuid():
        raise UsageError(f"{state} belongs to user {os.stat(state).st_uid}: only that user can resume its runs.")
    lock = _take_lock(f"{state}/{_LOCK}")
    runs = list(run_directories(state))
    if options.dead_host and not options.dry_run:
        count = resume.declare_dead(runs, options.dead_host)
        _say(f"{count} run(s) of host {options.dead_host} are over, as you say.")
        runs = list(run_directories(state))
    if options.stop:
        return _stop(runs, workdir, state, dry_run=options.dry_run)
    more = options.more[1:] if options.more[:1] == ["--"] else options.more
    command = resume.complete(resume.command_of(runs), more, workdir)
    line = shell_words((command.program, *command.arguments))
    if options.dry_run:
        living = resume.living(runs, workdir)
        for sentence in living or resume.preview(state, workdir):
            _say(sentence)
        _say("would change nothing." if living else f"would run, in {command.directory}: {line}")
        return 0
    resume.check(runs, workdir, state)
    resume.check_queue(runs)
    try:
        cleared = resume.clear(state, workdir)
    except OSError as error:
        raise UsageError(
            f"An earlier run was ended while it published outputs, and that cannot be finished: {error}. Mend that and "
            f"try again; the journals are in {staging_of(workdir, workdir)}."
        ) from error
    for sentence in cleared:
        _say(sentence)
    _say(f"runs, in {command.directory}: {line}")
    sys.stdout.flush()
    os.set_inheritable(lock, True)  # held until Snakemake ends, so that a second resume is refused
    resume.repeat(command)
    return 1  # not reached


def _stop(runs: Sequence[RunDirectory], workdir: str, state: str, *, dry_run: bool) -> int:
    """End the jobs that continue without Snakemake, and do nothing else."""
    found = resume.living(runs, workdir)
    if found:
        raise BusyError(f"Nothing was changed, since a living run may have adopted the jobs: {' '.join(found)}")
    stopped = list(detached_supervisors(state).values()) if dry_run else resume.stop(state)
    for entry in stopped:
        _say(f"{'would end' if dry_run else 'ended'} the job of rule {entry.rule} ({entry.directory}).")
    if not stopped:
        _say("no job continues without its Snakemake here.")
    return 0


def _take_lock(path: str) -> int:
    """Lock the file until this process, or the Snakemake that it becomes, ends; Snakemake's jobs do not inherit it."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise BusyError(
            f"Nothing was changed: another snakemake-forge resume, or the Snakemake that it became, holds {path}."
        ) from None
    return fd


def _say(sentence: str) -> None:
    print(f"snakemake-forge resume: {printable(sentence)}", flush=True)
