"""Scratch: the private temporary directory of a job, on disk.

A supervisor has one *slot* and uses it for one job after another, because making and deleting directories costs more
than anything else here: ext4 searches past recently deleted inodes. The slot contains the job's $TMPDIR, renamed for
each job; the job sees the slot itself as /tmp and /var/tmp.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ...kernel.tree import remove_tree
from ...spec.errors import SandboxError
from .directories import among_others, locked, make_shared, remove_if_empty, reset
from .disk_usage import Meter

_SLOT = re.compile(r"slot-(?P<pid>\d+)")
_KEPT = "kept-"
_YOUNG_SECONDS = 60.0
# Names that programs give to what nobody looks for later: known beginnings, a process id, a random end (mkstemp(3)).
_TEMPORARY = re.compile(
    r"^(\.|tmp|temp|pymp-|hsperfdata|Rtmp|snakemake|forge-|numba|matplotlib|pip-|npm-|conda|ssh-|systemd-|dask|ray|spark)"
    r"|[._-]\d{3,}$|[._-](?=\w*[a-z\d])(?=\w*[A-Z])[A-Za-z0-9]{6,}$|\.(lock|pid|sock|tmp)$|^cc[A-Za-z0-9]{6}\."
)
SEEN_AS = ("/tmp", "/var/tmp")  # noqa: S108


class Scratch:
    """``<base>/slot-<pid>/tmp`` (seen as /tmp) with ``forge-<job>`` ($TMPDIR) in it."""

    def __init__(self, base: str, private: tuple[str, ...]) -> None:
        """Make the slot, which only its owner can enter.

        Raises:
            SandboxError: naming the directory that could not be made.
        """
        self.base = base
        self.slot = slot_path(base, os.getpid())
        self.root = f"{self.slot}/tmp"  # noqa: S108
        self.assembly = f"{self.slot}/view"  # see mount_plan.mount_steps
        self.private = {d: self.root for d in private if d in SEEN_AS}
        self._inner = f"{self.root}/idle"
        try:
            among_others(self._make_slot)
            os.mkdir(self.root)
            os.chmod(self.root, 0o1777)  # as /tmp is; the base above it keeps others out
            os.mkdir(self._inner, 0o700)
        except OSError as error:
            raise SandboxError(
                f"the job's temporary directory {self.root} could not be made: {error.strerror}. "
                "Free space there, or name another place with --forge-scratch-dir."
            ) from error

    def _make_slot(self) -> None:
        os.makedirs(self.base, mode=0o700, exist_ok=True)
        os.makedirs(self.assembly, exist_ok=True)

    def begin(self, name: str) -> None:
        """Name the directory for the job ``name``.

        Raises:
            OSError: if another process has removed or changed the slot.
        """
        inner = f"{self.root}/forge-{name}"
        os.rename(self._inner, inner)
        self._inner = inner

    @property
    def is_private(self) -> bool:
        """Whether the job sees the slot as its /tmp, not at its real path."""
        return SEEN_AS[0] in self.private

    @property
    def seen_path(self) -> str:
        """$TMPDIR as the job sees it: short, because sockets have at most 108 characters for theirs (unix(7))."""
        return f"{SEEN_AS[0]}/{os.path.basename(self._inner)}" if self.is_private else self._inner

    def meter(self, limit_bytes: int | None, layers: tuple[tuple[str, str], ...]) -> Meter:
        """A meter of all that the job sees of the slot, and of its layers: see :class:`.disk_usage.Meter`."""
        return Meter(self.root, self._inner, SEEN_AS[0] if self.is_private else self.root, limit_bytes, layers)

    def inner_path(self, path: str) -> str | None:
        """The real path of a file directly in a private directory; None if the directory is not private here."""
        return f"{self.root}/{os.path.basename(path)}" if os.path.dirname(path) in self.private else None

    def left(self, seen: Iterable[str]) -> tuple[tuple[str, int], ...]:
        """Return files in /tmp that a job might want to be there later: paths, and bytes of files (else 0).

        Args:
            seen: paths of the job's mounts, some of which lie in /tmp, and of what is kept anyway.
        """
        if not self.is_private:
            return ()
        mounted = {path.split("/")[2] for path in seen if path.startswith(f"{SEEN_AS[0]}/")}
        mounted |= {path.split("/")[3] for path in seen if path.startswith(f"{SEEN_AS[1]}/")}
        mounted.add(os.path.basename(self._inner))
        found = []
        with suppress(OSError), os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name not in mounted and _TEMPORARY.search(entry.name) is None:
                    is_file = entry.is_file(follow_symlinks=False)
                    if is_file or entry.is_dir(follow_symlinks=False):
                        size = entry.stat(follow_symlinks=False).st_size if is_file else 0
                        found.append((f"{SEEN_AS[0]}/{entry.name}", size))
        return tuple(sorted(found))

    def end(self, exposed: tuple[str, ...]) -> None:
        """Empty the slot for the next job; where that fails, replace it by a new one.

        Args:
            exposed: paths in the real /tmp that the job saw. Their mount points stay, because the next job most likely
                needs them too.
        """
        try:
            _empty(self.root, frozenset([self._inner, *self._mount_points(exposed)]))
            reset(self._inner, 0o700, os.geteuid(), os.getegid())
            reset(self.root, 0o1777, os.geteuid(), os.getegid())
        except OSError:
            self.remove()
            Scratch.__init__(self, self.base, tuple(self.private))

    def _mount_points(self, exposed: tuple[str, ...]) -> Iterator[str]:
        for path in exposed:
            for directory in self.private:
                if path.startswith(directory + "/"):
                    parts = path.removeprefix(directory + "/").split("/")
                    yield from ("/".join([self.root, *parts[:n]]) for n in range(1, len(parts) + 1))

    def keep(self) -> str:
        """Keep what the job has left in the slot, and return the path; the next job gets a new slot.

        Raises:
            OSError: if it cannot be renamed.
        """
        kept = f"{self.base}/{_KEPT}{os.path.basename(self._inner)}"
        os.rename(self.root, kept)
        self.remove()  # the rest of the slot
        return kept

    def remove(self) -> None:
        """Remove the slot and, if it was the last one, the base."""
        remove_slot(self.base, self.slot)


class ScratchPool:
    """The scratch directory of a supervisor, which it reuses for one job after another."""

    def __init__(self, private: tuple[str, ...]) -> None:
        self._private = private
        self._free: Scratch | None = None

    def take(self, base: str) -> Scratch:
        """Return an empty scratch directory below ``base``.

        Raises:
            SandboxError: if it cannot be made.
        """
        free, self._free = self._free, None
        if free is not None and free.base == base:
            return free
        if free is not None:
            free.remove()
        return Scratch(base, self._private)

    def give_back(self, scratch: Scratch, exposed: tuple[str, ...]) -> None:
        """Empty the directory for the next job: see :meth:`Scratch.end`."""
        scratch.end(exposed)
        self._free = scratch

    def close(self) -> None:
        """Remove the directory."""
        if self._free is not None:
            self._free.remove()


def seen_path(name: str) -> str:
    """$TMPDIR of the job ``name`` where /tmp is private: see :attr:`Scratch.seen_path`."""
    return f"{SEEN_AS[0]}/forge-{name}"


def slot_path(base: str, pid: int) -> str:
    """The slot of the supervisor ``pid``."""
    return f"{base}/slot-{pid}"


def slots(base: str) -> Iterator[tuple[str, int]]:
    """Yield the path of each slot in a base, with the pid of its supervisor.

    Raises:
        OSError: if there is no such base.
    """
    for name in sorted(os.listdir(base)):
        if match := _SLOT.fullmatch(name):
            yield f"{base}/{name}", int(match["pid"])


def kept_path(base: str, name: str) -> str:
    """The path of a directory in a base that :func:`kept_directories` lists."""
    return f"{base}/{_KEPT}forge-{name}"


def kept_directories(base: str) -> Iterator[str]:
    """Yield the directories in a base that :meth:`Scratch.keep` has made.

    Raises:
        OSError: if there is no such base.
    """
    yield from (f"{base}/{name}" for name in sorted(os.listdir(base)) if name.startswith(f"{_KEPT}forge-"))


def remove_slot(base: str, slot: str) -> None:
    """Remove a slot and, if it was the last one, its base. Never follows a link."""
    remove_tree(slot)
    remove_if_empty(base)


def hold(base: str) -> None:
    """Make a base and lock it until this process ends, so that no other process removes it: :func:`remove_abandoned`.

    A lock (flock(2)) rather than a pid, because pids say nothing where containers on one host share a /tmp. On a file
    system without locks no process removes any base.

    Raises:
        SandboxError: naming the directory that could not be made.
    """
    try:
        make_shared(base)
        os.chmod(base, 0o700)
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError(f"the directory for temporary files {base} could not be made: {error.strerror}") from error
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_abandoned(directory: str, pattern: re.Pattern[str]) -> list[str]:
    """Remove the slots in this user's bases that no process holds, and the bases that are empty then.

    Args:
        directory: contains the bases.
        pattern: of the names of bases whose users hold them.

    Returns:
        The removed slots.
    """
    removed: list[str] = []
    with suppress(OSError):  # an unreadable directory stays
        for name in filter(pattern.fullmatch, os.listdir(directory)):
            base = f"{directory}/{name}"
            with suppress(OSError):
                status = os.lstat(base)
                if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _YOUNG_SECONDS:
                    continue  # it is another user's, or so new that its maker may not hold it yet
                with locked(base):
                    for slot, _ in list(slots(base)):
                        remove_slot(base, slot)
                        removed.append(slot)
                    remove_if_empty(base)
    return removed


def _empty(directory: str, keep: frozenset[str]) -> None:
    """Remove all below ``directory`` except the directories in ``keep``, which it empties likewise."""
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
            elif entry.path in keep:
                _empty(entry.path, keep)
            elif not remove_tree(entry.path):
                raise OSError(errno.ENOTEMPTY, "it cannot be removed", entry.path)
