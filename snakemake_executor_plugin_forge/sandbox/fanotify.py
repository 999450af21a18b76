"""The files that a job opens, seen through fanotify marks on the job's private mounts.

Sources: fanotify(7), fanotify_init(2), fanotify_mark(2), linux/fanotify.h.

Every event has a descriptor of the file, whose link in /proc/self/fd gives the path. Events with names instead of
descriptors (FAN_REPORT_DFID_NAME) would be cheaper to read, but the kernel provides none for an overlay, and a job's
working directory is one.

Rough costs: the job waits a microsecond for each open; the reader spends 5 to 10 microseconds on each file, and almost
nothing on a file that is opened repeatedly.

Invisible: requests for attributes (stat), directory listings, and files opened in a mount namespace that the job makes
itself. Visible as well: files opened for writing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from ..kernel import procfs
from ..spec.errors import AuditUnavailable

_FAN_CLOEXEC, _FAN_NONBLOCK = 0x1, 0x2
_FAN_UNLIMITED_QUEUE, _FAN_UNLIMITED_MARKS = 0x10, 0x20
_ADD, _IGNORED, _MOUNT, _WHATEVER_HAPPENS = 0x1, 0x20, 0x10, 0x40
_FAN_OPEN = 0x20  # execve(2) also opens
_Q_OVERFLOW = 0x4000
_AT_FDCWD = -100
_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_VERSION = 3
_BATCH = 64
"""The number of events per read, and so of descriptors open at a time."""
_OFTEN = 3
"""The number of opens of a file after which the kernel is told to ignore it."""
_DELETED = " (deleted)"

_libc = ctypes.CDLL(None, use_errno=True)


class Opened(NamedTuple):
    """An opened file."""

    mount: int  # its index in the list that Audit received
    path: str  # relative to the root of the mount; the name at the time of the event, if renamed since


class _Mount(NamedTuple):
    """A marked mount."""

    fd: int
    number: str  # the kernel's mnt_id of proc_pid_fdinfo(5)
    path: str  # in the mount namespace of the job


def refusal() -> str:
    """The reason why this host has no audit; empty if it has."""
    try:
        os.close(_group())
    except AuditUnavailable as error:
        return str(error)
    return ""


def descriptors(paths: Iterable[str]) -> list[int]:
    """Open, in the job's mount namespace, the descriptors for :class:`Audit`, to send with SCM_RIGHTS.

    Args:
        paths: roots of mounts.

    Raises:
        OSError: if a path cannot be opened.
    """
    return [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths]


class Audit:
    """A list of files that grows while a job runs: wait for :meth:`fileno` to be readable, then :meth:`read`."""

    def __init__(self, mounts: Sequence[int]) -> None:
        """Report from now on.

        Args:
            mounts: descriptors of the roots of mounts at the start of the job; :meth:`close` closes them.

        Raises:
            AuditUnavailable: without CAP_SYS_ADMIN on the host itself, or if the kernel has no fanotify.
        """
        self.complete = True  # False once the kernel has lost events
        self._own = os.getpid()
        self._group = _group()
        self._mounts: list[_Mount] = []
        self._counts: dict[str, int] = {}  # from a file's link to its number of opens
        self._reported: set[Opened] = set()
        try:
            for fd in mounts:
                _mark(self._group, _ADD | _MOUNT, f"/proc/self/fd/{fd}")
                self._mounts.append(_Mount(fd, procfs.mount_number(fd), os.readlink(f"/proc/self/fd/{fd}")))
        except OSError as error:
            os.close(self._group)
            raise AuditUnavailable(f"the kernel refuses to report opened files: {error.strerror}") from error

    def fileno(self) -> int:
        """Return a descriptor for poll(2). It does not block."""
        return self._group

    def read(self) -> list[Opened]:
        """Yield opened files that have not been reported yet. Never blocks."""
        found: list[Opened] = []
        while True:
            try:
                data = os.read(self._group, _EVENT.size * _BATCH)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL, errno.EFAULT):
                    raise
                self.complete = False  # the kernel could not open a file for its event
                continue
            found += self._batch(data)

    def close(self) -> None:
        """Close all descriptors."""
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
        # The links are absolute paths in the job's mount namespace or, after its end, start at the root of each mount.
        # If the links of the mounts are unchanged after reading the others, the namespace still existed.
        paths = [os.readlink(f"/proc/self/fd/{mount.fd}") for mount in self._mounts]
        in_place = paths == [mount.path for mount in self._mounts]
        found = []
        for fd, pid, link in events:
            key = link if in_place else f"{procfs.mount_number(fd)}:{link}"
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
            within = [place for place, path in enumerate(paths) if path == "/" or (link + "/").startswith(path + "/")]
            place = max(within, key=lambda place: len(paths[place]))  # the innermost mount that contains the file
        else:
            number = procfs.mount_number(fd)
            place = next(place for place, mount in enumerate(self._mounts) if mount.number == number)
        path = link.removeprefix(paths[place]).lstrip("/")
        if path.endswith(_DELETED) and not _exists(path, self._mounts[place].fd):
            path = path.removesuffix(_DELETED)
        return Opened(place, path)


def _exists(path: str, root: int) -> bool:
    """Whether a link means a deleted file. An overlay reports st_nlink 1 for a file deleted in its upper layer."""
    try:
        os.stat(path, dir_fd=root, follow_symlinks=False)
    except OSError:
        return False
    return True


def _group() -> int:
    """A new fanotify group. Raises AuditUnavailable.

    O_NONBLOCK for the files in the events: opening a named pipe would wait for a writer.
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


_SECONDS = 0.05  # waking up for each opened file would cost the job more than the audit itself


class Reads(Audit):
    """A set of opened files, updated several times a second."""

    def __init__(self, mounts: Sequence[int], layers: Sequence[str]) -> None:
        """Report from now on: see :class:`Audit`. ``layers`` are the roots of the layers, in the order of mounts."""
        super().__init__(mounts)
        self.opened: set[str] = set()
        self.due: float | None = None  # time.monotonic() of the next update
        self._layers = layers

    def update(self) -> bool:
        """Read all events; return False, as the next update is due later."""
        for opened in self.read():
            self.opened.add(f"{self._layers[opened.mount]}/{opened.path}")
        self.due = time.monotonic() + _SECONDS
        return False

    def listen_again(self, poll: select.poll) -> None:
        """Register with ``poll`` again when the next update is due."""
        if self.due is not None and time.monotonic() >= self.due:
            self.due = None
            poll.register(self.fileno(), select.POLLIN)
