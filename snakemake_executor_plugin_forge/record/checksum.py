"""The checksum of an output: sha256 of all of it or, where that would cost too much, of samples, marked as such.

The hash is that of ``sha256sum`` and of the crates of analysis/provenance.py, so that anybody can check it;
docs/decisions/0019-checksums.md has the measurements. Small outputs are always read whole. The bound grows with the
job's run time, so that reading costs a fixed share of it: :func:`budget_bytes`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..kernel.long_paths import Shortcut, reach
from ..kernel.tree import walk
from ..spec.job import Checksums

WHOLE, SAMPLES = "whole", "samples"
ALGORITHM = "sha256"
FREE_BYTES = 16 * 1024 * 1024
"""Bytes that are read of any job's outputs, however short the job: 15 to 40 ms."""
BYTES_PER_SECOND = 8 * 1024 * 1024
"""Further bytes for each second of the job: 1 to 2 % of its time."""
SAMPLED_BYTES = 4 * 1024 * 1024
"""Bytes that are read of a sampled file, and of all files of a sampled directory together."""
_FILE_COST_BYTES = 16 * 1024  # opening and closing a file takes as long as reading this
_PIECES = 8
_SAMPLED_FILES = 32
_CHUNK = 1 << 20
TIMESTAMP = ".snakemake_timestamp"  # Snakemake puts it into a directory() after the job


@dataclass(frozen=True, slots=True)
class Measured:
    """A file, link or directory with all files in it, measured but not read."""

    path: str
    kind: str  # "file", "link" or "directory"
    size_bytes: int
    mtime_ns: int
    entries: tuple[tuple[str, int, int], ...] = ()  # of a directory, sorted: name below it, mode, bytes

    @property
    def cost_bytes(self) -> int:
        """The cost of reading all of it, in bytes."""
        return self.size_bytes + _FILE_COST_BYTES * (1 + len(self.entries))


def measure(path: str) -> Measured | None:
    """Measure a file, link or directory without reading it; None if it is missing or anything else.

    Raises:
        OSError: if a directory cannot be read.
    """
    try:
        status = reach(os.lstat, path)
    except OSError:
        return None
    if stat.S_ISREG(status.st_mode):
        return Measured(path, "file", status.st_size, status.st_mtime_ns)
    if stat.S_ISLNK(status.st_mode):
        return Measured(path, "link", status.st_size, status.st_mtime_ns)
    if not stat.S_ISDIR(status.st_mode):
        return None
    entries = tuple(sorted(_entries(path)))
    size = sum(size for _, mode, size in entries if stat.S_ISREG(mode))
    return Measured(path, "directory", size, status.st_mtime_ns, entries)


def _entries(directory: str) -> Iterator[tuple[str, int, int]]:
    for here in walk(directory):
        below = f"{here.path}/".removeprefix(f"{directory}/")
        for name in (*here.directories, *here.files):
            if below or name != TIMESTAMP:
                status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
                yield below + name, stat.S_IFMT(status.st_mode), status.st_size


def budget_bytes(mode: Checksums, seconds: float) -> int | None:
    """Bytes that may be read of the outputs of a job that ran for ``seconds``; None: all of them."""
    match mode:
        case Checksums.FULL:
            return None
        case Checksums.OFF:
            return 0
        case Checksums.AUTO:
            return FREE_BYTES + int(BYTES_PER_SECOND * seconds)


def fitting(costs: Sequence[int], budget: int | None) -> list[bool]:
    """Whether each output is read whole: the smallest are, as long as their sum is within the budget. Pure."""
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
    """Parts (offset, length) of a file to sample: beginning, end, and pieces between; all of a small file. Pure."""
    if size_bytes <= most_bytes:
        return [(0, size_bytes)]
    edge, piece = most_bytes // 4, most_bytes // 2 // _PIECES
    room = size_bytes - 2 * edge
    steps = [(edge + room * (2 * n + 1) // (2 * _PIECES) - piece // 2, piece) for n in range(_PIECES)]
    return [(0, edge), *steps, (size_bytes - edge, edge)]


def digest(found: Measured, covers: str) -> str:
    """The checksum, as ``sha256:…``.

    Args:
        found: what to read.
        covers: :data:`WHOLE` or :data:`SAMPLES`.

    Raises:
        OSError: if a file cannot be read.
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


def file_digest(path: str, algorithm: str) -> str:
    """The checksum of a file, hexadecimal.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _add_tree(total: Any, found: Measured, *, whole: bool) -> None:
    """Add names, kinds and sizes of all entries, and the contents of all files or of samples."""
    files = [name for name, mode, _ in found.entries if stat.S_ISREG(mode)]
    step = max(1, len(files) / _SAMPLED_FILES)
    read = set(files) if whole else {files[int(n * step)] for n in range(min(len(files), _SAMPLED_FILES))}
    with Shortcut() as near:
        for name, mode, size in found.entries:
            total.update(b"%s\0%o %d\0" % (os.fsencode(name), mode, size if stat.S_ISREG(mode) else 0))
            path = f"{found.path}/{name}"
            if stat.S_ISLNK(mode):
                total.update(os.fsencode(os.readlink(near(path))) + b"\0")
            elif name in read:
                _add(total, near(path), None if whole else sample_ranges(size, SAMPLED_BYTES // _SAMPLED_FILES))


def _add(total: Any, path: str, ranges: list[tuple[int, int]] | None) -> None:
    """Add a file, or parts of it, to a hash."""
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
