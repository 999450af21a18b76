"""Better figures for the file of a rule's ``benchmark:``, which Snakemake fills from what it has polled.

Snakemake looks every half second and, later on, every 30 seconds: it misses short peaks, and the CPU time and I/O after
its last look. The kernel counts both. Only columns for which there is a sound figure are changed, never downwards;
header, order and format stay Snakemake's (snakemake/benchmark.py).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from ..units import MEBIBYTE

_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Figures:
    """What the kernel says of the processes that Snakemake means to measure; each is a lower bound."""

    max_rss_bytes: int
    cpu_seconds: float
    io_read_bytes: int
    io_write_bytes: int


def improve(path: str, figures: Figures) -> bool:
    """Change the file, in place and with its old time, if it has exactly one record.

    Returns:
        Whether anything was better.

    Raises:
        OSError: if it cannot be read or written, or is a symbolic link.

    """
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST:
            return False
        old = os.pread(fd, _LONGEST, 0).decode("utf-8", "surrogateescape")
        new = improved(old, figures, jsonl=path.endswith(".jsonl"))
        if new == old:
            return False
        data = new.encode("utf-8", "surrogateescape")
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(fd)
    return True


def improved(text: str, figures: Figures, *, jsonl: bool) -> str:
    """The text of a benchmark file with better figures; unchanged if it has not exactly one record. Pure."""
    lines = text.splitlines()
    try:
        if jsonl and len(lines) == 1:
            record = json.loads(lines[0])
            _improve(record, figures, lambda number: number)
            return json.dumps(record) + "\n"
        if not jsonl and len(lines) == 2:
            names, values = lines[0].split("\t"), lines[1].split("\t")
            record = dict(zip(names, values, strict=True))
            _improve(record, figures, lambda number: f"{number:.2f}")
            return lines[0] + "\n" + "\t".join(record.values()) + "\n"
    except (ValueError, AttributeError):  # not the format that we know
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
    if seconds and used:  # percent of one CPU, as Snakemake has it
        raise_to("mean_load", 100 * used / seconds)
        raise_to("cpu_usage", 100 * used)
    for name in ("io_in", "io_out"):  # with a CPU time next to them, "NA" would read as if nobody had looked
        if used and record.get(name) == "NA":
            record[name] = show(0.0)


def _number(value: object) -> float | None:
    """Of a column; None for "NA" and "-"."""
    try:
        return float(str(value))
    except ValueError:
        return None
