"""Resuming after any end of a run: checks that no process is left, clears the leftovers, repeats the recorded command.

::

    check: no Snakemake lives, Forge's processes have ended ──► clear ──► complete ──► repeat
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial

from ..backends.slurm.adoption import run_of
from ..backends.slurm.client import SlurmClient, Unanswered
from ..backends.slurm.exchange import NODE_PROCESS
from ..kernel.failpoints import reached
from ..kernel.process_tree import command_name, is_dead, stat
from ..kernel.procfs import read
from ..kernel.tree import walk
from ..record.attempt_dir import now
from ..record.identity import is_here
from ..record.reader import RUN, RunDirectory, save_run
from ..sandbox.cgroups.base import kill_all, member_pids, remove_patiently, remove_tree
from ..spec.errors import BusyError, HostError, UsageError
from ..staging.confines import in_words
from ..staging.liveness import detached_supervisors, signal_supervisor
from ..staging.pending import Entry
from ..staging.recovery import PROMPT_PROCESS, Inventory, recover_dead_runs

_PATIENCE_SECONDS = 60.0
_LOCKS, _DATABASE, _INCOMPLETE = ".snakemake/locks", ".snakemake/metadata.db", ".snakemake/incomplete"
_OURS = "forge-"


@dataclass(frozen=True, slots=True)
class RecordedCommand:
    """The command that started a run of Snakemake."""

    directory: str
    program: str
    arguments: tuple[str, ...]  # without the program


def command_of(runs: Sequence[RunDirectory]) -> RecordedCommand:
    """The recorded command of the newest run.

    Raises:
        UsageError: if there is none, or its interpreter or directory is gone.
    """
    if not runs:
        raise UsageError("No run of Forge is on record in this directory: start snakemake --executor forge … itself.")
    newest = next((run for run in reversed(runs) if run.record), runs[-1])
    recorded = newest.record.get("restart")
    if not isinstance(recorded, dict) or not recorded.get("arguments") or not recorded.get("directory"):
        raise UsageError(
            f"{newest.path}/{RUN} does not say how Snakemake was started (no restart: an older Forge wrote it, or it "
            "is damaged). Run the snakemake command yourself; snakemake --unlock removes its lock."
        )
    command = RecordedCommand(
        str(recorded["directory"]), str(recorded["python"]), tuple(map(str, recorded["arguments"]))
    )
    if not os.access(command.program, os.X_OK):
        raise UsageError(f"The interpreter that ran Snakemake is gone: {command.program} ({newest.path}/{RUN}).")
    if not os.path.isdir(command.directory):
        raise UsageError(f"The directory in which Snakemake was started, {command.directory}, is gone.")
    return command


def declare_dead(runs: Sequence[RunDirectory], host: str) -> int:
    """Record, on the user's word, that a host runs no process of this directory any more.

    Returns:
        The number of runs of that host that had no end on record.

    Raises:
        UsageError: if there is none, or it is this host.
    """
    unended = [run for run in runs if run.record and not run.record.get("ended")]
    unended = [run for run in unended if not is_here(run.record)]
    open_runs = [run for run in unended if run.record.get("host") == host]
    if not open_runs:
        names = sorted({str(run.record.get("host")) for run in unended})
        raise UsageError(
            f"--dead-host {host}: no run of that host is open, or it is this host. Open are runs of: "
            f"{', '.join(names) or 'none'}."
        )
    for run in open_runs:
        save_run(run.path, run.record | {"ended": now(), "declared_dead": True})
    return len(open_runs)


def living(runs: Sequence[RunDirectory], workdir: str) -> list[str]:
    """Snakemake processes that may be at work in a directory, one sentence for each."""
    found = []
    for run in runs:
        record = run.record
        if not record or record.get("ended"):
            continue
        if not is_here(record):
            where = f"host {record.get('host')}"
            if record.get("host") == socket.gethostname():
                where = f"a host or container of this name, {record.get('host')}, with process numbers of its own"
            found.append(
                f"Run {record['run']} was started on {where} (pid {record.get('pid')}) and has no "
                f"end; whether it is alive cannot be seen from here. Check that host or, if it is down for good: "
                f"snakemake-forge resume --dead-host {record.get('host')}"
            )
        elif run.alive:
            found.append(f"Snakemake (pid {record['pid']}) of run {record['run']} is at work in {workdir}.")
    known = {int(run.record["pid"]) for run in runs if run.alive}
    found += [
        f"Snakemake (pid {pid}), of which Forge has no record, is at work in {workdir}."
        for pid, name, arguments in _processes_in(workdir)
        if pid not in known and not name.startswith(_OURS) and _is_snakemake(arguments)
    ]
    return found


def dying(workdir: str, state: str) -> list[int]:
    """Forge's processes in a directory that are about to end because their Snakemake is dead.

    Detached supervisors, ``snakemake-forge shell`` and their children are not among them.
    """
    found = [pid for pid, name, _ in _processes_in(workdir) if name.startswith(_OURS)]
    detached = detached_supervisors(state) if found else {}
    return [
        pid
        for pid in found
        if not any(above in detached or command_name(above) == PROMPT_PROCESS for above in _ancestors(pid))
    ]


def stop(state: str, patience_seconds: float = _PATIENCE_SECONDS) -> list[Entry]:
    """End the jobs that continue without Snakemake, with their grace. Outputs that wait to be adopted stay.

    Returns:
        The entries of the ended jobs.

    Raises:
        BusyError: if a job does not end.
    """
    found = list(detached_supervisors(state).values())
    deadline = time.monotonic() + patience_seconds
    living = list(found)
    while living := [entry for entry in living if entry.supervised()]:
        for entry in living:
            signal_supervisor(entry, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise BusyError(f"These supervisors do not end their jobs: {', '.join(str(e.pid) for e in living)}.")
        select.poll().poll(100)
    return found


def check(runs: Sequence[RunDirectory], workdir: str, state: str, patience_seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait until the processes of dead runs have ended.

    Raises:
        BusyError: if Snakemake is at work here, or a process does not end.
    """
    found = living(runs, workdir)
    if found:
        raise BusyError(f"Nothing was changed: {' '.join(found)}")
    deadline = time.monotonic() + patience_seconds
    while pids := dying(workdir, state):
        if time.monotonic() > deadline:
            raise BusyError(
                f"Nothing was changed: Snakemake is dead, but processes that it had started still end their jobs: "
                f"{', '.join(map(str, pids))}. Try again later, or see what they do: ps -o pid,stat,args -p "
                f"{','.join(map(str, pids))}"
            )
        select.poll().poll(20)


def check_queue(runs: Sequence[RunDirectory]) -> None:
    """Refuse while Slurm has jobs of dead runs that the repeated command would run a second time.

    Raises:
        BusyError: naming the command that ends them; also if Slurm does not answer.
    """
    newest = next((run for run in reversed(runs) if run.record), None)
    if newest is not None and newest.record.get("backend") == "slurm":  # the repeated command adopts them
        return
    names = {os.path.basename(run.path) for run in runs if run.record.get("backend") == "slurm" and not _is_over(run)}
    if not names:
        return
    try:
        ids = [row.job_id for row in SlurmClient().queue() if not row.ended and run_of(row.name) in names]
    except (Unanswered, HostError, OSError) as error:
        raise BusyError(
            f"Nothing was changed: run {', '.join(sorted(names))} had jobs on Slurm, and whether they are alive "
            f"is unknown: {error}. Try again where squeue works."
        ) from error
    if ids:
        raise BusyError(
            f"Nothing was changed: {len(ids)} Slurm job(s) of a dead run still wait or run. Wait for them, or end "
            f"them: scancel {' '.join(ids)}"
        )


def _is_over(run: RunDirectory) -> bool:
    """Whether Snakemake itself has ended the run."""
    return bool(run.record.get("ended")) and not run.record.get("declared_dead")


def clear(state: str, workdir: str) -> list[str]:
    """Finish interrupted publications and remove leftovers and stale locks; call :func:`check` before.

    Returns:
        What was done, in sentences.

    Raises:
        OSError: if a publication cannot be finished.
    """
    inventory = Inventory(state, workdir)
    groups = [leftover.paths[0] for leftover in inventory.cgroups()]
    for path in groups:
        kill_all(member_pids(path))
    recovered = recover_dead_runs(state, workdir, "resume")
    reached("journals followed")
    for copy in inventory.copies():
        copy.clear("resume")
    scratch = list(inventory.scratch())
    for leftover in scratch:
        leftover.clear("resume")
    removed = [path for path in groups if remove_patiently(partial(remove_tree, path))]
    # A detached supervisor that has ended meanwhile could not remove its run's cgroup, which was in use.
    for leftover in inventory.cgroups():
        with suppress(OSError):
            leftover.clear("resume")
    locks = _remove_locks(workdir)
    reached("locks removed")
    done: dict[str, object] = {
        f"finished the publication of {', '.join(recovered.published)}": recovered.published,
        **{in_words(directory, workdir): True for directory in recovered.undecided},
        f"removed the staged files of {recovered.removed} dead supervisor(s)": recovered.removed,
        "removed Snakemake's stale lock": locks,
        f"removed scratch {', '.join(leftover.paths[0] for leftover in scratch)}": scratch,
        f"removed cgroup {', '.join(removed)}": removed,
    }
    return [sentence for sentence, found in done.items() if found]


def preview(state: str, workdir: str) -> list[str]:
    """Return the plan of :func:`clear` in sentences."""
    inventory = Inventory(state, workdir)
    found = [
        f"would wait for the job of rule {entry.rule}, which continues without Snakemake ({entry.directory})"
        for entry in detached_supervisors(state).values()
    ]
    found += [f"would remove scratch {leftover.paths[0]}" for leftover in inventory.scratch()]
    found += [f"would remove cgroup {leftover.paths[0]}" for leftover in inventory.cgroups()]
    if any(inventory.interrupted()) or any(inventory.layers()):
        found.append("would finish interrupted publications and remove the staged files of dead runs")
    if any(_lock_files(workdir)):
        found.append("would remove Snakemake's stale lock")
    return found


def complete(command: RecordedCommand, extra: Sequence[str], workdir: str) -> RecordedCommand:
    """The command with more arguments; with ``--rerun-incomplete`` if Snakemake has marked outputs as incomplete."""
    more = list(extra)
    flags = {"--rerun-incomplete", "--ri"}
    has_marks = any(here.files for here in walk(f"{workdir}/{_INCOMPLETE}", quiet=True, through_link=True))
    if has_marks and not flags & {*more, *command.arguments}:
        more.append("--rerun-incomplete")
    return RecordedCommand(command.directory, command.program, (*command.arguments, *more))


def repeat(command: RecordedCommand) -> None:
    """Replace this process by the command: execv(3).

    Raises:
        OSError: if it cannot be executed.
    """
    os.chdir(command.directory)
    reached("before the command")
    os.execv(command.program, [command.program, *command.arguments])  # noqa: S606 - that is the point


# -- processes and locks -----------------------------------------------------------------------------------------------


def _processes_in(workdir: str) -> Iterator[tuple[int, str, list[str]]]:
    """Yield pid, name and arguments of the processes with this working directory.

    This process and its ancestors are left out, and the jobs of Slurm on this host, for which check_queue() asks.
    """
    above = set(_ancestors(os.getpid()))
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):
            if pid in above or os.readlink(f"/proc/{pid}/cwd") != workdir or is_dead(pid):
                continue
            arguments = [os.fsdecode(word) for word in read(f"/proc/{pid}/cmdline").split(b"\0")]
            if not any(command_name(ancestor) == NODE_PROCESS for ancestor in _ancestors(pid)):
                yield pid, command_name(pid), arguments


def _ancestors(pid: int) -> Iterator[int]:
    """Yield a process and all its ancestors."""
    with suppress(OSError):
        while pid > 0:
            yield pid
            pid = int(stat(pid)[1])


def _is_snakemake(arguments: Sequence[str]) -> bool:
    """Whether these are the arguments of ``python …/snakemake`` or ``python -m snakemake``."""
    return os.path.basename(arguments[0]).startswith("python") and any(
        os.path.basename(word) == "snakemake" for word in arguments[1:5]
    )


def _lock_files(workdir: str) -> Iterator[str]:
    with suppress(OSError):
        yield from (f"{workdir}/{_LOCKS}/{name}" for name in os.listdir(f"{workdir}/{_LOCKS}"))


def _remove_locks(workdir: str) -> int:
    """Remove Snakemake's own locks, in files or in its database; see its persistence package."""
    count = 0
    for path in _lock_files(workdir):
        os.unlink(path)
        count += 1
    if os.path.exists(f"{workdir}/{_DATABASE}"):
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"{workdir}/{_DATABASE}")) as database:
            count += database.execute("DELETE FROM snakemake_locks").rowcount  # no such table: an error
            database.commit()
    return count
