"""Looked at between a job's success and the publishing of what it wrote: inputs, formats, checksums.

What comes of it is for the record and for the judge; nothing is changed here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .checksum import SAMPLES, WHOLE, Measured, budget_bytes, digest, fitting, measure
from .formats import gzip_budget_bytes, problem
from .model import CheckFormats, Checks, Checksums, Product
from .sandbox.syscalls import start_writeback

Version = tuple[int, int, int]  # inode, modification time in ns, bytes
_LARGE_BYTES = 1 << 20
_MOST_FILES = 1000  # of a directory whose formats are looked at


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found."""

    outputs: tuple[Mapping[str, object], ...] = ()  # the ``outputs`` of verdict.json
    rejected: tuple[str, ...] = ()  # sentences: with these nothing may be published
    problems: tuple[str, ...] = ()  # sentences: notes


def versions(paths: Iterable[str]) -> dict[str, Version]:
    """What tells the present version of each input from another, links followed.

    Of a directory only which one it is: what is put into it beside a job's files changes its time. FIFOs, sockets and
    what is not there are left out. One call of stat(2) each.
    """
    found = {}
    for path in paths:
        version = _version(path)
        if version is not None:
            found[path] = version
    return found


def _version(path: str) -> Version | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    if stat.S_ISREG(status.st_mode):
        return status.st_ino, status.st_mtime_ns, status.st_size
    return (status.st_ino, 0, 0) if stat.S_ISDIR(status.st_mode) else None


def changed(before: Mapping[str, Version]) -> list[str]:
    """Those inputs that are another version now, or gone."""
    return [path for path, version in before.items() if _version(path) != version]


def inspect(checks: Checks, places: Callable[[Product], Iterable[str]], seconds: float) -> Inspection:
    """Look at what a job that took ``seconds`` has written.

    Args:
        places: where an output may be now, before it is published; the first one where it is counts.

    """
    pairs: list[tuple[Product, Measured]] = []
    problems: list[str] = []
    for product in checks.outputs:
        try:
            found = next((m for place in places(product) if (m := measure(place)) is not None), None)
        except OSError as error:
            problems.append(f"{product.name} could not be looked at for its checksum: {error.strerror}")
            continue
        if found is not None:
            pairs.append((product, found))
            if found.kind == "file" and found.size_bytes >= _LARGE_BYTES:
                start_writeback(found.path)  # publishing waits for the disk, which can work while this is read
    wrong = list(_wrong_formats(checks.formats, pairs, seconds))
    rejected = wrong if checks.formats is CheckFormats.FAIL else []
    if checks.formats is CheckFormats.WARN:
        problems += wrong
    outputs = () if rejected else tuple(_described(checks.checksums, pairs, seconds, problems))
    return Inspection(outputs, tuple(rejected), tuple(problems))


def _wrong_formats(mode: CheckFormats, pairs: Sequence[tuple[Product, Measured]], seconds: float) -> Iterator[str]:
    if mode is CheckFormats.OFF:
        return
    left = gzip_budget_bytes(seconds)
    for product, found in pairs:
        for path, name, size in _files(product, found):
            try:
                wrong = problem(path, name, left)
            except OSError:  # its own owner may not read it; the checksum's note says so
                continue
            left -= min(size, left)
            if wrong is not None:
                yield f"{name} {wrong}"


def _files(product: Product, found: Measured) -> Iterator[tuple[str, str, int]]:
    """The regular files of an output: path, name, bytes."""
    if found.kind == "file":
        yield found.path, product.name, found.size_bytes
    for name, mode, size in found.entries[:_MOST_FILES]:
        if stat.S_ISREG(mode):
            yield f"{found.path}/{name}", f"{product.name}/{name}", size


def _described(
    mode: Checksums, pairs: Sequence[tuple[Product, Measured]], seconds: float, problems: list[str]
) -> Iterator[dict[str, object]]:
    whole = fitting([found.cost_bytes for _, found in pairs], budget_bytes(mode, seconds))
    for (product, found), all_of_it in zip(pairs, whole, strict=True):
        covers: str | None = WHOLE if all_of_it else SAMPLES
        checksum = None
        if mode is not Checksums.OFF and covers is not None:
            try:
                checksum = digest(found, covers)
            except OSError as error:
                problems.append(f"{product.name} has no checksum, because it could not be read: {error.strerror}")
        yield {
            "path": product.name,
            "kind": found.kind,
            "bytes": found.size_bytes,
            "mtime_ns": found.mtime_ns,
            "checksum": checksum,
            "covers": covers if checksum is not None else None,
            "temporary": product.temporary,
        }
