"""To go on after any end of a run: who still lives, what the dead have left, and the command that is repeated.

::

    living ──► nobody ──► wait for the dying ──► follow journals, remove what is stale ──► the recorded command
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from .backends.handover import NODE_PROCESS
from .backends.slurm_client import SlurmClient, Unanswered
from .backends.slurm_states import TABLE, Fate
from .backends.slurm_text import Row
from .errors import BusyError, HostError, UsageError
from .faults import reached
from .files import PRIVATE_DIRECTORIES
from .publish import remove_copies
from .record.identity import start_time
from .record.jobdir import now
from .record.jsonfile import load
from .record.layout import SPEC, VERDICT
from .record.reader import RUN, RunDirectory, run_directories, save_run, state_directory
from .recovery import PROMPT_PROCESS, Recovered, is_forge, recover_dead_runs
from .sandbox.cgroup import find, kill_all, member_pids, remove_patiently, remove_tree, spare_name
from .sandbox.scratch import remove_slot, slots
from .sandbox.sweep import command_name
from .staged import Entry, alone, tell, wanted

_PATIENCE_SECONDS = 60.0
_LOCKS, _DATABASE, _INCOMPLETE = ".snakemake/locks", ".snakemake/metadata.db", ".snakemake/incomplete"
_OURS = "forge-"


@dataclass(frozen=True, slots=True)
class Command:
    """What is repeated."""

    directory: str
    program: str
    arguments: tuple[str, ...]  # without the program


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was done, or would be."""

    recovered: Recovered
    locks: int
    scratch: tuple[str, ...]
    cgroups: tuple[str, ...]

    def sentences(self) -> Iterator[str]:
        """For people; nothing for what there was nothing of."""
        if self.recovered.published:
            yield f"published what had been begun: {', '.join(self.recovered.published)}"
        if self.recovered.removed:
            yield f"removed the staged files of {self.recovered.removed} unfinished job(s) or supervisor(s)"
        if self.locks:
            yield "removed Snakemake's stale lock"
        for what, paths in (("scratch", self.scratch), ("cgroup", self.cgroups)):
            if paths:
                yield f"removed {what} {', '.join(paths)}"


def command_of(runs: Sequence[RunDirectory]) -> Command:
    """The command of the newest run that has one on record.

    Raises:
        UsageError: if there is none, or its interpreter or directory are gone.

    """
    if not runs:
        raise UsageError("No run of Forge is on record in this directory: start snakemake --executor forge … itself.")
    newest = next((run for run in reversed(runs) if run.record), runs[-1])
    recorded = newest.record.get("restart")
    if not isinstance(recorded, dict) or not recorded.get("arguments") or not recorded.get("directory"):
        raise UsageError(
            f"{newest.path}/{RUN} does not say how Snakemake was started (no restart: an older Forge wrote it, or it "
            "is damaged). Give the command of Snakemake itself; snakemake --unlock removes its lock."
        )
    command = Command(str(recorded["directory"]), str(recorded["python"]), tuple(map(str, recorded["arguments"])))
    if not os.access(command.program, os.X_OK):
        raise UsageError(f"The interpreter that ran Snakemake is gone: {command.program} ({newest.path}/{RUN}).")
    if not os.path.isdir(command.directory):
        raise UsageError(f"The directory in which Snakemake was started, {command.directory}, is not there any more.")
    return command


def declare_dead(runs: Sequence[RunDirectory], host: str) -> int:
    """Take the user's word that a host does not run anything of this directory any more.

    Returns:
        How many runs of it had no end.

    Raises:
        UsageError: if none of its runs is open, or it is this host.

    """
    unended = [run for run in runs if run.record and not run.record.get("ended")]
    open_runs = [run for run in unended if run.record.get("host") == host]
    if not open_runs or host == socket.gethostname():
        names = sorted({str(run.record.get("host")) for run in unended})
        raise UsageError(
            f"--dead-host {host}: no run of that host is open, or it is this host. Open are runs of: "
            f"{', '.join(names) or 'none'}."
        )
    for run in open_runs:
        save_run(run.path, run.record | {"ended": now(), "declared_dead": True})
    return len(open_runs)


def living(runs: Sequence[RunDirectory], workdir: str) -> list[str]:
    """Who may be at work in a directory, one sentence for each."""
    found = []
    for run in runs:
        record = run.record
        if not record or record.get("ended"):
            continue
        if record.get("host") != socket.gethostname():
            found.append(
                f"Run {record['run']} was started on host {record.get('host')} (pid {record.get('pid')}) and has no "
                f"end; from here nobody can say whether it lives. Look there, or, if that host is down for good: "
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
    """Forge's processes in a directory: where no Snakemake lives, they are about to end.

    Not those that go on without it, nor prompts that somebody has opened, and what is below them.
    """
    found = [pid for pid, name, _ in _processes_in(workdir) if name.startswith(_OURS)]
    going_on = alone(state) if found else {}
    return [
        pid
        for pid in found
        if not any(above in going_on or command_name(above) == PROMPT_PROCESS for above in _ancestors(pid))
    ]


def stop(state: str, patience_seconds: float = _PATIENCE_SECONDS) -> list[Entry]:
    """End the jobs that go on without Snakemake, with their grace. What has succeeded and waits stays.

    Returns:
        Those that were ended.

    Raises:
        BusyError: if one does not end.

    """
    found = list(alone(state).values())
    deadline = time.monotonic() + patience_seconds
    living = list(found)
    while living := [entry for entry in living if entry.supervised()]:
        for entry in living:
            tell(entry, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise BusyError(f"These supervisors do not end their jobs: {', '.join(str(e.pid) for e in living)}.")
        select.poll().poll(100)
    return found


def check(runs: Sequence[RunDirectory], workdir: str, state: str, patience_seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait until what belongs to dead runs has ended.

    Raises:
        BusyError: if somebody is at work here, or does not end.

    """
    found = living(runs, workdir)
    if found:
        raise BusyError(f"Nothing was changed: {' '.join(found)}")
    deadline = time.monotonic() + patience_seconds
    while pids := dying(workdir, state):
        if time.monotonic() > deadline:
            raise BusyError(
                f"Nothing was changed: Snakemake is dead, but processes that it had started still end their jobs: "
                f"{', '.join(map(str, pids))}. Try again later, or look what they do: ps -o pid,stat,args -p "
                f"{','.join(map(str, pids))}"
            )
        select.poll().poll(20)


def check_queue(runs: Sequence[RunDirectory]) -> None:
    """Refuse while Slurm has jobs of dead runs and the command that is repeated would run them a second time beside.

    Raises:
        BusyError: naming the command that ends them; or because Slurm does not answer: unknown is not dead.

    """
    newest = next((run for run in reversed(runs) if run.record), None)
    if newest is not None and newest.record.get("backend") == "slurm":  # its command is repeated, and takes them over
        return
    names = {os.path.basename(run.path) for run in runs if run.record.get("backend") == "slurm" and not _is_over(run)}
    if not names:
        return
    try:
        ids = still_queued(SlurmClient().queue(), names)
    except (Unanswered, HostError, OSError) as error:
        raise BusyError(
            f"Nothing was changed: run {', '.join(sorted(names))} had jobs on Slurm, and whether they live cannot be "
            f"found out: {error}. Try again where squeue works."
        ) from error
    if ids:
        raise BusyError(
            f"Nothing was changed: {len(ids)} Slurm job(s) of a dead run still wait or run. Wait for them, or end "
            f"them: scancel {' '.join(ids)}"
        )


def still_queued(rows: Sequence[Row], runs: Collection[str]) -> list[str]:
    """The ids of jobs of these runs that have not ended. Pure."""
    return [
        row.job_id
        for row in rows
        if row.name.startswith("forge-")
        and row.name.removeprefix("forge-").rpartition(".")[0] in runs
        and (row.state is None or TABLE[row.state].fate is not Fate.ENDED)
    ]


def _is_over(run: RunDirectory) -> bool:
    """Whether Snakemake itself has ended it."""
    return bool(run.record.get("ended")) and not run.record.get("declared_dead")


def clear(runs: Sequence[RunDirectory], state: str, workdir: str) -> Cleared:
    """Do to the end what was begun, and remove what nobody uses any more; to be called after :func:`check`.

    Raises:
        OSError: if a journal cannot be followed.

    """
    going_on = alone(state)
    cgroups = list(_cgroups(runs, going_on))
    for path in cgroups:
        kill_all(member_pids(path))
    recovered = recover_dead_runs(state, workdir, "resume")
    reached("journals followed")
    for run in runs:
        for spec in _plans(run):
            if spec.get("backend", "local") != "local":  # it may be alive on another host
                continue
            outputs = (os.path.join(workdir, path) for path in spec.get("outputs", ()))
            remove_copies(outputs, lambda pid: not is_forge(pid))
    scratch = list(_scratch(runs, state, going_on))
    for slot in scratch:
        remove_slot(os.path.dirname(slot), slot)
    removed = [path for path in cgroups if remove_patiently(partial(remove_tree, path))]
    # Who went on alone and ended meanwhile could not remove what its run has in common: it was in use.
    for path in _cgroups(runs, alone(state)):
        remove_patiently(partial(remove_tree, path))
    locks = _remove_locks(workdir)
    reached("locks removed")
    return Cleared(recovered, locks, tuple(scratch), tuple(removed))


def preview(runs: Sequence[RunDirectory], workdir: str) -> list[str]:
    """What :func:`clear` would find, in sentences."""
    state = state_directory(workdir)
    living = alone(state)
    found = [
        f"would wait for the job of rule {entry.rule} that goes on ({entry.directory})" for entry in living.values()
    ]
    found += [f"would remove scratch {path}" for path in _scratch(runs, state, living)]
    found += [f"would remove cgroup {path}" for path in _cgroups(runs, living)]
    if os.path.isdir(f"{workdir}/.snakemake/forge/staging") and os.listdir(f"{workdir}/.snakemake/forge/staging"):
        found.append("would follow journals and remove the staged files of dead runs")
    if any(_lock_files(workdir)):
        found.append("would remove Snakemake's stale lock")
    return found


def complete(command: Command, extra: Sequence[str], workdir: str) -> Command:
    """The command with more arguments; with ``--rerun-incomplete`` where outputs that were not staged are marked."""
    more = list(extra)
    flags = {"--rerun-incomplete", "--ri"}
    if _has_marks(workdir) and not flags & {*more, *command.arguments}:
        more.append("--rerun-incomplete")
    return Command(command.directory, command.program, (*command.arguments, *more))


def repeat(command: Command) -> None:
    """Become that command.

    Raises:
        OSError: if it cannot be executed.

    """
    os.chdir(command.directory)
    reached("before the command")
    os.execv(command.program, [command.program, *command.arguments])  # noqa: S606 - that is the point


# -- looking ----------------------------------------------------------------------------------------------------------


def runs_of(state: str) -> list[RunDirectory]:
    """All runs, oldest first."""
    return list(run_directories(state))


def _processes_in(workdir: str) -> Iterator[tuple[int, str, list[str]]]:
    """Pid, name and arguments of processes whose working directory it is.

    Not this one and those above it; nor what Slurm runs on this host: check_queue() asks for that.
    """
    above = set(_ancestors(os.getpid()))
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in above:
            continue
        with suppress(OSError):
            if os.readlink(f"/proc/{name}/cwd") != workdir:
                continue
            with open(f"/proc/{name}/cmdline", "rb") as file:
                arguments = [os.fsdecode(word) for word in file.read().split(b"\0")]
            with open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as file:
                comm = file.read().strip()
            start_time(int(name))  # raises for one that is dead
            if any(command_name(pid) == NODE_PROCESS for pid in _ancestors(int(name))):
                continue
            yield int(name), comm, arguments


def _ancestors(pid: int) -> Iterator[int]:
    """A process, and all above it."""
    while pid > 0:
        yield pid
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            return


def _is_snakemake(arguments: Sequence[str]) -> bool:
    """``python …/snakemake``, ``python -m snakemake``."""
    return os.path.basename(arguments[0]).startswith("python") and any(
        os.path.basename(word) == "snakemake" for word in arguments[1:5]
    )


def _scratch(runs: Sequence[RunDirectory], state: str, going_on: Mapping[int, Entry]) -> Iterator[str]:
    """Slots of dead supervisors of dead runs of this host, ours, in which nothing waits.

    Not what ``--forge-keep-scratch`` has kept beside them.
    """
    waiting = wanted(state)
    seen: set[str] = set()
    for run in runs:
        if run.alive:
            continue
        places = [f"{PRIVATE_DIRECTORIES[0]}/forge-{os.path.basename(run.path)}"]
        places += [str(spec.get("scratch_base")) for spec in _plans(run)]
        for path in places:
            if path in seen or os.path.basename(path) != f"forge-{os.path.basename(run.path)}":
                continue
            seen.add(path)
            with suppress(OSError):
                if os.lstat(path).st_uid == os.geteuid():
                    yield from (slot for slot, pid in slots(path) if pid not in going_on and slot not in waiting)


def _plans(run: RunDirectory) -> Iterator[Mapping[str, Any]]:
    """Of its attempts without a verdict; and of one with, because all but few have the scratch at the same place."""
    with suppress(OSError):
        others = True
        for name in run.names():
            if os.path.exists(f"{run.path}/{name}/{VERDICT}"):
                if not others:
                    continue
                others = False
            yield load(f"{run.path}/{name}/{SPEC}") or {}


def _cgroups(runs: Sequence[RunDirectory], going_on: Mapping[int, Entry]) -> Iterator[str]:
    """Those of dead runs; their names have random digits, so that they are nobody else's.

    Of a run of which jobs go on without it: those of its dead jobs and supervisors.
    """
    dead = {f"{_OURS}{os.path.basename(run.path)}" for run in runs if not run.alive}
    living = {(f"{_OURS}{entry.run}", entry.name) for entry in going_on.values()}
    for path in find(dead):
        run = os.path.basename(path)
        if not any(run == other for other, _ in living):
            yield path
            continue
        kept = {name for other, name in living if run == other} | {spare_name(pid) for pid in going_on}
        with suppress(OSError):
            yield from (entry.path for entry in os.scandir(path) if entry.is_dir() and entry.name not in kept)


def _lock_files(workdir: str) -> Iterator[str]:
    with suppress(OSError):
        yield from (f"{workdir}/{_LOCKS}/{name}" for name in os.listdir(f"{workdir}/{_LOCKS}"))


def _remove_locks(workdir: str) -> int:
    """Snakemake's own, in files or in its database; see its persistence package."""
    count = 0
    for path in _lock_files(workdir):
        os.unlink(path)
        count += 1
    if os.path.exists(f"{workdir}/{_DATABASE}"):
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"{workdir}/{_DATABASE}")) as database:
            count += database.execute("DELETE FROM snakemake_locks").rowcount  # no such table: an error
            database.commit()
    return count


def _has_marks(workdir: str) -> bool:
    return any(files for _, _, files in os.walk(f"{workdir}/{_INCOMPLETE}"))
