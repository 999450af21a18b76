"""Files that a job appends to or locks, learned from the kernel's notifications of its system calls while it runs.

A layer holds whole files: what a job has only appended to cannot be told from what it has written in full, and a lock
in a layer keeps nobody out. So a filter in the job (:func:`.seccomp.listen`) stops it at each open(2) with O_APPEND, at
each lock for writing (flock(2); fcntl(2) that waits), and at mkdir(2), which makes locks, too; a :class:`Listener` in
the supervisor looks at the file, and the call continues.
For ordinary users it stops at link(2), too (see :func:`_must_copy`), and at rename(2) (see :mod:`.renames`).

Source: seccomp_unotify(2), Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import stat
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from ..kernel import procfs, syscalls
from ..kernel.descriptors import closing
from ..kernel.process_tree import command_name
from ..spec.file_policy import below
from ..spec.job import Target
from . import seccomp
from .filesystem.overlay import Layer
from .renames import rename_within

_RECEIVE, _SEND, _IS_VALID, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082102, 0x40082104  # linux/seccomp.h
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif with its struct seccomp_data
_ANSWER = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_CONTINUE = 1
_WAKE_SYNCHRONOUSLY = struct.pack("=Q", 1)  # Linux 6.6: the job continues on this CPU, which is about to be idle
_AT_FDCWD = -100
_PATH_BYTES = 4096
_LOCK = re.compile(r"(?<![a-z])(lock|lck|mutex)", re.IGNORECASE)
_MAX_LINKS = 8
_COPIED_BYTES = 64 << 20
"""Files of at most this size are copied to the layer by the supervisor, which keeps it busy for that time."""

_PAUSE_MILLISECONDS, _MAX_IN_A_ROW = 1, 64  # for what follows at once, or makes a file that is waited for


class _Found(NamedTuple):
    """A file in the job's view."""

    layer: Layer
    name: str  # relative to the layer's root
    fd: int | None  # O_PATH; None: it is not there

    @property
    def place(self) -> str:
        """The path at which the file is, or will be, once it is published."""
        return f"{self.layer.root}/{self.name}"

    @property
    def upper(self) -> str:
        """The path in the layer, if the job has written to the file."""
        return f"{self.layer.upper}/{self.name}"


class Listener:
    """The notifications of one job: :meth:`begin` with the descriptor, then :meth:`answer` whenever it is readable."""

    def __init__(self, layers: Iterable[Layer], targets: Iterable[Target]) -> None:
        """Look at nothing yet.

        Args:
            layers: that are published.
            targets: outputs and logs, which no other job writes: these are never of interest.
        """
        self._layers = tuple(layers)
        self._targets = {target.path for target in targets}
        self._fd = self._root = -1
        self._root_link = "/"
        self._mounts: dict[str, Layer] = {}
        self._poll = select.poll()
        self._seen: set[str] = set()
        self._sizes: dict[str, tuple[int, str, int | None]] = {}  # place: size before, place in the layer, inode there
        self._begun: dict[str, tuple[int, str, int | None]] = {}  # as _sizes, of files that the job has written before
        self._unmade: set[str] = set()  # those of them whose inode is not known yet
        self._locked: set[str] = set()
        self._claimed: set[str] = set()

    def begin(self, fd: int) -> None:
        """Take over the descriptor."""
        self._fd = fd

    def answer(self) -> bool:
        """Answer what waits, and what follows at once; return False if nothing can follow."""
        if self._root < 0:
            self._poll.register(self._fd, select.POLLIN)
            with suppress(OSError):
                fcntl.ioctl(self._fd, _SET_FLAGS, _WAKE_SYNCHRONOUSLY)
        pause = 0
        for _ in range(_MAX_IN_A_ROW):
            ready = self._poll.poll(pause)
            self._learn_inodes()
            if ready and not ready[0][1] & select.POLLIN:
                return False
            if ready:
                self._answer_one()
            elif not self._unmade:
                return True
            pause = _PAUSE_MILLISECONDS
        self._unmade.clear()
        return True

    def close(self) -> None:
        """Let nothing of the job's view stay in use; a call that waits is refused."""
        for fd in (self._fd, self._root):
            if fd >= 0:
                os.close(fd)
        self._fd = self._root = -1

    def appended(self) -> dict[str, int]:
        """Return the files that the job has only appended to, by path, with their sizes before; 0 for new ones."""
        return _grown(self._sizes)

    def begun(self) -> dict[str, int]:
        """Return the files that it has written and then only appended to, by path, with their sizes in between."""
        return _grown(self._begun)

    def locked(self) -> tuple[str, ...]:
        """Return the files that it has locked and that other jobs can find, and those that it has made as locks."""
        found = ((place, layer) for place in self._locked for layer in self._layers if below(place, layer.root))
        there = {p for p, layer in found if os.path.lexists(p) or _status(f"{layer.upper}{p[len(layer.root) :]}")}
        return tuple(sorted(there | self._claimed))

    def _answer_one(self) -> None:  # noqa: C901 - a table
        data = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._fd, _RECEIVE, data)
        except OSError as error:
            if error.errno == errno.ENOENT:  # the process was killed meanwhile
                return
            raise
        identity, pid, _, number, architecture, _, *arguments = _NOTIFICATION.unpack(data)
        refusal, way = 0, _CONTINUE
        try:
            call = seccomp.notified_call(number, architecture)
            if call in ("link", "linkat"):
                if _must_copy(pid):
                    refusal, way = -errno.EXDEV, 0
            elif call in ("rename", "renameat", "renameat2"):
                if self._rename(identity, pid, call, arguments):
                    way = 0
            elif call == "flock" or (call in ("fcntl", "fcntl64") and _is_for_writing(pid, arguments[2])):
                self._lock(pid, arguments[0] & 0xFFFFFFFF)
            elif call in ("mkdir", "mkdirat"):
                directory, path = (_AT_FDCWD, arguments[0]) if call == "mkdir" else arguments[:2]
                self._claim(identity, pid, _signed(directory), path)
            elif call in ("open", "openat"):
                directory, path, flags = (_AT_FDCWD, *arguments[:2]) if call == "open" else arguments[:3]
                self._open(identity, pid, _signed(directory), path, flags)
        except (OSError, OverflowError, ValueError):
            pass  # what cannot be looked at is taken for an ordinary file
        finally:
            with suppress(OSError):  # the process was killed meanwhile
                fcntl.ioctl(self._fd, _SEND, _ANSWER.pack(identity, 0, refusal, way))

    # -- the calls -------------------------------------------------------------------------------------------------

    def _open(self, identity: int, pid: int, directory: int, pointer: int, flags: int) -> None:
        self._enter(pid)
        path = self._path(pid, directory, pointer)
        fcntl.ioctl(self._fd, _IS_VALID, struct.pack("=Q", identity))  # else another process may have this id by now
        if path in self._seen:
            return
        found = self._find(path)
        try:
            if found is not None and (found.fd is not None or flags & os.O_CREAT):
                self._note(found)
                self._seen.add(path)
        finally:
            if found is not None and found.fd is not None:
                os.close(found.fd)

    def _claim(self, identity: int, pid: int, directory: int, pointer: int) -> None:
        """Note a directory, which only one job can make, if its name says that it is a lock."""
        path = self._path(pid, directory, pointer)
        if not _LOCK.search(os.path.basename(path)) or not {".git", ".snakemake"}.isdisjoint(path.split("/")):
            return
        self._enter(pid)
        fcntl.ioctl(self._fd, _IS_VALID, struct.pack("=Q", identity))
        found = self._find(path)
        if found is not None and found.fd is not None:
            os.close(found.fd)  # it is there, and the call fails
        elif found is not None and not self._is_target(found.place):
            self._claimed.add(found.place)

    def _rename(self, identity: int, pid: int, call: str, arguments: list[int]) -> bool:
        """Rename a directory for the job, within a layer; return whether that was done: see :mod:`.renames`."""
        if call == "renameat2" and arguments[4] & 0xFFFFFFFF:
            return False
        if call == "rename":
            arguments = [_AT_FDCWD, arguments[0], _AT_FDCWD, arguments[1]]
        self._enter(pid)
        places = [self._path(pid, _signed(arguments[at]), arguments[at + 1]) for at in (0, 2)]
        fcntl.ioctl(self._fd, _IS_VALID, struct.pack("=Q", identity))
        return rename_within(self._root, self._mounts, *places)

    def _note(self, found: _Found) -> None:
        """Note a file, and whether the layer holds it already: the job has made, truncated or deleted it before."""
        if found.place in self._sizes or found.place in self._begun or self._is_target(found.place):
            return
        if os.path.lexists(found.upper):
            if found.fd is not None and (status := _status(found.upper)) is not None and status.st_size > 0:
                self._begun[found.place] = status.st_size, found.upper, status.st_ino
            return
        if found.fd is None:
            self._sizes[found.place] = 0, found.upper, None
            self._unmade.add(found.place)
            return
        status = os.fstat(found.fd)
        if not stat.S_ISREG(status.st_mode):
            return
        if status.st_size <= _COPIED_BYTES:  # the size is that of the copy, whoever publishes the file meanwhile
            os.close(os.open(f"/proc/self/fd/{found.fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC))
            status = os.lstat(found.upper)
            self._sizes[found.place] = status.st_size, found.upper, status.st_ino
        else:
            self._sizes[found.place] = status.st_size, found.upper, None

    def _lock(self, pid: int, number: int) -> None:
        self._enter(pid)
        with closing(os.open(f"/proc/{pid}/fd/{number}", os.O_PATH | os.O_CLOEXEC)) as fd:
            found = self._in_layer(fd, "")
            if found is not None and not self._is_target(found.place):
                self._locked.add(found.place)

    def _is_target(self, place: str) -> bool:
        while place not in self._targets:
            place, inner = os.path.dirname(place), place
            if place == inner:
                return False
        return True

    def _learn_inodes(self) -> None:
        """Look at what is just being made: a file that takes its place later was not appended to."""
        for place in list(self._unmade):
            size, upper, _ = self._sizes[place]
            if (status := _status(upper)) is not None:
                self._sizes[place] = size, upper, status.st_ino
                self._unmade.remove(place)

    # -- from a call to a file -----------------------------------------------------------------------------------------

    def _enter(self, pid: int) -> None:
        """Open the root directory of the job's view: all of its processes have the same."""
        if self._root >= 0:
            return
        self._root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
        self._root_link = os.readlink(f"/proc/self/fd/{self._root}")
        for layer in self._layers:
            with closing(syscalls.open_in_root(self._root, layer.root, os.O_PATH | os.O_CLOEXEC)) as fd:
                self._mounts[procfs.mount_number(fd)] = layer

    def _path(self, pid: int, directory: int, pointer: int) -> str:
        """Return the absolute path that a process has given."""
        path = os.fsdecode(_memory(pid, pointer, _PATH_BYTES).split(b"\0", 1)[0])
        if path.startswith("/"):
            return path
        base = os.readlink(f"/proc/{pid}/cwd" if directory == _AT_FDCWD else f"/proc/{pid}/fd/{directory}")
        return f"{self._inside(base)}/{path}"

    def _inside(self, link: str) -> str:
        """Return the path of a link in /proc as the job sees it: an image is its root directory."""
        return link if self._root_link == "/" else link.removeprefix(self._root_link)

    def _find(self, path: str) -> _Found | None:
        """Return the file that a path leads to; None if it is in no layer.

        Raises:
            OSError: if its directory does not exist.
        """
        for _ in range(_MAX_LINKS):
            with suppress(FileNotFoundError):
                fd = syscalls.open_in_root(self._root, path, os.O_PATH | os.O_CLOEXEC)
                found = self._in_layer(fd, "")
                if found is None:
                    os.close(fd)
                return found
            parent, name = os.path.split(path)
            with closing(syscalls.open_in_root(self._root, parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
                try:
                    link = os.readlink(name, dir_fd=fd)
                except OSError:
                    return self._in_layer(fd, name)
                path = os.path.join(self._inside(os.readlink(f"/proc/self/fd/{fd}")), link)
        return None

    def _in_layer(self, fd: int, name: str) -> _Found | None:
        """Return what a descriptor, or a name below it that does not exist, is in a layer."""
        layer = self._mounts.get(procfs.mount_number(fd))
        if layer is None:
            return None
        path = self._inside(os.readlink(f"/proc/self/fd/{fd}"))
        relative = os.path.join(path, name).removeprefix(layer.root).strip("/")
        return _Found(layer, relative, None if name else fd)


def _grown(noted: Mapping[str, tuple[int, str, int | None]]) -> dict[str, int]:
    """Return the sizes that were noted of files that are the same still, and not smaller."""
    return {
        place: size
        for place, (size, upper, inode) in noted.items()
        if (now := _status(upper)) is not None and inode in (None, now.st_ino) and now.st_size >= size
    }


def _must_copy(pid: int) -> bool:
    """Return whether a process is git of an ordinary user, which copies files if it cannot link them.

    An overlay in a user namespace cannot keep the number of an inode when a file comes into the layer, as for a hard
    link: ``git clone`` of a repository in the working directory would take the link for another file, and fail.
    """
    return os.geteuid() != 0 and command_name(pid) == "git"


def _is_for_writing(pid: int, pointer: int) -> bool:
    """Return whether a struct flock of a process asks for a lock that only one may have: fcntl(2)."""
    return _memory(pid, pointer, 2) == struct.pack("=h", fcntl.F_WRLCK)


def _memory(pid: int, pointer: int, size: int) -> bytes:
    with closing(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)) as memory:
        return os.pread(memory, size, pointer)


def _signed(argument: int) -> int:
    """Return the int in the lower half of an argument."""
    value = argument & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _status(path: str) -> os.stat_result | None:
    """Return the status of a regular file; None if there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None
