"""Files of /proc and of cgroups: the kernel makes their text when they are read, and takes values that are written."""

from __future__ import annotations

import os


def read(path: str) -> bytes:
    """All of it, if it is not larger than 64 KiB.

    Raises:
        OSError: as open(2) and read(2).

    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def write(path: str, value: str | int) -> None:
    """One value by one write(2): a buffered file hides the errno until garbage collection.

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
