"""The checksum of an output: sha256 of the whole or, where that would cost too much, of samples, marked as such.

The hash is that of ``sha256sum`` and of the crates of provenance.py, so that anybody can check it; docs/decisions/
0019-checksums.md has the measurements. What is small is always read whole. The bound grows with the time that the job
took, so that reading costs a fixed share of it: :func:`budget_bytes`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .model import Checksums

WHOLE, SAMPLES = "whole", "samples"
ALGORITHM = "sha256"
FREE_BYTES = 16 * 1024 * 1024
"""What a job's outputs are read of however short it was: 15 to 40 ms."""
BYTES_PER_SECOND = 8 * 1024 * 1024
"""What is read more for each second that the job took: 1 to 2 % of its time."""
SAMPLED_BYTES = 4 * 1024 * 1024
"""What is read of a file that is sampled, and of all files of a directory together."""
_FILE_COST_BYTES = 16 * 1024  # to open and close one takes as long as to read this
_PIECES = 8
_SAMPLED_FILES = 32
_CHUNK = 1 << 20
_TIMESTAMP = ".snakemake_timestamp"  # which Snakemake puts into a directory() after the job


@dataclass(frozen=True, slots=True)
class Measured:
    """A file, link or directory, and all files in it."""

    path: str
    kind: str  # "file", "link" or "directory"
    size_bytes: int
    mtime_ns: int
    entries: tuple[tuple[str, int, int], ...] = ()  # of a directory, sorted: name below it, mode, bytes

    @property
    def cost_bytes(self) -> int:
        """What it costs to read all of it."""
        return self.size_bytes + _FILE_COST_BYTES * (1 + len(self.entries))


def measure(path: str) -> Measured | None:
    """Look at a file without reading it; None for what is not there, and for devices and the like.

    Raises:
        OSError: if a directory cannot be read.

    """
    try:
        status = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISREG(status.st_mode):
        return Measured(path, "file", status.st_size, status.st_mtime_ns)
    if stat.S_ISLNK(status.st_mode):
        return Measured(path, "link", status.st_size, status.st_mtime_ns)
    if not stat.S_ISDIR(status.st_mode):
        return None
    entries = tuple(sorted(_entries(path, "")))
    size = sum(size for _, mode, size in entries if stat.S_ISREG(mode))
    return Measured(path, "directory", size, status.st_mtime_ns, entries)


def _entries(directory: str, prefix: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(directory) as found:
        for entry in found:
            if not prefix and entry.name == _TIMESTAMP:
                continue
            status = entry.stat(follow_symlinks=False)
            yield prefix + entry.name, stat.S_IFMT(status.st_mode), status.st_size
            if stat.S_ISDIR(status.st_mode):
                yield from _entries(entry.path, f"{prefix}{entry.name}/")


def budget_bytes(mode: Checksums, seconds: float) -> int | None:
    """How much of its outputs may be read after a job that took so long; None: all of them."""
    match mode:
        case Checksums.FULL:
            return None
        case Checksums.OFF:
            return 0
        case Checksums.AUTO:
            return FREE_BYTES + int(BYTES_PER_SECOND * seconds)


def fitting(costs: Sequence[int], budget: int | None) -> list[bool]:
    """Which of them are read whole: the smallest first, as long as their sum is within the budget. Pure."""
    chosen = [False] * len(costs)
    left = budget
    for number in sorted(range(len(costs)), key=lambda n: (costs[n], n)):
        if left is not None:
            if costs[number] > left:
                break
            left -= costs[number]
        chosen[number] = True
    return chosen


def sample_ranges(size_bytes: int, most_bytes: int) -> list[tuple[int, int]]:
    """The parts (offset, length) of a file that stand for it: beginning, end, and pieces between. Pure.

    All of it, if it is no larger than ``most_bytes``.
    """
    if size_bytes <= most_bytes:
        return [(0, size_bytes)]
    edge, piece = most_bytes // 4, most_bytes // 2 // _PIECES
    room = size_bytes - 2 * edge
    steps = [(edge + room * (2 * n + 1) // (2 * _PIECES) - piece // 2, piece) for n in range(_PIECES)]
    return [(0, edge), *steps, (size_bytes - edge, edge)]


def digest(found: Measured, covers: str) -> str:
    """The checksum, as ``sha256:…``.

    Args:
        covers: :data:`WHOLE` or :data:`SAMPLES`: how much of it is read.

    Raises:
        OSError: if it cannot be read.

    """
    whole = covers == WHOLE
    total = hashlib.new(ALGORITHM, usedforsecurity=False)
    if found.kind == "link":
        total.update(os.fsencode(os.readlink(found.path)))
    elif found.kind == "file":
        if not whole:
            total.update(b"%d\0" % found.size_bytes)
        _add(total, found.path, None if whole else sample_ranges(found.size_bytes, SAMPLED_BYTES))
    else:
        _add_tree(total, found, whole=whole)
    return f"{ALGORITHM}:{total.hexdigest()}"


def _add_tree(total: Any, found: Measured, *, whole: bool) -> None:
    """Names, kinds and sizes of all that is in it, and the contents of the files or of some of them."""
    files = [name for name, mode, _ in found.entries if stat.S_ISREG(mode)]
    step = max(1, len(files) / _SAMPLED_FILES)
    read = set(files) if whole else {files[int(n * step)] for n in range(min(len(files), _SAMPLED_FILES))}
    for name, mode, size in found.entries:
        path = f"{found.path}/{name}"
        total.update(b"%s\0%o %d\0" % (os.fsencode(name), mode, size if stat.S_ISREG(mode) else 0))
        if stat.S_ISLNK(mode):
            total.update(os.fsencode(os.readlink(path)) + b"\0")
        elif name in read:
            _add(total, path, None if whole else sample_ranges(size, SAMPLED_BYTES // _SAMPLED_FILES))


def _add(total: Any, path: str, ranges: list[tuple[int, int]] | None) -> None:
    """Read a file, or some of it, into a hash."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if ranges is None:
            while chunk := os.read(fd, _CHUNK):
                total.update(chunk)
            return
        for start, length in ranges:
            place, end = start, start + length
            while place < end and (chunk := os.pread(fd, min(end - place, _CHUNK), place)):
                total.update(chunk)
                place += len(chunk)
    finally:
        os.close(fd)
