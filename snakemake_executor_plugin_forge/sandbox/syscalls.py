"""The one door to the kernel calls that Python 3.11 does not have. Every failure is an OSError with the call's name.

Sources: unshare(2), setns(2), mount(2), umount2(2), mount_setattr(2), prctl(2), capset(2), netdevice(7), syslog(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress

CLONE_PARENT = 0x00008000
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
MS_SLAVE = 0x80000
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

_MOUNT_SETATTR = 442  # the same on every architecture, since Linux 5.12
_CLONE3 = 435  # likewise, since Linux 5.3
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}.get(os.uname().machine)
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CAPABILITY_VERSION_3 = 0x20080522
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_TOPDIR_FL = 0x00020000
_SYSLOG_ACTION_READ_ALL = 3
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h

_libc = ctypes.CDLL(None, use_errno=True)
_holding_lock = ctypes.PyDLL(None, use_errno=True)  # the interpreter's: for fork


Step = tuple[Callable[..., object], tuple[object, ...], str]
"""A call that is prepared but not made: function, arguments, and what to say if it fails."""


def run(steps: Iterable[Step]) -> None:
    """Make the calls, in their order.

    A process just forked runs them, of which every page that it touches has to be copied: so all thinking is done
    before, and here is next to nothing.

    Raises:
        OSError: the first one that fails.

    """
    for function, arguments, what in steps:
        if function(*arguments) == -1:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare_step(flags: int) -> Step:
    """unshare(2)."""
    return _libc.unshare, (flags,), f"unshare({flags:#x})"


def unshare(flags: int) -> None:
    """unshare(2)."""
    run([unshare_step(flags)])


def fork(flags: int) -> int:
    """os.fork with flags: clone3(2), with what Python does before and after a fork.

    For a process with one thread only: what the C library does for others is left out.

    Returns:
        0 in the child; its number, as the caller's PID namespace has it, in the caller.

    """
    end_signal = 0 if flags & CLONE_PARENT else signal.SIGCHLD  # the caller's own, then
    arguments = struct.pack("=8Q", flags, 0, 0, 0, end_signal, 0, 0, 0)
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid: int = _holding_lock.syscall(_CLONE3, arguments, ctypes.c_size_t(len(arguments)))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    number = ctypes.get_errno()
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, f"clone3({flags:#x}): {os.strerror(number)}")
    return pid


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    run([(_libc.setns, (fd, kind), "setns")])


def mount_step(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> Step:
    """mount(2)."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode() or None)
    return _libc.mount, arguments, f"mount {source} on {target}"


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    run([mount_step(source, target, kind, flags, data)])


def unmount_step(target: str) -> Step:
    """Take away what is mounted on ``target``, with all that is mounted in it: MNT_DETACH of umount2(2)."""
    return _libc.umount2, (os.fsencode(target), MNT_DETACH), f"umount {target}"


def bind_step(source: str, target: str, *, recursive: bool = True) -> Step:
    """Show ``source`` at ``target`` as well."""
    return mount_step(source, target, "", MS_BIND | (MS_REC if recursive else 0))


def bind(source: str, target: str, *, recursive: bool = True) -> None:
    """Show ``source`` at ``target`` as well."""
    run([bind_step(source, target, recursive=recursive)])


def bind_read_only_steps(path: str) -> list[Step]:
    """Make the tree at ``path``, which is below a mount or is one, with all mounts in it, read-only.

    Where the kernel is older than 5.12: ``path`` alone.
    """
    if has_mount_setattr():
        return [bind_step(path, path), read_only_step(path)]
    return [bind_step(path, path), mount_step("none", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY)]


def read_only_step(path: str) -> Step:
    """Make what is mounted at ``path``, with all that is mounted in it, read-only: mount_setattr(2), Linux 5.12."""
    return _attributes_step(path, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY, 0)


def writable_step(path: str) -> Step:
    """Undo that for the mount at ``path`` alone."""
    return _attributes_step(path, 0, 0, _MOUNT_ATTR_RDONLY)


def _attributes_step(path: str, flags: int, add: int, remove: int) -> Step:
    attributes = struct.pack("=QQQQ", add, remove, 0, 0)
    arguments = (_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), flags, attributes, ctypes.c_size_t(len(attributes)))
    return _libc.syscall, arguments, f"mount_setattr {path}"


@functools.cache
def has_mount_setattr() -> bool:
    """Asked by a call that can only fail: with a structure of no size."""
    _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", 0, None, ctypes.c_size_t(0))
    return ctypes.get_errno() != errno.ENOSYS


def join_new_session_keyring() -> None:
    """An empty session keyring for this process, instead of the one that it has inherited: session-keyring(7).

    No error where it is refused: a kernel without keyrings has nothing to hide, and an ordinary user may have no more
    than 200 keys at a time (/proc/sys/kernel/keys/maxkeys of keyrings(7)).
    """
    if _KEYCTL is not None:
        _libc.syscall(_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None)


def chdir_step(path: str) -> Step:
    """chdir(2)."""
    return _libc.chdir, (os.fsencode(path),), f"chdir {path}"


def prctl_step(option: int, argument: int = 0) -> Step:
    """prctl(2) with one argument."""
    return _libc.prctl, (option, ctypes.c_ulong(argument), 0, 0, 0), f"prctl({option})"


def prctl(option: int, argument: int = 0) -> None:
    """prctl(2) with one argument."""
    run([prctl_step(option, argument)])


def set_process_name(name: str) -> None:
    """The name in ``ps`` and ``top``, at most 15 bytes: PR_SET_NAME of prctl(2)."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _libc.prctl(PR_SET_NAME, buffer, 0, 0, 0)


def bound_capabilities(keep: frozenset[int], last: int) -> None:
    """Leave only ``keep`` in the bounding set, and nothing in the ambient set: capabilities(7).

    Args:
        keep: capability numbers.
        last: the kernel's highest one (/proc/sys/kernel/cap_last_cap).

    """
    for number in range(last + 1):
        if number not in keep:
            prctl(PR_CAPBSET_DROP, number)
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def capset_step(numbers: frozenset[int]) -> Step:
    """Make these, which the process must have, its effective and permitted ones, and none inheritable: capset(2)."""
    mask = sum(1 << number for number in numbers)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    return _libc.capset, (header, struct.pack("=6I", low, low, 0, high, high, 0)), "capset"


def effective_capabilities() -> frozenset[int]:
    """Those of this process: proc_pid_status(5)."""
    with open("/proc/self/status", encoding="ascii") as status:
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return frozenset(n for n in range(64) if mask >> n & 1)


def kernel_log(size: int) -> str:
    """The last ``size`` bytes of the kernel's log: SYSLOG_ACTION_READ_ALL of syslog(2).

    Raises:
        OSError: EPERM without CAP_SYSLOG where the sysctl kernel.dmesg_restrict is 1.

    """
    buffer = ctypes.create_string_buffer(size)
    length = _libc.klogctl(_SYSLOG_ACTION_READ_ALL, buffer, size)
    if length < 0:
        raise OSError(ctypes.get_errno(), "klogctl")
    return buffer.raw[:length].decode("utf-8", "replace")


def raise_loopback() -> None:
    """Bring up ``lo`` in a new network namespace: netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING))


def spread_subdirectories(directory: str) -> bool:
    """Tell ext4 that the subdirectories of ``directory`` have nothing to do with each other (``chattr +T``).

    Each then starts in a part of the disk of its own. Without it they share the part in which Snakemake deletes its
    markers, and an ext4 without journal looks at every inode deleted in the last minutes before it creates a file:
    6.3 ms instead of 0.1 ms for the six files of a record were measured. Only a hint: other file systems refuse it.
    Source: ioctl_iflags(2), chattr(1), find_inode_bit() of fs/ext4/ialloc.c.

    Returns:
        Whether the file system took it.

    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = bytearray(8)
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        (value,) = struct.unpack("=q", flags)
        if not value & _FS_TOPDIR_FL:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=q", value | _FS_TOPDIR_FL))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def exchange(one: str, other: str) -> None:
    """Two files or directories change places, in one step where the file system can: RENAME_EXCHANGE of rename(2).

    Raises:
        OSError: if they cannot.

    """
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, f"exchange {one} and {other}: {os.strerror(number)}")
    aside = f"{one}.forge-old"  # NFS and others
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def sync_file_system(path: str) -> None:
    """Write everything of the file system of ``path`` to its disk: syncfs(2).

    Raises:
        OSError: for an error of the disk since the last time.

    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        run([(_libc.syncfs, (fd,), f"syncfs {path}")])
    finally:
        os.close(fd)


def start_writeback(path: str) -> None:
    """Have the kernel begin to write a file to its disk, and wait for nothing: sync_file_range(2).

    No error where that is not possible: whoever needs the file on disk waits for it by fsync(2).
    """
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
        finally:
            os.close(fd)
