"""Pending jobs: they run, or their outputs wait to be published, without the Snakemake that started them.

::

    <state>/adoptable/<run>.<attempt>    an entry, from before such a job starts until it is adopted or discarded
    <job directory>/staged.json          the outputs that wait, and their places
    <job directory>/verdict.json         with "staged": true, from when all of these are on disk

A process that wants to publish, discard or adopt an entry locks its file (flock(2), which ends with the process), and
checks that the file is still there. A detached supervisor never publishes. So no job is published twice, and a process
that is killed leaves the entry, and perhaps a journal, for the next one to complete.
"""

from __future__ import annotations

import enum
import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ..kernel.failpoints import reached
from ..kernel.plain_paths import unlink
from ..kernel.tree import remove_tree
from ..record.codec import encode, read_verdict
from ..record.identity import is_here, lives, process_number, this_process
from ..record.jsonfile import ADOPTABLE, STAGED, VERDICT, amend, load, parse, write_file
from ..sandbox.filesystem.directories import remove_if_empty
from ..spec.errors import UnfitError
from ..spec.job import RECORD_SCHEMA, LaunchSpec
from ..spec.paths import STATE
from ..spec.verdict import Verdict
from .confines import Confines
from .fingerprint import Fingerprint
from .publish import publish_one
from .waiting import WaitingOutputs

_MOST_BYTES = 1 << 26  # of an entry
_AS_STAGED, _OF_OUTCOME = "as_staged", ("outcome", "cause", "reason", "happened", "remedy")


class Status(enum.Enum):
    """The state of an entry's job."""

    RUNNING = "running"
    WAITING = "waiting"  # it succeeded, and its outputs wait for a run to adopt them
    OVER = "over"  # it failed, or was published, or its supervisor died
    ELSEWHERE = "elsewhere"  # on another host, whose processes are unknown


@dataclass(frozen=True, slots=True)
class Entry:
    """The entry of one job."""

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
    identity: Fingerprint
    pid_namespace: int | None = None  # None: an older Forge wrote it

    @property
    def rule(self) -> str:
        """The rule of the job."""
        return self.identity.rule

    def supervised(self) -> bool:
        """Whether the supervisor is alive on this host."""
        return self._is_here() and lives(self.pid, self.start_time, self.boot_id)

    def status(self) -> Status:
        """The present state of the job."""
        alive = self.supervised()  # before reading the verdict, which the supervisor may just be writing
        verdict = load(f"{self.directory}/{VERDICT}")
        if verdict is not None:
            return Status.WAITING if verdict.get("staged") else Status.OVER
        if alive:
            return Status.RUNNING
        return Status.OVER if self._is_here() else Status.ELSEWHERE

    def _is_here(self) -> bool:
        return is_here({"host": self.host, "pid_namespace": self.pid_namespace})


# -- in the supervisor --------------------------------------------------------------------------------------------


def add_entry(spec: LaunchSpec, fingerprint: Fingerprint) -> str:
    """Write the entry of a job that may run on without Snakemake, before it starts; in its supervisor.

    Returns:
        The path of the entry, for :func:`remove_entry`.

    Raises:
        OSError: if the entry cannot be written.
    """
    entry = Entry(
        path=entry_path(spec),
        run=os.path.basename(os.path.dirname(spec.job_dir)),
        name=spec.name,
        directory=spec.job_dir,
        **this_process(),
        cpus=spec.limits.cpus,
        memory_bytes=spec.limits.memory_bytes,
        identity=fingerprint,
    )
    data = {"schema": RECORD_SCHEMA, **asdict(entry)}
    del data["path"]
    _write_entry(entry.path, json.dumps(data).encode())
    return entry.path


def _write_entry(path: str, data: bytes) -> None:
    """Write without a rename: on ext4 each new name costs as much as all else. A partial entry does not count."""
    try:
        write_file(path, data)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, data)


def entry_path(spec: LaunchSpec) -> str:
    """The path of a job's entry, whether it has one or not."""
    run = os.path.dirname(spec.job_dir)
    state = os.path.dirname(os.path.dirname(run))
    return f"{state}/{ADOPTABLE}/{os.path.basename(run)}.{spec.name}"


def remove_entry(path: str) -> None:
    """Remove the entry of a job that needs no more attention."""
    with suppress(OSError):
        os.unlink(path)


def waiting_outputs(entry: Entry) -> WaitingOutputs:
    """Read what waits to be published for an entry.

    Raises:
        UnfitError: if the file is missing or damaged, or names what no job of its run publishes.
    """
    found = WaitingOutputs.read(entry.directory)
    confines = confines_of(entry, found)
    wrong = confines.outside((*found.moves, *found.logs))
    wrong += [path for path in (found.journal, *found.directories) if not confines.is_staging(path)]
    wrong += [path for path in found.stale_logs if not confines.has_place(path)]
    wrong += [found.journal] if confines.run != entry.run else []
    scene = found.undeclared
    if scene is not None:
        wrong += [path for path in (scene.state,) if path != f"{_workdir(entry)}/{STATE}"]
        wrong += [layer.upper for layer in scene.layers if not confines.is_layer(layer.upper, layer.root)]
    if wrong:
        raise UnfitError(
            f"{entry.directory}/{STAGED} names files that no job of its run publishes: {', '.join(wrong[:3])}"
        )
    return found


def confines_of(entry: Entry, outputs: WaitingOutputs) -> Confines:
    """The confines of what waits."""
    return Confines(_workdir(entry), outputs.journal)


def _workdir(entry: Entry) -> str:
    """The working directory as its run has named it, whatever links have led to the entry now."""
    return os.path.realpath(entry.path.rpartition(f"/{STATE}/{ADOPTABLE}/")[0])


# -- in later runs -------------------------------------------------------------------------------------------------


def entries(state: str) -> list[Entry]:
    """The readable entries of this user in a state directory, oldest first."""
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
            data = parse(file.read(_MOST_BYTES).decode("utf-8", "surrogateescape"))
        if any("/" in data[key] or data[key] in ("", ".", "..") for key in ("run", "name")):
            return None
        return Entry(
            path=path,
            run=str(data["run"]),
            name=str(data["name"]),
            directory=f"{os.path.dirname(os.path.dirname(path))}/runs/{data['run']}/{data['name']}",
            pid=process_number(data["pid"]),
            start_time=int(data["start_time"]),
            boot_id=str(data["boot_id"]),
            host=str(data["host"]),
            cpus=int(data["cpus"]),
            memory_bytes=None if data["memory_bytes"] is None else int(data["memory_bytes"]),
            identity=Fingerprint.from_json(data["identity"]),
            pid_namespace=None if (found := data.get("pid_namespace")) is None else int(found),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


class EntryClaim:
    """The exclusive right to publish or discard an entry's outputs, until it is released or this process ends."""

    def __init__(self, entry: Entry, fd: int) -> None:
        """Take over a locked descriptor; use :func:`claim`."""
        self.entry = entry
        self._fd = fd

    def release(self) -> None:
        """Release the right."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def check(self) -> None:
        """Check that the outputs can be published now.

        Raises:
            UnfitError: if they cannot.
        """
        waiting_outputs(self.entry).check()

    def publish(self, adopted: str) -> Verdict:
        """Publish all outputs, or none, and note that in the verdict.

        Args:
            adopted: who does it, for the record.

        Returns:
            The amended verdict.

        Raises:
            UnfitError: if the outputs cannot be published any more.
            UndecidedError: if an earlier process had begun that, and it cannot be completed any more.
            OSError: if that failed; all places are then as they were.
        """
        entry = self.entry
        outputs = waiting_outputs(entry)
        if not outputs.recover(confines_of(entry, outputs)) and not outputs.published():
            outputs.check()
            reached("adopting", entry.rule)
            outputs.publish()
        reached("adopted", entry.rule)
        self._publish_logs(outputs)
        as_staged = (load(f"{entry.directory}/{VERDICT}") or {}).get(_AS_STAGED) or {}
        verdict = self._note({"staged": False, "adopted": adopted, **as_staged, _AS_STAGED: None})
        reached("adoption noted", entry.rule)
        self._clear(outputs)
        return verdict

    def _publish_logs(self, outputs: WaitingOutputs) -> None:
        for path in outputs.stale_logs:
            with suppress(OSError):
                unlink(path)
        for move in outputs.logs:
            with suppress(OSError):  # a missing log fails no job; after a crash it may be there already
                if move.is_at(move.source):
                    publish_one(move)

    def note_failure(self, verdict: Verdict) -> None:
        """Note that its outputs could not be published. They wait on, for a run that can."""
        found, failed = load(f"{self.entry.directory}/{VERDICT}") or {}, encode(verdict)
        before = found.get(_AS_STAGED) or {key: found.get(key) for key in _OF_OUTCOME}
        amend(f"{self.entry.directory}/{VERDICT}", {key: failed[key] for key in _OF_OUTCOME} | {_AS_STAGED: before})

    def mark(self, adopted: str) -> Verdict:
        """Note in the verdict that a job was adopted which needs no publication, and remove its entry."""
        verdict = self._note({"adopted": adopted})
        remove_entry(self.entry.path)
        self.release()
        return verdict

    def discard(self, why: str) -> None:
        """Remove the outputs, and note why in the verdict."""
        if (load(f"{self.entry.directory}/{VERDICT}") or {}).get("staged"):
            self._note({"staged": False, "discarded": why})
        try:
            outputs = waiting_outputs(self.entry)
        except UnfitError:  # its layers remain leftovers of a dead run
            remove_entry(self.entry.path)
            self.release()
            return
        self._clear(outputs)

    def _note(self, change: Mapping[str, Any]) -> Verdict:
        amend(f"{self.entry.directory}/{VERDICT}", change)
        verdict = read_verdict(self.entry.directory)
        if verdict is None:
            raise UnfitError("its verdict cannot be read")
        return verdict

    def _clear(self, outputs: WaitingOutputs) -> None:
        """Remove the directories and then the entry, so that after a crash another process finds it and continues."""
        for directory in outputs.directories:
            remove_tree(directory)
            remove_if_empty(os.path.dirname(directory))
        reached("adoption cleared", self.entry.rule)
        remove_entry(self.entry.path)
        with suppress(OSError):
            os.unlink(f"{self.entry.directory}/{STAGED}")
        self.release()


def claim(entry: Entry) -> EntryClaim | None:
    """Lock an entry; None if another process has it locked, or it is gone.

    Raises:
        OSError: if it cannot be locked, as on a file system without locks.
    """
    fd = -1
    try:
        fd = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(entry.path, follow_symlinks=False)):
            held, fd = EntryClaim(entry, fd), -1
            return held
    except (FileNotFoundError, BlockingIOError):
        pass
    finally:
        if fd >= 0:
            os.close(fd)
    return None
