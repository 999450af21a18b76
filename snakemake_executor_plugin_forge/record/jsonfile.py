"""Small files of a record, and their names. A write is complete or does not happen; a damaged file reads as missing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..kernel.plain_paths import checked_regular

_MOST_DEPTH = 64
MOST_BYTES = 1 << 28  # of a file


def parse(text: str) -> Any:
    """Return the value of JSON from anywhere: at most 64 levels deep, with null for NaN and infinite numbers.

    Raises:
        ValueError: for anything else.
    """
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if text.count("[") + text.count("{") > _MOST_DEPTH and _is_deeper(value, _MOST_DEPTH):
        raise ValueError(f"it is nested more than {_MOST_DEPTH} levels deep")
    return value


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _is_deeper(value: object, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for some in inner for one in some if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def load(path: str, most_bytes: int = MOST_BYTES) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing, damaged, no regular file, or longer than ``most_bytes``."""
    try:
        with suppress(ValueError):
            return read_object(path, most_bytes)
    except OSError:
        pass
    return None


def read_object(path: str, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: if the file cannot be opened or read, or is no regular file: a FIFO is never waited for.
        ValueError: if it is damaged, or longer than ``most_bytes``.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(checked_regular(fd, path), "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is longer than {most_bytes} bytes")
    content = parse(data.decode("utf-8", "surrogateescape"))  # as write_file() encodes it
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - of the file
    return content


def amend(path: str, change: Mapping[str, Any]) -> dict[str, Any]:
    """Change some keys of a JSON object in a file, or write a new object with them.

    Returns:
        The whole object.

    Raises:
        OSError: if it cannot be written; the file is then as it was.
    """
    content = {**(load(path) or {}), **change}
    replace_file(path, json.dumps(content, ensure_ascii=False))
    return content


def replace_file(path: str, content: str | bytes, *, durable: bool = False, mode: int | None = None) -> None:
    """Replace a file atomically.

    Args:
        content: text may contain surrogates: see write_file().
        mode: its permissions; None: what the umask leaves.
        durable: sync it, so that it survives a power cut and no other host sees the name without the content.

    Raises:
        OSError: if that is not possible; the file is then as it was.
    """
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}.{os.getpid()}"
    fd = _new_file(temporary)
    try:
        _write_all(fd, content)
        if mode is not None:
            os.fchmod(fd, mode)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if durable:
        to_disk(directory)


def _new_file(path: str) -> int:
    """Make a file where none is: what a dead process left goes, and a link that somebody put there is not followed."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o644)
    except FileExistsError:
        os.unlink(path)
        return os.open(path, flags, 0o644)


def to_disk(path: str) -> None:
    """Write a file, or the names in a directory, to the disk before this returns: fsync(2).

    Raises:
        OSError: if that is not possible.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def begin_to_write(fd: int) -> None:
    """Begin to write an open file to the disk without waiting; POSIX_FADV_DONTNEED does that first: mm/fadvise.c.

    Raises:
        OSError: if it is no regular file.
    """
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def on_its_way(path: str) -> None:
    """Begin to write a file to the disk without waiting.

    Raises:
        OSError: if the file cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        begin_to_write(fd)
    finally:
        os.close(fd)


def write_file(path: str, content: str | bytes, mode: int = 0o644) -> None:
    """Write or overwrite a file; surrogates in text become the bytes that they stand for.

    Raises:
        OSError: if that is not possible.
    """
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        _write_all(fd, content)
    finally:
        os.close(fd)


def _write_all(fd: int, content: str | bytes) -> None:
    view = memoryview(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    while view:
        view = view[os.write(fd, view) :]


STDOUT, STDERR = "stdout.log", "stderr.log"
SPEC, VERDICT, EVENTS, COMMAND = "spec.json", "verdict.json", "events.jsonl", "command.sh"
STAGED = "staged.json"
"""The file in an attempt's directory that lists outputs which wait for a run to adopt them: staging/pending.py."""
CLOSED = "slurm/closed"
"""The mark in a run's directory that no job of the run publishes any more or runs on a node."""
LEFT = "slurm/left"
"""The mark in a run's directory that the run could not end all of its jobs on nodes, which publish nothing more."""
ADOPTABLE = "adoptable"
"""The folder of a state directory with an entry for each job that runs without its Snakemake, or waits for one."""
