"""Directories that several supervisors share: whoever needs one makes it, and whoever leaves it empty removes it.

So one that was there a moment ago may be gone, on this machine or on another one that has the same file system.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress

# ESTALE: on NFS, when another host removed it. EEXIST: os.makedirs() was told that it is there, and did not find it
# when it looked whether it is a directory.
_GONE = (errno.ENOENT, errno.ESTALE, errno.EEXIST)
_TRIES = 100


def make_shared(path: str) -> None:
    """Make a directory and those above it, however often somebody else removes them in the meantime.

    Raises:
        OSError: if it cannot be made.

    """
    among_others(lambda: os.makedirs(path, exist_ok=True))


def among_others(make: Callable[[], None]) -> None:
    """Do what needs directories that somebody else may remove, until it is done.

    Args:
        make: makes them, too; done again from its beginning if one of them is gone.

    Raises:
        OSError: of the last try.

    """
    for _ in range(_TRIES - 1):
        try:
            return make()
        except OSError as error:
            if error.errno not in _GONE:
                raise
    return make()


def remove_if_empty(path: str) -> bool:
    """Remove a directory that is there and has nothing in it; whether that was so."""
    with suppress(OSError):
        os.rmdir(path)
        return True
    return False


def remove_tree(root: str) -> None:
    """Remove a tree whatever its modes are (an ordinary user meets directories without permissions)."""

    def open_up_and_retry(function: object, path: str, info: object) -> None:
        del function, info
        for directory in (os.path.dirname(path), path):
            with suppress(OSError):
                if stat.S_ISDIR(os.lstat(directory).st_mode):
                    os.chmod(directory, 0o700)
        with suppress(OSError):
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)

    if os.path.lexists(root):
        shutil.rmtree(root, onerror=open_up_and_retry)
