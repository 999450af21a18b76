"""Small files of a record, read as they are found and written whole or not at all.

A damaged file is passed over, never an error: a crash may leave half of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any


def load(path: str) -> dict[str, Any] | None:
    """A JSON object; None if there is none that can be read."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read().decode("utf-8", "surrogateescape"))  # as it was written
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def amend(path: str, change: Mapping[str, Any]) -> dict[str, Any]:
    """Change some keys of a JSON object, or begin it with them.

    Returns:
        All of it.

    Raises:
        OSError: if it cannot be written; it is as it was.

    """
    content = {**(load(path) or {}), **change}
    replace_file(path, json.dumps(content, ensure_ascii=False))
    return content


def replace_file(path: str, content: str | bytes, *, durable: bool = False) -> None:
    """Write a file whole or not at all.

    Args:
        durable: so that a power cut does not take it away, and another host never finds the name without the content.

    Raises:
        OSError: if that is not possible.

    """
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}.{os.getpid()}"
    write_file(temporary, content)
    if durable:
        to_disk(temporary)
    os.rename(temporary, path)
    if durable:
        to_disk(directory)


def to_disk(path: str) -> None:
    """Have a file, or the names in a directory, on the disk before this returns: fsync(2).

    Raises:
        OSError: if that is not possible.

    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def on_its_way(path: str) -> None:
    """Begin to write a file to the disk, and do not wait for it: what POSIX_FADV_DONTNEED does first, see mm/fadvise.c.

    Raises:
        OSError: if there is none.

    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def write_file(path: str, content: str | bytes, mode: int = 0o644) -> None:
    """Write or overwrite a file; text as it was read, to the byte.

    Raises:
        OSError: if that is not possible.

    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
