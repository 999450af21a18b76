"""The files that other processes have open, from /proc: proc_pid_fd(5), proc_pid_maps(5)."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from . import descriptors, procfs, syscalls
from .descriptors import closing

_SO_PEEK_OFF = 42  # asm-generic/socket.h
_MOST_SENT = 253  # SCM_MAX_FD of include/net/scm.h: descriptors in one message
_MOST_MESSAGES, _MOST_NESTED = 4096, 8
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_MEMORY = "/memfd:"
_NO_FILES = (b"/memfd:", b"/dev/zero ", b"/SYSV", b"/dev/shm/")  # mapped: memory of the job, by their names
_BLOCK = 512  # of st_blocks: stat(2)
_FORKED_ONLY = 0x40  # PF_FORKNOEXEC of include/linux/sched.h
_FLAGS = 6  # of process_tree.stat()


def written(pid: int) -> Iterator[str | None]:
    """Yield the paths of the files that a process has open for writing, or mapped so that it changes them.

    None is a pause: a process can have a million descriptors.

    The paths are those in its own mount namespace. The owner's bits of a link in /proc/PID/fd say for what it is open.

    Raises:
        OSError: if the process has ended, or belongs to somebody else.
    """
    directory = f"/proc/{pid}/fd"
    for number in os.listdir(directory):
        with suppress(FileNotFoundError):
            is_written = os.lstat(f"{directory}/{number}").st_mode & stat.S_IWUSR
            yield os.readlink(f"{directory}/{number}") if is_written else None
    with open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            fields = line.rstrip(b"\n").split(maxsplit=5)
            if len(fields) == 6 and fields[1][1:4:2] == b"ws":
                yield os.fsdecode(fields[5].replace(b"\\012", b"\n"))


def reads_pipe(pid: int) -> bool:
    """Return whether the standard input of a process is a pipe.

    Raises:
        OSError: as :func:`written`; also if it has none.
    """
    return os.readlink(f"/proc/{pid}/fd/0").startswith("pipe:")


def is_forked_only(fields: list[bytes]) -> bool:
    """Return whether a process has executed no program since it was forked: a subshell, or one on its way to a program.

    Args:
        fields: of :func:`.process_tree.stat`.
    """
    return bool(int(fields[_FLAGS]) & _FORKED_ONLY)


class Unnamed(NamedTuple):
    """A file without a name, which is there as long as a process holds it."""

    device: int
    inode: int
    bytes: int  # on the disk
    in_memory: bool  # memfd_create(2)


def unnamed(pid: int) -> Iterator[Unnamed | None]:
    """Yield the unlinked files that a process holds, whatever table, socket or mapping holds them; None is a pause.

    A file can come more than once, and a process can end meanwhile.
    """
    for thread in _tables(pid):
        directory = f"/proc/{pid}/task/{thread}"
        with suppress(OSError):
            for number in os.listdir(f"{directory}/fd"):
                with suppress(OSError):
                    path = f"{directory}/fd/{number}"
                    status = os.stat(path)
                    if stat.S_ISSOCK(status.st_mode):
                        yield from _sent(directory, int(number))
                    elif not status.st_nlink:
                        yield _unnamed(status, path)
        yield None
    with suppress(OSError):
        yield from _mapped(pid)


def _tables(pid: int) -> Iterator[str]:
    """Yield one thread for each table of descriptors of a process: CLONE_FILES of clone(2), kcmp(2)."""
    with suppress(OSError):
        first = ""
        for thread in os.listdir(f"/proc/{pid}/task"):
            if not first or not syscalls.share_files(int(first), int(thread)):
                yield thread
            first = first or thread


def _unnamed(status: os.stat_result, path: str) -> Unnamed:
    in_memory = os.readlink(path).startswith(_MEMORY)
    return Unnamed(status.st_dev, status.st_ino, status.st_blocks * _BLOCK, in_memory)


def _sent(directory: str, number: int) -> Iterator[Unnamed | None]:
    """Yield those on their way through a socket (SCM_RIGHTS of unix(7)), by a copy of its descriptor."""
    waiting = next(
        (line for line in procfs.read(f"{directory}/fdinfo/{number}").splitlines() if b"scm_fds" in line), b"0"
    )
    if int(waiting.split()[-1]) == 0:
        return
    with closing(syscalls.open_thread(int(directory.rpartition("/")[2]))) as pidfd:
        copy = syscalls.copy_descriptor(pidfd, number)
    yield from _received([copy], 0)


def _received(found: list[int], nested: int) -> Iterator[Unnamed | None]:
    """Yield what these descriptors are, and what waits in those that are sockets; close them."""
    try:
        for fd in found:
            status = os.fstat(fd)
            if not stat.S_ISSOCK(status.st_mode):
                if not status.st_nlink:
                    yield _unnamed(status, f"/proc/self/fd/{fd}")
            elif nested < _MOST_NESTED:
                with socket.socket(fileno=os.dup(fd)) as waiting, suppress(OSError):
                    for inner in _peeked(waiting):
                        yield from _received(inner, nested + 1)
                        yield None
    finally:
        for fd in found:
            os.close(fd)


def _peeked(waiting: socket.socket) -> Iterator[list[int]]:
    """Yield copies of the descriptors in each message that waits, and leave the messages there."""
    before = waiting.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    waiting.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    try:
        for _ in range(_MOST_MESSAGES):
            data, found = descriptors.receive(waiting, 65536, _MOST_SENT, _PEEK)
            yield found
            if not data and waiting.type == socket.SOCK_STREAM:
                return
    finally:
        waiting.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, before)


def _mapped(pid: int) -> Iterator[Unnamed | None]:
    """Yield mapped ones. Without CAP_SYS_ADMIN, their size is that of the mappings: map_files of proc(5)."""
    sizes: dict[tuple[int, int], int] = {}
    with open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            if not line.endswith(b" (deleted)\n"):
                continue
            addresses, _, _, device, inode, path = line.split(maxsplit=5)
            if path.startswith(_NO_FILES):
                continue
            begin, end = (part.lstrip(b"0") or b"0" for part in addresses.split(b"-"))
            major, minor = (int(part, 16) for part in device.split(b":"))
            key = os.makedev(major, minor), int(inode)
            try:
                status = os.stat(f"/proc/{pid}/map_files/{begin.decode()}-{end.decode()}")
            except PermissionError:
                sizes[key] = sizes.get(key, 0) + int(end, 16) - int(begin, 16)
            else:
                if not status.st_nlink:
                    yield Unnamed(status.st_dev, status.st_ino, status.st_blocks * _BLOCK, in_memory=False)
    for (number, place), size in sizes.items():
        yield Unnamed(number, place, size, in_memory=False)
