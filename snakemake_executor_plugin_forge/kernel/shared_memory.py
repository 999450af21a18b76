"""Memory that processes fill without having it in their address space: memfds, tmpfs, segments of System V.

Sources: memfd_create(2), tmpfs(5), proc_pid_mountinfo(5), proc_sysvipc(5), sysvipc(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from . import open_files, syscalls
from .descriptors import closing
from .procfs import mount_path

_RESIDENT = 14  # the column of /proc/sysvipc/shm


def memfd_bytes(pids: Iterable[int]) -> int:
    """Return the bytes in memfds that processes hold, also in sockets."""
    files = (file for pid in pids for file in open_files.unnamed(pid))
    return sum(
        {(file.device, file.inode): file.bytes for file in files if file is not None and file.in_memory}.values()
    )


def tmpfs_bytes(pids: Iterable[int]) -> int:
    """Return the bytes in those tmpfs that processes see and this one does not: a job's own, in all its namespaces."""
    known = {device for device, _ in _tmpfs("self")}
    namespaces: set[int] = set()
    sizes: dict[int, int] = {}
    for pid in pids:
        with suppress(OSError):
            number = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if number in namespaces:
                continue
            namespaces.add(number)
            for device, place in _tmpfs(pid):
                path = f"/proc/{pid}/root{place}"
                if device in known or device in sizes or os.stat(path).st_dev != device:
                    continue
                room = os.statvfs(path)
                sizes[device] = (room.f_blocks - room.f_bfree) * room.f_frsize
    return sum(sizes.values())


def _tmpfs(pid: int | str) -> Iterator[tuple[int, str]]:
    """Yield the device number and the place of each tmpfs that a process sees."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file:
            mount, _, kind = line.partition(b" - ")
            if kind.startswith(b"tmpfs "):
                _, _, device, _, place, *_ = mount.split(b" ")
                major, minor = device.split(b":")
                yield os.makedev(int(major), int(minor)), mount_path(place)


def segment_bytes(pid: int) -> int:
    """Return the bytes in the segments of a process' IPC namespace, if that is not this process' own.

    This process enters it for a moment: to stay would keep the segments of a job that has ended.
    """
    try:
        with closing(os.open("/proc/self/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)) as own:
            if os.path.samestat(os.fstat(own), os.stat(f"/proc/{pid}/ns/ipc")):
                return 0
            with closing(os.open(f"/proc/{pid}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)) as theirs:
                syscalls.setns(theirs, syscalls.CLONE_NEWIPC)
            try:
                with open("/proc/sysvipc/shm", "rb") as file:
                    lines = file.readlines()[1:]
            finally:
                syscalls.setns(own, syscalls.CLONE_NEWIPC)
    except OSError:  # it has ended, or this process may not
        return 0
    return sum(int(line.split()[_RESIDENT]) for line in lines)
