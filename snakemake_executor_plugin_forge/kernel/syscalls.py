"""System calls that Python 3.11 lacks. Every failure is an OSError with the call's name.

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

from .descriptors import closing

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

_MOUNT_SETATTR = 442  # on every architecture, since Linux 5.12
_OPEN_TREE = 428  # on every architecture, since Linux 5.2
_MOVE_MOUNT = 429
_CLONE3 = 435  # on every architecture, since Linux 5.3
_OPENAT2 = 437  # on every architecture, since Linux 5.6
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_PIDFD_GETFD = 438  # on every architecture, since Linux 5.6
_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}.get(os.uname().machine)
_KCMP_FILES = 2
_RESOLVE_IN_ROOT = 0x10
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_BTIME, _STX_BTIME, _STATX_BYTES = 0x800, 80, 256  # flag, offset and size of struct statx
_RENAME_EXCHANGE = 2
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NODEV = 0x4
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
_before_fork, _after_in_parent, _after_in_child = (  # found now: a child would copy 80 pages to find the last one
    getattr(ctypes.pythonapi, f"PyOS_{name}") for name in ("BeforeFork", "AfterFork_Parent", "AfterFork_Child")
)


Step = tuple[Callable[..., object], tuple[object, ...], str]
"""A prepared call: function, arguments, and the text for its failure."""


def run(steps: Iterable[Step]) -> None:
    """Make the calls, in order.

    A process just forked runs this, and the kernel copies every page that it touches: so all planning happens before
    the fork.

    Raises:
        OSError: of the first call that fails.
    """
    for function, arguments, what in steps:
        if function(*arguments) == -1:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")


def checked(result: int, call: str) -> int:
    """Return the result of a call.

    Raises:
        OSError: if it has failed.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def unshare_step(flags: int) -> Step:
    """unshare(2)."""
    return _libc.unshare, (flags,), f"unshare({flags:#x})"


def unshare(flags: int) -> None:
    """unshare(2)."""
    run([unshare_step(flags)])


def fork(flags: int, number: int | None = None) -> int:
    """os.fork with flags: clone3(2), with what Python does before and after a fork.

    For a process with one thread only: this omits the C library's work for other threads.

    Args:
        number: the child's number in the PID namespace for children (set_tid: Linux 5.5, CAP_SYS_ADMIN).

    Returns:
        0 in the child; in the caller, the child's number in the caller's PID namespace.
    """
    end_signal = 0 if flags & CLONE_PARENT else signal.SIGCHLD  # the caller's own, then
    arguments = struct.pack("=8Q", flags, 0, 0, 0, end_signal, 0, 0, 0)
    if number is not None:
        wanted = ctypes.c_int(number)
        arguments += struct.pack("=3Q", ctypes.addressof(wanted), 1, 0)
    _before_fork()
    pid: int = _holding_lock.syscall(_CLONE3, arguments, ctypes.c_size_t(len(arguments)))
    if pid == 0:
        _after_in_child()
        return 0
    number = ctypes.get_errno()
    _after_in_parent()
    if pid < 0:
        raise OSError(number, f"clone3({flags:#x}): {os.strerror(number)}")
    return pid


def flush_c_streams() -> None:
    """fflush(3) for all streams of the C library, as exit(3) does."""
    _libc.fflush(None)


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    run([(_libc.setns, (fd, kind), "setns")])


def mount_step(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> Step:
    """mount(2)."""
    place, options = os.fsencode(target), os.fsencode(data) or None
    arguments = (os.fsencode(source), place, kind.encode(), ctypes.c_ulong(flags), options)
    return _libc.mount, arguments, f"mount {source} on {target}"


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    run([mount_step(source, target, kind, flags, data)])


def clone_mount(path: str) -> int:
    """A descriptor of a detached copy of the mount at ``path``: open_tree(2)."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    return checked(_libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), f"open_tree {path}")


def attach_mount(fd: int, target: str) -> None:
    """Mount what :func:`clone_mount` has returned, also in another user namespace: move_mount(2)."""
    arguments = (_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    run([(_libc.syscall, arguments, f"move_mount to {target}")])


def refresh_step(target: str) -> Step:
    """Have the file system at ``target`` forget all names that nobody uses: shrink_dcache_sb() in reconfigure_super().

    An overlay ignores the options of a second mount(2).
    """
    return mount_step("none", target, "", MS_REMOUNT | MS_NODEV)


def unmount_step(target: str) -> Step:
    """Unmount ``target`` with all mounts in it: MNT_DETACH of umount2(2)."""
    return _libc.umount2, (os.fsencode(target), MNT_DETACH), f"umount {target}"


def bind_step(source: str, target: str, *, recursive: bool = True) -> Step:
    """Show ``source`` at ``target`` as well."""
    return mount_step(source, target, "", MS_BIND | (MS_REC if recursive else 0))


def bind(source: str, target: str, *, recursive: bool = True) -> None:
    """Show ``source`` at ``target`` as well."""
    run([bind_step(source, target, recursive=recursive)])


def bind_read_only_steps(path: str) -> list[Step]:
    """Make the tree at ``path``, which is below a mount or is one, with all mounts in it, read-only.

    Before Linux 5.12 this affects ``path`` alone.
    """
    if has_mount_setattr():
        return [bind_step(path, path), read_only_step(path)]
    return [bind_step(path, path), mount_step("none", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY)]


def read_only_step(path: str) -> Step:
    """Make the mount at ``path`` and all mounts in it read-only: mount_setattr(2), Linux 5.12."""
    return _attributes_step(path, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY, 0)


def writable_step(path: str) -> Step:
    """Make the mount at ``path`` alone writable again."""
    return _attributes_step(path, 0, 0, _MOUNT_ATTR_RDONLY)


def devices_step(path: str, *, recursive: bool, allowed: bool) -> Step:
    """Say whether device nodes in a mount, and in all mounts in it, are devices: MOUNT_ATTR_NODEV."""
    add, remove = (0, _MOUNT_ATTR_NODEV) if allowed else (_MOUNT_ATTR_NODEV, 0)
    return _attributes_step(path, _AT_RECURSIVE if recursive else 0, add, remove)


def _attributes_step(path: str, flags: int, add: int, remove: int) -> Step:
    attributes = struct.pack("=QQQQ", add, remove, 0, 0)
    arguments = (_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), flags, attributes, ctypes.c_size_t(len(attributes)))
    return _libc.syscall, arguments, f"mount_setattr {path}"


@functools.cache
def has_mount_setattr() -> bool:
    """Probe by a call that can only fail, with a structure of no size."""
    _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", 0, None, ctypes.c_size_t(0))
    return ctypes.get_errno() != errno.ENOSYS


def join_new_session_keyring() -> None:
    """Give this process an empty session keyring instead of the inherited one: session-keyring(7).

    A refusal is no error: a kernel without keyrings has nothing to hide, and an ordinary user may have at most
    200 keys at a time (/proc/sys/kernel/keys/maxkeys of keyrings(7)).
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
    """Set the name that ``ps`` and ``top`` show, at most 15 bytes: PR_SET_NAME of prctl(2)."""
    _libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def capset_step(numbers: frozenset[int]) -> Step:
    """Set effective and permitted capabilities, which the process must have, and no inheritable ones: capset(2)."""
    mask = sum(1 << number for number in numbers)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    return _libc.capset, (header, struct.pack("=6I", low, low, 0, high, high, 0)), "capset"


def effective_capabilities() -> frozenset[int]:
    """The effective capabilities of this process: proc_pid_status(5)."""
    with open("/proc/self/status", encoding="utf-8") as status:
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return frozenset(n for n in range(64) if mask >> n & 1)


def kernel_log(size: int) -> str:
    """The last ``size`` bytes of the kernel's log: SYSLOG_ACTION_READ_ALL of syslog(2).

    Raises:
        OSError: EPERM without CAP_SYSLOG where the sysctl kernel.dmesg_restrict is 1.
    """
    buffer = ctypes.create_string_buffer(size)
    length = checked(_libc.klogctl(_SYSLOG_ACTION_READ_ALL, buffer, size), "klogctl")
    return buffer.raw[:length].decode("utf-8", "replace")


def raise_loopback() -> None:
    """Bring up ``lo`` in a new network namespace: netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING))


def spread_subdirectories(directory: str) -> None:
    """Tell ext4 that the subdirectories of ``directory`` have nothing to do with each other (``chattr +T``).

    Each then starts in a part of the disk of its own. Without it they share the part in which Snakemake deletes its
    markers, and an ext4 without journal looks at every inode deleted in the last minutes before it creates a file:
    6.3 ms instead of 0.1 ms for the six files of a record were measured. Only a hint: other file systems refuse it.
    Source: ioctl_iflags(2), chattr(1), find_inode_bit() of fs/ext4/ialloc.c.
    """
    with closing(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd, suppress(OSError):
        flags = bytearray(8)
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        (value,) = struct.unpack("=q", flags)
        if not value & _FS_TOPDIR_FL:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=q", value | _FS_TOPDIR_FL))


def exchange_at(one_fd: int, one: str, other_fd: int, other: str) -> None:
    """Exchange two files or directories atomically: RENAME_EXCHANGE of rename(2).

    Args:
        one_fd: descriptor of the directory with the name ``one``; ``other_fd`` likewise.

    Raises:
        OSError: if that fails; EINVAL or ENOSYS: the file system cannot (NFS and others).
    """
    result = _libc.renameat2(one_fd, os.fsencode(one), other_fd, os.fsencode(other), _RENAME_EXCHANGE)
    checked(result, f"exchange {one} and {other}")


def open_in_root(root: int, path: str, flags: int) -> int:
    """openat2(2), Linux 5.6: open a path as a process does whose root directory is ``root``, a descriptor."""
    return _openat2(root, path, flags, _RESOLVE_IN_ROOT)


def open_without_links(directory: int, path: str, flags: int) -> int:
    """openat2(2), Linux 5.6: open a path that has no symbolic link in it, and does not leave the directory.

    Raises:
        OSError: as openat2(2); ELOOP for a link.
    """
    return _openat2(directory, path, flags, _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)


def _openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    how = struct.pack("=3Q", flags, 0, resolve)
    for _ in range(1000):  # EAGAIN: the path has ".." in it, and somebody on this host renames or mounts
        fd: int = _libc.syscall(_OPENAT2, directory, os.fsencode(path), how, ctypes.c_size_t(len(how)))
        if fd >= 0:
            return fd
        if (number := ctypes.get_errno()) != errno.EAGAIN:
            break
    raise OSError(number, os.strerror(number), path)


@functools.cache
def has_openat2() -> bool:
    """Probe by a call that can only fail, with a structure of no size."""
    _libc.syscall(_OPENAT2, _AT_FDCWD, b"/", None, ctypes.c_size_t(0))
    return ctypes.get_errno() != errno.ENOSYS


def birth_time(path: str) -> float | None:
    """Return when a file, or a link itself, was made: seconds since the epoch; None where nobody knows: statx(2)."""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, found) != 0:
        return None
    (mask,) = struct.unpack_from("=I", found, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", found, _STX_BTIME)
    return seconds + nanoseconds / 1e9 if mask & _STATX_BTIME else None


def share_files(one: int, other: int) -> bool:
    """Return whether two threads have the same table of descriptors: KCMP_FILES of kcmp(2).

    Also True if that cannot be found out, unless one of them has none any more.
    """
    if _KCMP is None:
        return True
    result: int = _libc.syscall(_KCMP, one, other, _KCMP_FILES, 0, 0)
    return result == 0 or (result < 0 and ctypes.get_errno() != errno.EBADF)


def open_thread(thread: int) -> int:
    """A descriptor of a thread: pidfd_open(2), PIDFD_THREAD since Linux 6.9; before that, of a process.

    Raises:
        OSError: if it has ended; or is not the first one of its process, before Linux 6.9.
    """
    try:
        return os.pidfd_open(thread, os.O_EXCL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.pidfd_open(thread)


def copy_descriptor(pidfd: int, number: int) -> int:
    """Copy a descriptor of another process, which this one may trace: pidfd_getfd(2), Linux 5.6.

    Raises:
        OSError: if that is refused.
    """
    return checked(_libc.syscall(_PIDFD_GETFD, pidfd, number, 0), "pidfd_getfd")


def sync_file_system(path: str) -> None:
    """Write everything of the file system of ``path`` to its disk: syncfs(2).

    Raises:
        OSError: for an error of the disk since the last call.
    """
    with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        run([(_libc.syncfs, (fd,), f"syncfs {path}")])


def start_writeback(path: str) -> None:
    """Start writing a file to its disk, without waiting: sync_file_range(2).

    A refusal is no error: a caller that needs the file on disk uses fsync(2).
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError), closing(os.open(path, flags)) as fd:
        _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
