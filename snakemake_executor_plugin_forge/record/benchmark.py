"""Better figures for the file of a rule's ``benchmark:``, which Snakemake fills by polling.

Snakemake polls every half second and later every 30 seconds: it misses short peaks, and the CPU time and I/O after its
last sample. The kernel counts both. This module raises only columns for which it has a sound figure; header, order and
format stay Snakemake's (snakemake/benchmark.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

from ..spec.units import MEBIBYTE
from .jsonfile import parse
from .plain_files import open_regular

_LONGEST = 1 << 20
_MOST = 2.0**62


@dataclass(frozen=True, slots=True)
class Figures:
    """The kernel's figures for the processes that Snakemake measures; each is a lower bound."""

    max_rss_bytes: int
    cpu_seconds: float
    io_read_bytes: int
    io_write_bytes: int


def improve(path: str, figures: Figures) -> None:
    """Change the file, in place and with its old time, if it has exactly one record.

    Raises:
        OSError: if it cannot be read or written, or is a symbolic link.
    """
    fd = open_regular(path, os.O_RDWR, straight=True)
    try:
        status = os.fstat(fd)
        if status.st_size > _LONGEST:
            return
        old = os.pread(fd, _LONGEST, 0).decode("utf-8", "surrogateescape")
        new = improved(old, figures, jsonl=path.endswith(".jsonl"))
        if new == old:
            return
        data = new.encode("utf-8", "surrogateescape")
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(fd)


def improved(text: str, figures: Figures, *, jsonl: bool) -> str:
    """The text of a benchmark file with better figures; unchanged if it has not exactly one record. Pure."""
    lines = text.splitlines()
    try:
        if jsonl and len(lines) == 1:
            record = parse(lines[0])
            if not isinstance(record, dict) or "NaN" in lines[0] or "Infinity" in lines[0]:
                return text
            _improve(record, figures, lambda number: number)
            return json.dumps(record) + "\n"
        if not jsonl and len(lines) == 2:
            names, values = lines[0].split("\t"), lines[1].split("\t")
            record = dict(zip(names, values, strict=True))
            _improve(record, figures, lambda number: f"{number:.2f}")
            return lines[0] + "\n" + "\t".join(record.values()) + "\n"
    except (ValueError, AttributeError):  # an unknown format
        pass
    return text


def _improve(record: dict[str, object], figures: Figures, show: Callable[[float], object]) -> None:
    def raise_to(name: str, value: float) -> None:
        if name in record and value > (_number(record[name]) or 0):
            record[name] = show(value)

    raise_to("max_rss", figures.max_rss_bytes / MEBIBYTE)
    raise_to("io_in", figures.io_read_bytes / MEBIBYTE)
    raise_to("io_out", figures.io_write_bytes / MEBIBYTE)
    raise_to("cpu_time", figures.cpu_seconds)
    seconds, used = _number(record.get("s")), _number(record.get("cpu_time"))
    if seconds and used:  # percent of one CPU, as in Snakemake
        raise_to("mean_load", 100 * used / seconds)
        raise_to("cpu_usage", 100 * used)
    for name in ("io_in", "io_out"):  # beside a CPU time, "NA" would suggest that nothing was measured
        if used and record.get(name) == "NA":
            record[name] = show(0.0)


def _number(value: object) -> float | None:
    """The number in a column; None for "NA" and "-", and what no measurement can be."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if 0 <= number < _MOST else None
