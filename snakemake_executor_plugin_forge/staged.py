"""What goes on, or waits, without the Snakemake that started it; and the one who may publish it.

::

    <state>/adoptable/<run>.<attempt>    an entry: from before such a job starts to when nobody needs to know of it
    <job directory>/staged.json          what it has written, and where that belongs
    <job directory>/verdict.json         with "staged": true, from when all of this is on disk

Who wants to publish, discard or take over an entry locks its file (flock(2), which ends with the process), and looks
whether it is still there. A supervisor that is alone never publishes. So nobody publishes twice, and who is killed in
between leaves what the next one finds: the entry, and perhaps a journal to be followed.
"""

from __future__ import annotations

import enum
import fcntl
import json
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .errors import UnfitError
from .faults import reached
from .model import RECORD_SCHEMA, LaunchSpec, Verdict
from .publish import JOURNAL, Identity, Move, identity, publish, publish_one, recover, sync
from .record.identity import boot_id, lives, start_time
from .record.jsonfile import amend, load, replace_file, write_file
from .record.layout import ADOPTABLE, STAGED, VERDICT
from .record.verdicts import verdict_of
from .sameness import Identity as Sameness
from .sandbox.directories import remove_if_empty, remove_tree


class Status(enum.Enum):
    """How far the job of an entry is."""

    RUNNING = "running"
    STAGED = "staged"
    OVER = "over"  # it failed, or was published, or its supervisor died
    ELSEWHERE = "elsewhere"  # on a host of which nothing can be said


@dataclass(frozen=True, slots=True)
class Entry:
    """One of them."""

    path: str
    run: str
    name: str
    directory: str  # of the attempt
    pid: int  # of its supervisor
    start_time: int
    boot_id: str
    host: str
    cpus: int
    memory_bytes: int | None
    identity: Sameness

    @property
    def rule(self) -> str:
        """Its rule."""
        return self.identity.rule

    def supervised(self) -> bool:
        """Whether its supervisor lives, on this host."""
        return self.host == socket.gethostname() and lives(self.pid, self.start_time, self.boot_id)

    def status(self) -> Status:
        """Now."""
        alive = self.supervised()  # before the verdict is looked for, which it may just be writing
        verdict = load(f"{self.directory}/{VERDICT}")
        if verdict is not None:
            return Status.STAGED if verdict.get("staged") else Status.OVER
        if alive:
            return Status.RUNNING
        return Status.ELSEWHERE if self.host != socket.gethostname() else Status.OVER


# -- the supervisor's part --------------------------------------------------------------------------------------------


def announce(spec: LaunchSpec, sameness: Sameness) -> str:
    """Before a job starts that will go on without Snakemake: have it found.

    Returns:
        The path of its entry, for :func:`withdraw`.

    Raises:
        OSError: if it cannot be written.

    """
    run = os.path.basename(os.path.dirname(spec.job_dir))
    path = entry_path(spec)
    data = {
        "schema": RECORD_SCHEMA,
        "run": run,
        "name": spec.name,
        "directory": spec.job_dir,
        "pid": os.getpid(),
        "start_time": start_time(os.getpid()),
        "boot_id": boot_id(),
        "host": socket.gethostname(),
        "cpus": spec.limits.cpus,
        "memory_bytes": spec.limits.memory_bytes,
        "identity": sameness.as_json(),
    }
    _write_entry(path, json.dumps(data).encode())
    return path


def _write_entry(path: str, data: bytes) -> None:
    """In one call, and not by a rename: on ext4 each new name costs as much as all else. Half of one is no entry."""
    try:
        write_file(path, data)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, data)


def entry_path(spec: LaunchSpec) -> str:
    """Where the entry of a job is, if it has one."""
    run = os.path.dirname(spec.job_dir)
    state = os.path.dirname(os.path.dirname(run))
    return f"{state}/{ADOPTABLE}/{os.path.basename(run)}.{spec.name}"


def withdraw(path: str) -> None:
    """Nobody needs to know of it any more."""
    with suppress(OSError):
        os.unlink(path)


@dataclass(frozen=True, slots=True)
class Staging:
    """What a job has written and where that belongs."""

    moves: tuple[Move, ...]
    logs: tuple[Move, ...]
    stale_logs: tuple[str, ...]
    before: Mapping[str, Identity | None]  # what was at the places when the job started
    directories: tuple[str, ...]  # that hold all of this, and go when it is published
    journal: str  # directory

    def save(self, job_dir: str) -> None:
        """Bring it and all that it names to the disk.

        Raises:
            OSError: if that is not possible.

        """
        sync(list(self.moves))
        data = {
            "schema": RECORD_SCHEMA,
            "moves": [[move.source, move.place, move.inode] for move in self.moves],
            "logs": [[move.source, move.place, move.inode] for move in self.logs],
            "stale_logs": self.stale_logs,
            "before": self.before,
            "directories": self.directories,
            "journal": self.journal,
        }
        replace_file(f"{job_dir}/{STAGED}", json.dumps(data), durable=True)

    @classmethod
    def read(cls, job_dir: str) -> Staging:
        """What :meth:`save` wrote.

        Raises:
            UnfitError: if there is none that can be read.

        """
        try:
            with open(f"{job_dir}/{STAGED}", "rb") as file:
                data = json.loads(file.read())
            return cls(
                moves=tuple(Move(*move) for move in data["moves"]),
                logs=tuple(Move(*move) for move in data["logs"]),
                stale_logs=tuple(data["stale_logs"]),
                before={place: tuple(found) if found else None for place, found in data["before"].items()},
                directories=tuple(data["directories"]),
                journal=str(data["journal"]),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UnfitError(f"{job_dir}/{STAGED} cannot be read: {error}") from error

    def published(self) -> bool:
        """Whether all of it is at its places."""
        return all((found := identity(move.place)) is not None and found[0] == move.inode for move in self.moves)

    def check(self) -> None:
        """See whether it can be published now.

        Raises:
            UnfitError: if it is gone, or somebody has changed the places meanwhile.

        """
        for move in self.moves:
            found = identity(move.source)
            if found is None or found[0] != move.inode:
                raise UnfitError(f"{move.source}, which was staged for {move.place}, is not there any more")
        for place, before in self.before.items():
            if identity(place) != before:
                raise UnfitError(f"{place} was changed by somebody else since it was started")


# -- who comes after -------------------------------------------------------------------------------------------------


def entries(state: str) -> list[Entry]:
    """All entries of this user in a state directory, oldest first; those that cannot be read are left out."""
    directory = f"{state}/{ADOPTABLE}"
    found = []
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            if not name.startswith("."):
                entry = _read_entry(f"{directory}/{name}")
                if entry is not None:
                    found.append(entry)
    return found


def _read_entry(path: str) -> Entry | None:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            data = json.loads(file.read())
        return Entry(
            path=path,
            run=str(data["run"]),
            name=str(data["name"]),
            directory=f"{os.path.dirname(os.path.dirname(path))}/runs/{data['run']}/{data['name']}",
            pid=int(data["pid"]),
            start_time=int(data["start_time"]),
            boot_id=str(data["boot_id"]),
            host=str(data["host"]),
            cpus=int(data["cpus"]),
            memory_bytes=None if data["memory_bytes"] is None else int(data["memory_bytes"]),
            identity=Sameness.from_json(data["identity"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


class Claim:
    """The right to decide over an entry, until it is released or this process ends."""

    def __init__(self, entry: Entry, fd: int) -> None:
        """Use :func:`claim`."""
        self.entry = entry
        self._fd = fd

    def release(self) -> None:
        """Leave it to others."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def check(self) -> None:
        """See whether what is staged could be published now.

        Raises:
            UnfitError: if not.

        """
        Staging.read(self.entry.directory).check()

    def publish(self, adopted: str) -> Verdict:
        """Bring what is staged to its places, all of it or nothing, and take note.

        Args:
            adopted: who does it, for the record.

        Returns:
            The verdict as the record has it now.

        Raises:
            UnfitError: if it cannot be published any more.
            OSError: if that failed; everything is as it was.

        """
        entry = self.entry
        staging = Staging.read(entry.directory)
        if not recover(staging.journal) and not staging.published():
            staging.check()
            reached("adopting", entry.rule)
            publish(list(staging.moves), staging.journal)
        reached("adopted", entry.rule)
        self._publish_logs(staging)
        verdict = self._note({"staged": False, "adopted": adopted})
        reached("adoption noted", entry.rule)
        self._clear(staging)
        return verdict

    def _publish_logs(self, staging: Staging) -> None:
        for path in staging.stale_logs:
            with suppress(OSError):
                os.unlink(path)
        for move in staging.logs:
            with suppress(OSError):  # a log is no reason to fail a job; after a crash it is there already
                if (found := identity(move.source)) is not None and found[0] == move.inode:
                    publish_one(move)

    def mark(self, adopted: str) -> Verdict:
        """Note that the job of a run was adopted that has brought itself to its end."""
        verdict = self._note({"adopted": adopted})
        withdraw(self.entry.path)
        self.release()
        return verdict

    def discard(self, why: str) -> None:
        """Remove what is staged, and note why."""
        if (load(f"{self.entry.directory}/{VERDICT}") or {}).get("staged"):
            self._note({"staged": False, "discarded": why})
        try:
            staging = Staging.read(self.entry.directory)
        except UnfitError:  # then somebody sweeps its layers up as those of a dead run
            withdraw(self.entry.path)
            self.release()
            return
        self._clear(staging)

    def _note(self, change: Mapping[str, Any]) -> Verdict:
        return verdict_of(amend(f"{self.entry.directory}/{VERDICT}", change), self.entry.directory)

    def _clear(self, staging: Staging) -> None:
        """The entry goes last: who is killed before that is followed by somebody who finds it."""
        for directory in staging.directories:
            remove_tree(directory)
            remove_if_empty(os.path.dirname(directory))
        reached("adoption cleared", self.entry.rule)
        withdraw(self.entry.path)
        with suppress(OSError):
            os.unlink(f"{self.entry.directory}/{STAGED}")
        self.release()


def claim(entry: Entry) -> Claim | None:
    """Lock an entry; None if somebody else has it, or it is gone.

    Raises:
        OSError: if it cannot be locked at all: a file system without locks.

    """
    fd = -1
    try:
        fd = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(entry.path, follow_symlinks=False)):
            held, fd = Claim(entry, fd), -1
            return held
    except (FileNotFoundError, BlockingIOError):
        pass
    finally:
        if fd >= 0:
            os.close(fd)
    return None


def settle(state: str, adopted: str) -> list[str]:
    """Bring to its end what a run that was killed had begun to do with entries.

    Args:
        adopted: who does it, for the record.

    Returns:
        The places of what was published.

    Raises:
        OSError: if a journal cannot be followed to its end.

    """
    published: list[str] = []
    for entry in entries(state):
        status = entry.status()
        if status not in (Status.STAGED, Status.OVER) or entry.supervised():
            continue
        held = None
        with suppress(OSError):
            held = claim(entry)
        if held is None:
            continue
        try:
            if status is Status.OVER:  # nobody needs what is left of it
                held.discard("")
            elif _begun(entry):
                published += [move.place for move in Staging.read(entry.directory).moves]
                held.publish(adopted)
        except UnfitError as error:
            held.discard(str(error))
        finally:
            held.release()
    return published


def _begun(entry: Entry) -> bool:
    """Whether somebody had begun to publish it; then it is done, because it was wanted."""
    staging = Staging.read(entry.directory)
    return os.path.exists(f"{staging.journal}/{JOURNAL}") or staging.published()


def tell(entry: Entry, number: int) -> None:
    """Send a signal to the supervisor of an entry, and not to who has got its number since. No error if it is dead."""
    with suppress(OSError):
        fd = os.pidfd_open(entry.pid)
        try:
            if entry.supervised():
                signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)


def wanted(state: str) -> frozenset[str]:
    """The directories that hold what is staged, and must stay."""
    found: set[str] = set()
    for entry in entries(state):
        if entry.status() is Status.STAGED:
            with suppress(UnfitError):
                found.update(Staging.read(entry.directory).directories)
    return frozenset(found)


def alone(state: str) -> dict[int, Entry]:
    """The supervisors of this host that live and have an entry, by pid."""
    return {entry.pid: entry for entry in entries(state) if entry.supervised()}
