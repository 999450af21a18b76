"""Whether processes can write to files: freezing a file system for all (fsconfig(2)), or a lease on a file (fcntl(2)).

The first costs 0.1 ms however many files there are, and holds for descriptors of directories, too; the second works
without a file system of the job's own, and names the file.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from .descriptors import closing
from .syscalls import checked
from .tree import walk

_PATIENCE_SECONDS, _PAUSE_SECONDS = 3.0, 0.01
"""Files that died in a message of a socket are closed a little later. Only a job that fails for it waits so long."""
_FSCONFIG, _FSPICK = 431, 433  # on every architecture, since Linux 5.2
_CLOEXEC, _EMPTY_PATH = 0x01, 0x08
_SET_FLAG, _RECONFIGURE = 0, 7

_libc = ctypes.CDLL(None, use_errno=True)


def freeze(mounts: Sequence[int]) -> bool:
    """Make file systems read-only, in all places where they are mounted.

    No process can change anything in them then, also not by a descriptor of a directory, or one for reading.

    Args:
        mounts: a descriptor of each, of any kind.

    Returns:
        False if a process has a file open for writing, or a deleted one open at all: sb_prepare_remount_readonly().

    Raises:
        OSError: if the kernel cannot do that.
    """
    return _patiently(lambda: False not in list(map(_freeze, mounts)))  # each of them, also after one that is in use


def _freeze(mount: int) -> bool:
    with closing(checked(_libc.syscall(_FSPICK, mount, b"", _CLOEXEC | _EMPTY_PATH), "fspick")) as context:
        try:
            checked(_libc.syscall(_FSCONFIG, context, _SET_FLAG, b"ro", None, 0), "fsconfig")
            checked(_libc.syscall(_FSCONFIG, context, _RECONFIGURE, None, None, 0), "fsconfig")
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
    return True


def _patiently(is_free: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not is_free():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_SECONDS)
    return True


def held(paths: Iterable[str]) -> list[str]:
    """Return the regular files that a process has open for writing, or mapped so; on local file systems only.

    Args:
        paths: files, and directories in which each file is looked at: 10,000 take 0.1 s.

    Returns:
        Those of the paths that are such files or contain one.
    """
    found = list(paths)

    def is_free() -> bool:
        found[:] = [path for path in found if _is_held(path)]
        return not found

    try:
        before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # which whoever opens a file with a lease would send
    except ValueError:  # not in the main thread
        return []
    try:
        _patiently(is_free)
    finally:
        signal.signal(signal.SIGIO, before)
    return found


def _is_held(path: str) -> bool:
    if os.path.isdir(path) and not os.path.islink(path):
        return any(_is_held_file(name, here.fd) for here in walk(path, open_up=True, quiet=True) for name in here.files)
    return _is_held_file(path)


def _is_held_file(path: str, directory: int | None = None) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    # An unreadable file, a link or a FIFO is judged elsewhere. Closing gives the lease back.
    with suppress(OSError), closing(os.open(path, flags, dir_fd=directory)) as fd:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            return error.errno == errno.EAGAIN
    return False
