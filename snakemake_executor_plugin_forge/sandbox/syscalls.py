"""The one door to the kernel calls that Python 3.11 does not have. Every failure is an OSError with the call's name.

Sources: unshare(2), setns(2), mount(2), umount2(2), mount_setattr(2), prctl(2), capset(2), netdevice(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

_MOUNT_SETATTR = 442  # the same on every architecture, since Linux 5.12
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_CAPABILITY_VERSION_3 = 0x20080522
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode() or None
    )
    _check(result, f"mount {source} on {target}")


def bind(source: str, target: str, *, recursive: bool = True) -> None:
    """Show ``source`` at ``target`` as well."""
    mount(source, target, "", MS_BIND | (MS_REC if recursive else 0))


def bind_read_only(path: str) -> None:
    """Make the tree mounted at ``path``, with all mounts below it, read-only: mount_setattr(2).

    Falls back to remounting ``path`` alone where the kernel is older than 5.12.
    """
    bind(path, path)
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))
    )
    if result != 0:
        mount("none", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY)


def umount(path: str) -> None:
    """umount2(2), lazily."""
    _check(_libc.umount2(os.fsencode(path), MNT_DETACH), f"umount {path}")


def prctl(option: int, argument: int = 0) -> None:
    """prctl(2) with one argument."""
    _check(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0), f"prctl({option})")


def set_process_name(name: str) -> None:
    """The name in ``ps`` and ``top``, at most 15 bytes: PR_SET_NAME of prctl(2)."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _libc.prctl(PR_SET_NAME, buffer, 0, 0, 0)


def keep_capabilities(keep: frozenset[int], last: int) -> None:
    """Drop every capability but ``keep`` from all sets of this process, for good: capabilities(7).

    Args:
        keep: capability numbers.
        last: the kernel's highest one (/proc/sys/kernel/cap_last_cap).

    """
    for number in range(last + 1):
        if number not in keep:
            prctl(PR_CAPBSET_DROP, number)
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    low, high = 0, 0
    for number in _effective_capabilities() & keep:
        low, high = (low | 1 << number, high) if number < 32 else (low, high | 1 << (number - 32))
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    _check(_libc.capset(header, data), "capset")


def _effective_capabilities() -> frozenset[int]:
    with open("/proc/self/status", encoding="ascii") as status:
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return frozenset(n for n in range(64) if mask >> n & 1)


def raise_loopback() -> None:
    """Bring up ``lo`` in a new network namespace: netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING))
