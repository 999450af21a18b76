"""The one reader of files that a job may have exchanged for something else: its logs, streams and benchmarks.

A link could lead to a file that the job itself may not read, a FIFO would block, a device would never end. So only
regular files are opened, no link is followed, and no more is read than the caller names.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import BinaryIO

from ..kernel.plain_paths import checked_regular
from ..kernel.plain_paths import open_regular as open_straight
from .jsonfile import MOST_BYTES, parse

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def open_regular(path: str, flags: int = os.O_RDONLY, *, straight: bool = False) -> int:
    """Open a regular file; links to it are refused.

    Args:
        flags: of open(2).
        straight: whether the directories on the way may be no links either, as where a job writes. Elsewhere they are
            the user's own.

    Raises:
        OSError: if it is none, or cannot be opened.
    """
    if straight:
        return open_straight(path, flags)
    return checked_regular(os.open(path, flags | _FLAGS), path)


def open_to_read(path: str, *, straight: bool = False) -> BinaryIO:
    """Open a regular file to be read: see :func:`open_regular`.

    Raises:
        OSError: if it is none, or cannot be opened.
    """
    return open(path, "rb", opener=lambda name, _: open_regular(name, straight=straight))


def read_lines(path: str) -> list[object] | None:
    """Return the values in a file with JSON in each line, without damaged ones; None if it cannot be read."""
    try:
        with open_to_read(path) as file:
            text = file.read(MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            found.append(parse(line))
    return found


def read_end(path: str, most_bytes: int, *, straight: bool = False) -> str:
    """Return the end of a text file; "" if it is no regular file or cannot be read: see :func:`open_regular`."""
    with suppress(OSError), open_to_read(path, straight=straight) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most_bytes))
        return file.read(most_bytes).decode("utf-8", "replace")
    return ""
