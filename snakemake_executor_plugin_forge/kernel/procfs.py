"""Files of /proc and of cgroups: the kernel makes their text for each read, and takes each write as a value."""

from __future__ import annotations

import os
import re

_OCTAL = re.compile(rb"\\([0-7]{3})")


def read(path: str) -> bytes:
    """Read a file of at most 64 KiB.

    Raises:
        OSError: as open(2) and read(2).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def read_whole(path: str) -> bytes:
    """Read a file that the kernel may give in pieces, however large.

    Raises:
        OSError: as open(2) and read(2).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while piece := os.read(fd, 65536):
            text += piece
        return text
    finally:
        os.close(fd)


def mount_path(field: bytes) -> str:
    """A path in mountinfo, which writes blanks and the like as octal numbers: proc_pid_mountinfo(5)."""
    return os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), field))


def mount_number(fd: int) -> str:
    """Return the number of the mount that an open file lies on: proc_pid_fdinfo(5)."""
    lines = read(f"/proc/self/fdinfo/{fd}").splitlines()
    return next(line.split()[1].decode() for line in lines if line.startswith(b"mnt_id:"))


def write(path: str, value: str | int) -> None:
    """Write one value by one write(2): a buffered file hides the errno until garbage collection.

    Raises:
        OSError: naming the value that the kernel refused, and the file.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        raise OSError(error.errno, f"cannot write {value} to {path}: {error.strerror}") from error
    finally:
        os.close(fd)
