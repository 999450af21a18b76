"""Which files a job opens: fanotify marks on the mounts that only this job has.

Sources: fanotify(7), fanotify_init(2), fanotify_mark(2), linux/fanotify.h.

Every event brings a descriptor of the file, whose link in /proc/self/fd says the path. Events with names instead of
descriptors (FAN_REPORT_DFID_NAME) would be cheaper to read, but the kernel does not give them for an overlay, and that
is what a job's working directory is.

Costs, roughly: the job waits a microsecond for each open; whoever reads spends 5 to 10 on each file, and next to
nothing on a file that is opened again and again.

What is not seen: files of which only the attributes are asked for (stat), directories that are listed, and whatever is
opened in a mount namespace that the job makes itself. What is seen as well: files that are opened to be written.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from ..errors import AuditUnavailable
from . import pseudofile

_FAN_CLOEXEC, _FAN_NONBLOCK = 0x1, 0x2
_FAN_UNLIMITED_QUEUE, _FAN_UNLIMITED_MARKS = 0x10, 0x20
_ADD, _IGNORED, _MOUNT, _WHATEVER_HAPPENS = 0x1, 0x20, 0x10, 0x40
_FAN_OPEN = 0x20  # execve(2) opens as well
_Q_OVERFLOW = 0x4000
_AT_FDCWD = -100
_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_VERSION = 3
_BATCH = 64
"""Events that are read at once: as many descriptors are open at a time."""
_OFTEN = 3
"""A file that is opened so often is not reported by the kernel any more."""
_DELETED = " (deleted)"

_libc = ctypes.CDLL(None, use_errno=True)


class Opened(NamedTuple):
    """A file that was opened."""

    mount: int
    """Which of the mounts: its place in the list that :class:`Audit` was given."""
    path: str
    """Relative to the root of the mount; its name when it was looked up, if it has been renamed since."""


class _Mount(NamedTuple):
    """One that is marked."""

    fd: int
    number: str  # of the kernel: mnt_id of proc_pid_fdinfo(5)
    path: str  # in the mount namespace of the job


def refusal() -> str:
    """Why there can be no audit here; empty if there can."""
    try:
        os.close(_group())
    except AuditUnavailable as error:
        return str(error)
    return ""


def descriptors(paths: Iterable[str]) -> list[int]:
    """In a process that is in the job's mount namespace: what :class:`Audit` wants, to be sent with SCM_RIGHTS.

    Args:
        paths: of the roots of mounts.

    Raises:
        OSError: if one cannot be opened.

    """
    return [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths]


class Audit:
    """A list of files that grows while a job runs: wait for :meth:`fileno` to be readable, then :meth:`read`."""

    complete: bool
    """False once the kernel has lost events."""

    def __init__(self, mounts: Sequence[int]) -> None:
        """Report from now on.

        Args:
            mounts: descriptors of the roots of mounts, as they are when the job starts; closed by :meth:`close`.

        Raises:
            AuditUnavailable: without CAP_SYS_ADMIN on the host itself, or if the kernel has no fanotify.

        """
        self.complete = True
        self._own = os.getpid()
        self._group = _group()
        self._mounts: list[_Mount] = []
        self._counts: dict[str, int] = {}  # the link of a file to how often it was opened
        self._reported: set[Opened] = set()
        try:
            for fd in mounts:
                _mark(self._group, _ADD | _MOUNT, f"/proc/self/fd/{fd}")
                self._mounts.append(_Mount(fd, _mount_number(fd), os.readlink(f"/proc/self/fd/{fd}")))
        except OSError as error:
            os.close(self._group)
            raise AuditUnavailable(f"the kernel refuses to report opened files: {error.strerror}") from error

    def fileno(self) -> int:
        """For poll(2). Does not block."""
        return self._group

    def ignore(self, path: str) -> None:
        """Do not report this file: meant for named pipes.

        The kernel opens what it reports once more, so that a pipe would have a reader for an instant, and who waits for
        one to write would go on. Linux 6.18 does not report named pipes at all (tried); of older ones it is not known.

        Args:
            path: as this process sees it.

        Raises:
            OSError: if there is none.

        """
        _mark(self._group, _ADD | _IGNORED | _WHATEVER_HAPPENS, path)

    def read(self) -> list[Opened]:
        """Files that were opened and have not been reported yet. Never blocks."""
        found: list[Opened] = []
        while True:
            try:
                data = os.read(self._group, _EVENT.size * _BATCH)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL, errno.EFAULT):
                    raise
                self.complete = False  # the file could not be opened for its event: too many are open, it is gone, …
                continue
            found += self._batch(data)

    def close(self) -> None:
        """The end."""
        os.close(self._group)
        for mount in self._mounts:
            os.close(mount.fd)

    def _batch(self, data: bytes) -> list[Opened]:
        events: list[tuple[int, int, str]] = []
        for _, version, _, _, mask, fd, pid in _EVENT.iter_unpack(data):
            if version != _VERSION or mask & _Q_OVERFLOW:
                self.complete = False
            else:
                events.append((fd, pid, os.readlink(f"/proc/self/fd/{fd}")))
        # The links are absolute paths in the job's mount namespace or, after its end, from the root of each mount. If
        # those of the mounts are what they were after the others have been read, it was the first.
        paths = [os.readlink(f"/proc/self/fd/{mount.fd}") for mount in self._mounts]
        in_place = paths == [mount.path for mount in self._mounts]
        found = []
        for fd, pid, link in events:
            key = link if in_place else f"{_mount_number(fd)}:{link}"
            count = self._counts[key] = self._counts.get(key, 0) + 1
            if count == 1 and pid != self._own:
                opened = self._opened(fd, link, paths, in_place=in_place)
                if opened not in self._reported:
                    self._reported.add(opened)
                    found.append(opened)
            elif count == _OFTEN:
                with suppress(OSError):
                    _mark(self._group, _ADD | _IGNORED | _WHATEVER_HAPPENS, f"/proc/self/fd/{fd}")
            os.close(fd)
        return found

    def _opened(self, fd: int, link: str, paths: list[str], *, in_place: bool) -> Opened:
        if in_place:
            place = _longest(paths, link)
        else:
            number = _mount_number(fd)
            place = next(place for place, mount in enumerate(self._mounts) if mount.number == number)
        path = link.removeprefix(paths[place]).lstrip("/")
        if path.endswith(_DELETED) and not _exists(path, self._mounts[place].fd):
            path = path.removesuffix(_DELETED)
        return Opened(place, path)


def _longest(paths: list[str], link: str) -> int:
    """The place of the path that ``link`` is in, of those that lie in each other the innermost."""
    within = [place for place, path in enumerate(paths) if path == "/" or (link + "/").startswith(path + "/")]
    return max(within, key=lambda place: len(paths[place]))


def _exists(path: str, root: int) -> bool:
    """Not by the file's number of links: an overlay says 1 of a file that is deleted in its upper layer."""
    try:
        os.stat(path, dir_fd=root, follow_symlinks=False)
    except OSError:
        return False
    return True


def _mount_number(fd: int) -> str:
    lines = pseudofile.read(f"/proc/self/fdinfo/{fd}").splitlines()
    return next(line.split()[1].decode() for line in lines if line.startswith(b"mnt_id:"))


def _group() -> int:
    """A new fanotify group. Raises AuditUnavailable.

    O_NONBLOCK for the files in the events: to open a named pipe would wait for a writer.
    """
    flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_UNLIMITED_QUEUE | _FAN_UNLIMITED_MARKS
    fd: int = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_LARGEFILE)
    if fd >= 0:
        return fd
    match ctypes.get_errno():
        case errno.EPERM:
            reason = "it takes CAP_SYS_ADMIN on the host itself: root, outside of containers"
        case errno.ENOSYS:
            reason = "the kernel has no fanotify"
        case errno.EMFILE:
            reason = "too many are in use (sysctl fs.fanotify.max_user_groups)"
        case number:
            reason = os.strerror(number)
    raise AuditUnavailable(f"undeclared reads cannot be seen on this host: {reason}")


def _mark(group: int, flags: int, path: str) -> None:
    if _libc.fanotify_mark(group, flags, ctypes.c_uint64(_FAN_OPEN), _AT_FDCWD, os.fsencode(path)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
