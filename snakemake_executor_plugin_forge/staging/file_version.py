"""The version of a file, as stat(2) tells one from another."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from ..kernel.long_paths import reach


class FileVersion(NamedTuple):
    """Identifies one version of a file, as a JSON list in records."""

    inode: int
    mtime_ns: int
    size_bytes: int

    @classmethod
    def from_json(cls, data: object) -> FileVersion:
        """Read a version in a file.

        Raises:
            TypeError: for anything else.
        """
        if not isinstance(data, list) or len(data) != 3 or not all(type(number) is int for number in data):
            raise TypeError(f"{data!r:.100} is no version of a file")
        return cls(*data)

    @classmethod
    def of(cls, status: os.stat_result) -> FileVersion:
        """The version that a call of stat(2) or lstat(2) has seen."""
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


NOTHING = FileVersion(0, 0, 0)
"""Stands, in files, for a place where nothing was: no file has inode 0."""


def status_of(path: str) -> os.stat_result | None:
    """lstat(2); None if there is no such file, and only then.

    Raises:
        OSError: if that cannot be found out: no permission, a network file system that does not answer.
    """
    try:
        found: os.stat_result = reach(os.lstat, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found


def file_version(path: str) -> FileVersion | None:
    """The present version of a file, link or directory, links not followed; None if it cannot be seen."""
    try:
        return FileVersion.of(reach(os.lstat, path))
    except OSError:
        return None


def input_version(path: str) -> FileVersion | None:
    """The present version of an input, links followed; None if it is missing, or neither a file nor a directory.

    The version of a directory is its inode alone, because its time changes when other files are put into it.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    if stat.S_ISREG(status.st_mode):
        return FileVersion.of(status)
    return FileVersion(status.st_ino, 0, 0) if stat.S_ISDIR(status.st_mode) else None


def as_path(value: object) -> str:
    """Return an absolute path from a file.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise TypeError(f"{value!r:.100} is no absolute path")
    os.fsencode(value)  # UnicodeEncodeError is a ValueError
    return value
