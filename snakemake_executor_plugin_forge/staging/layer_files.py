"""Files in layers: their kinds, and how they are deleted or made of others."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from ..kernel.long_paths import reach
from ..kernel.tree import copy


def unfit(mode: int) -> str | None:
    """Name what a file is, if it cannot be published."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
        return None
    return "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def is_whiteout(status: os.stat_result) -> bool:
    """Whether it is how an overlay says that something is deleted."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def remove_file(path: str) -> None:
    """Delete a file, also from a directory of this user that is read-only.

    Raises:
        OSError: if it cannot be deleted.
    """
    try:
        reach(os.unlink, path)
    except PermissionError:
        directory = os.path.dirname(path)
        mode = stat.S_IMODE(reach(os.lstat, directory).st_mode)
        reach(os.chmod, directory, mode=mode | stat.S_IRWXU)
        try:
            reach(os.unlink, path)
        finally:
            reach(os.chmod, directory, mode=mode)


def append(source: str, size: int, before: str, result: str) -> None:
    """Write a file that consists of another one and of what follows after the first ``size`` bytes of ``source``.

    It has the mode and owner of the other one, and is on the disk.

    Raises:
        OSError: if that is not possible.
    """
    reach(_append, source, before, result, size=size)


def _append(source: str, before: str, result: str, *, size: int) -> None:
    import shutil  # few jobs need it, and every fork copies the mappings of its libraries

    with suppress(FileNotFoundError):
        os.unlink(result)
    copy(before, result)
    status = os.lstat(before)
    with suppress(OSError):  # a group of which this user is no member
        os.chown(result, status.st_uid if os.geteuid() == 0 else -1, status.st_gid)
        os.chmod(result, stat.S_IMODE(status.st_mode))
    with open(source, "rb") as tail, open(result, "ab") as file:
        tail.seek(size)
        shutil.copyfileobj(tail, file)
        file.flush()
        os.fsync(file.fileno())
