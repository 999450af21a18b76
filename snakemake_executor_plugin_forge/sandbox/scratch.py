"""The private temporary directory of a job, on disk: made before it, measured and emptied after it.

A supervisor keeps one *slot* and uses it for one job after the other, because making and deleting directories costs
more than anything else here: ext4 searches past recently deleted inodes. In the slot is the job's $TMPDIR, renamed for
each job; the slot itself is what the job sees as /tmp and /var/tmp.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import SandboxError
from .directories import among_others, make_shared, remove_if_empty, remove_tree
from .disk import Meter

_SLOT = re.compile(r"slot-(?P<pid>\d+)")
_YOUNG_SECONDS = 60.0
SEEN_AS = ("/tmp", "/var/tmp")  # noqa: S108


class Scratch:
    """``<base>/slot-<pid>/tmp`` (seen as /tmp) with ``forge-<job>`` ($TMPDIR) in it."""

    def __init__(self, base: str, private: tuple[str, ...]) -> None:
        """Make the slot, for its owner only.

        Raises:
            SandboxError: naming the directory that could not be made.

        """
        self.base = base
        self.slot = slot_path(base, os.getpid())
        self.root = f"{self.slot}/tmp"  # noqa: S108
        self.places = f"{self.slot}/view"  # for view.view_steps
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
        os.makedirs(self.places, exist_ok=True)

    def begin(self, name: str) -> None:
        """Give the slot to a job.

        Raises:
            OSError: if it was removed or changed from outside.

        """
        inner = f"{self.root}/forge-{name}"
        os.rename(self._inner, inner)
        self._inner = inner

    @property
    def is_private(self) -> bool:
        """Whether the job sees it as its /tmp, and not where it is."""
        return SEEN_AS[0] in self.private

    @property
    def seen_path(self) -> str:
        """$TMPDIR as the job sees it: short, because sockets have at most 108 characters for theirs (unix(7))."""
        return f"{SEEN_AS[0]}/{os.path.basename(self._inner)}" if self.is_private else self._inner

    def meter(self, limit_bytes: int | None, staged: tuple[tuple[str, str], ...]) -> Meter:
        """What measures all of the slot that the job sees, and the directories of its layers."""
        return Meter(self.root, self._inner, SEEN_AS[0] if self.is_private else self.root, limit_bytes, staged)

    def inner_path(self, path: str) -> str | None:
        """Where a file that lies directly in a private directory is; None if that directory is not private here."""
        return f"{self.root}/{os.path.basename(path)}" if os.path.dirname(path) in self.private else None

    def end(self, exposed: tuple[str, ...]) -> None:
        """Empty the slot for the next job; replaced by a new one where that does not work out.

        Args:
            exposed: what the job saw of the real /tmp. The empty directories on which that was mounted stay, as the
                next job most likely needs them again.
        """
        try:
            _empty(self.root, frozenset([self._inner, *self._mount_points(exposed)]))
            os.chmod(self._inner, 0o700)
            os.chmod(self.root, 0o1777)
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
        """Put the slot aside for good, with what the job left in it, and return where; the next job gets a new one.

        Raises:
            OSError: if it cannot be renamed.

        """
        kept = f"{self.base}/kept-{os.path.basename(self._inner)}"
        os.rename(self.root, kept)
        self.remove()  # what is left of the slot
        return kept

    def remove(self) -> None:
        """Remove the slot and, if it was the last one, the base."""
        remove_slot(self.base, self.slot)


class Slots:
    """The scratch directory that a supervisor keeps from one job to the next."""

    def __init__(self, private: tuple[str, ...]) -> None:
        self._private = private
        self._free: Scratch | None = None

    def take(self, base: str) -> Scratch:
        """An empty scratch directory below ``base``.

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
        """Empty it for the next job: see :meth:`Scratch.end`."""
        scratch.end(exposed)
        self._free = scratch

    def close(self) -> None:
        """Remove it."""
        if self._free is not None:
            self._free.remove()


def seen_path(name: str) -> str:
    """$TMPDIR of the job ``name`` where /tmp is private: see :attr:`Scratch.seen_path`."""
    return f"{SEEN_AS[0]}/forge-{name}"


def slot_path(base: str, pid: int) -> str:
    """The slot of the supervisor ``pid``."""
    return f"{base}/slot-{pid}"


def slots(base: str) -> Iterator[tuple[str, int]]:
    """The slots in a base, each with the supervisor whose it was.

    Raises:
        OSError: if there is no such base.

    """
    for name in sorted(os.listdir(base)):
        match = _SLOT.fullmatch(name)
        if match is not None:
            yield f"{base}/{name}", int(match["pid"])


def remove_slot(base: str, slot: str) -> None:
    """Remove a slot, also that of a supervisor that died; never follows a link."""
    remove_tree(slot)
    remove_if_empty(base)


def hold(base: str) -> None:
    """Make a base and hold it until this process ends, whatever ends it: :func:`remove_abandoned` of others leaves it.

    By a lock (flock(2)), because the number of a process says nothing where containers on one host share a /tmp. On a
    file system without locks nobody holds anything, and nobody removes anything.

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
    """Remove the slots in bases of this user that nobody holds, and the bases if nothing else is in them.

    Args:
        directory: where the bases are.
        pattern: of the names of bases that are held by whoever uses them.

    Returns:
        The slots that were removed.

    """
    removed: list[str] = []
    with suppress(OSError):  # what cannot be looked at stays
        for name in filter(pattern.fullmatch, os.listdir(directory)):
            base = f"{directory}/{name}"
            with suppress(OSError), _held(base):
                for slot, _ in list(slots(base)):
                    remove_slot(base, slot)
                    removed.append(slot)
                remove_if_empty(base)
    return removed


@contextmanager
def _held(base: str) -> Iterator[None]:
    """Like :func:`hold`, for a while.

    Raises:
        OSError: if another process holds it, or it is somebody else's, or so new that it is about to be held.

    """
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _YOUNG_SECONDS:
            raise OSError(errno.EBUSY, "in use", base)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _empty(directory: str, keep: frozenset[str]) -> None:
    """Remove all below ``directory`` but the directories in ``keep``, which are emptied in the same way."""
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
            elif entry.path in keep:
                _empty(entry.path, keep)
            else:
                remove_tree(entry.path)
