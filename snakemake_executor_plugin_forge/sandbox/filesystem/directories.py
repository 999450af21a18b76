"""Directories that several supervisors share: each makes them when it needs them, and removes those it leaves empty.

So a directory may vanish at any moment, on this host or on another one with the same file system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from ...kernel.descriptors import closing
from ...kernel.long_paths import reach
from ...kernel.plain_paths import make_directories

# ESTALE: another host removed it (NFS). EEXIST: os.makedirs() failed because it was there, and it was gone when
# os.makedirs() tested whether it is a directory.
_GONE = (errno.ENOENT, errno.ESTALE, errno.EEXIST)
_TRIES = 100


def make_shared(path: str) -> None:
    """Make a directory and those above it, even if other processes remove some of them meanwhile.

    Raises:
        OSError: if it cannot be made.
    """
    among_others(lambda: os.makedirs(path, exist_ok=True))


def make_places(path: str) -> None:
    """Make a directory for outputs and those above it, as :func:`make_shared`; none of them may be a link.

    Raises:
        OSError: if it cannot be made.
    """
    among_others(lambda: make_directories(path))


def among_others(make: Callable[[], None]) -> None:
    """Call a function again and again until no other process removes a directory that it needs.

    Args:
        make: makes these directories itself.

    Raises:
        OSError: of the last call.
    """
    for _ in range(_TRIES - 1):
        try:
            return make()
        except OSError as error:
            if error.errno not in _GONE:
                raise
    return make()


@contextmanager
def locked(path: str, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> Iterator[None]:
    """Hold the lock of an existing directory, or with ``os.O_RDWR`` of a file, for a while: flock(2).

    Raises:
        OSError: if another process has locked it, or it cannot be locked.
    """
    with closing(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def waited_lock(path: str) -> Iterator[None]:
    """Wait for the lock of a file, which is made if need be, and hold it for a while: flock(2).

    Where it cannot be locked (a file system without locks, another user's file) nothing is waited for.
    """
    fd = -1
    try:
        with suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def attribute(path: str, name: str) -> bytes | None:
    """Return an extended attribute of a file, links not followed; None if it has none: getxattr(2)."""
    try:
        found: bytes = reach(os.getxattr, path, attribute=name, follow_symlinks=False)
        return found
    except OSError:
        return None


_ACCESS_LISTS = ("system.posix_acl_access", "system.posix_acl_default")


def access_lists(path: str) -> dict[str, bytes]:
    """Return the access control lists of a directory: acl(5)."""
    return {name: value for name in _ACCESS_LISTS if (value := attribute(path, name)) is not None}


def make_like(directory: str, place: str) -> None:
    """Give a directory the owner, mode and access control lists of another one: see :func:`reset`."""
    status = os.stat(place)
    reset(directory, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, access_lists(place))


def is_like(directory: str, place: str) -> bool:
    """Whether :func:`make_like` has nothing to do; also if one of them is missing."""
    try:
        now, wanted = os.lstat(directory), os.stat(place)
        names = os.listxattr(directory, follow_symlinks=False)
    except OSError:
        return True
    lists = access_lists(directory) == access_lists(place)
    own = any(name.startswith("user.") and not name.startswith("user.overlay.") for name in names)
    return lists and not own and stat.S_IMODE(now.st_mode) == stat.S_IMODE(wanted.st_mode)


def reset(directory: str, mode: int, uid: int, gid: int, lists: Mapping[str, bytes] | None = None) -> None:
    """Give a directory back its owner, mode and access control lists, and take away all attributes of a user.

    A job can change the directory that it sees as its working directory, /tmp or $HOME, and the next job sees it, too:
    acl(5), xattr(7). A group in which this user is not stays.

    Raises:
        OSError: if its mode cannot be set.
    """
    lists, now = lists or {}, os.lstat(directory)
    if (now.st_uid, now.st_gid) != (uid, gid):
        with suppress(OSError):
            os.chown(directory, uid if os.geteuid() == 0 else -1, gid, follow_symlinks=False)
    with suppress(OSError):
        for name in os.listxattr(directory, follow_symlinks=False):
            is_users = name.startswith("user.") and not name.startswith("user.overlay.")
            if is_users or (name in _ACCESS_LISTS and name not in lists):
                os.removexattr(directory, name, follow_symlinks=False)
        for name, value in lists.items():
            if attribute(directory, name) != value:
                os.setxattr(directory, name, value, follow_symlinks=False)
    if stat.S_IMODE(os.lstat(directory).st_mode) != mode:
        os.chmod(directory, mode)


def remove_if_empty(path: str) -> bool:
    """Remove a directory if it exists and is empty; return whether it was removed."""
    with suppress(OSError):
        os.rmdir(path)
        return True
    return False
