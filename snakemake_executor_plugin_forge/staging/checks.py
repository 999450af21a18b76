"""Checks between a job's success and the publication of its outputs: formats and checksums. They change nothing."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..kernel.syscalls import start_writeback
from ..record.checksum import SAMPLES, WHOLE, Measured, budget_bytes, digest, fitting, measure
from ..spec.job import CheckFormats, Checks, Checksums, Product
from .formats import gzip_budget_bytes, problem

_LARGE_BYTES = 1 << 20
_MOST_FILES = 1000  # of a directory, whose formats are checked


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result of the checks."""

    outputs: tuple[Mapping[str, object], ...] = ()  # the ``outputs`` of verdict.json
    rejected: tuple[str, ...] = ()  # sentences: reasons to publish nothing
    problems: tuple[str, ...] = ()  # sentences: notes


def inspect(checks: Checks, places: Callable[[Product], Iterable[str]], seconds: float) -> Inspection:
    """Check the outputs of a job.

    Args:
        checks: what to check.
        places: returns the paths where an unpublished output may be; the first existing one counts.
        seconds: how long the job ran, which bounds the time of the checks.
    """
    pairs: list[tuple[Product, Measured]] = []
    problems: list[str] = []
    for product in checks.outputs:
        try:
            found = next((m for place in places(product) if (m := measure(place)) is not None), None)
        except OSError as error:
            problems.append(f"{product.name} could not be read for its checksum: {error.strerror}")
            continue
        if found is not None:
            pairs.append((product, found))
            if found.kind == "file" and found.size_bytes >= _LARGE_BYTES:
                start_writeback(found.path)  # publishing waits for the disk, which can write while this is read
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
            except OSError:  # its mode denies it to its owner; the note on the checksum says so
                continue
            left -= min(size, left)
            if wrong is not None:
                yield f"{name} {wrong}"


def _files(product: Product, found: Measured) -> Iterator[tuple[str, str, int]]:
    """Yield the path, name and bytes of each regular file of an output."""
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
        covers = WHOLE if all_of_it else SAMPLES
        checksum = None
        if mode is not Checksums.OFF:
            try:
                checksum = digest(found, covers)
            except OSError as error:
                problems.append(f"{product.name} has no checksum, because it could not be read: {error.strerror}")
        yield _entry(product, found.kind, found.size_bytes, found.mtime_ns, checksum, covers)


def empty(product: Product) -> dict[str, object]:
    """Describe a file that Snakemake makes itself, for ``touch()``."""
    return _entry(product, "file", 0, time.time_ns())


def _entry(
    product: Product, kind: str, size_bytes: int, mtime_ns: int, checksum: str | None = None, covers: str | None = None
) -> dict[str, object]:
    """An entry of ``outputs``: docs/reference/record.md. ``covers`` says what a checksum is of."""
    return {
        "path": product.name,
        "kind": kind,
        "bytes": size_bytes,
        "mtime_ns": mtime_ns,
        "checksum": checksum,
        "covers": covers if checksum is not None else None,
        "temporary": product.temporary,
    }
