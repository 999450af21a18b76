"""The table of all attempts as tab-separated values: docs/reference/trace.md. Pure.

The columns of Nextflow's trace report that mean the same have its names and, as with ``trace.raw``, its units: bytes,
and milliseconds for times. All others are named like the fields of ``snakemake-forge jobs --json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from ..record.index import Row
from ..spec.printable import printable
from .explain import wildcards_in_words

_OF_THE_INDEX = (
    *("reason", "retry", "memory_peak_bytes", "memory_anon_peak_bytes", "cpu_seconds", "pids_peak"),
    *("scratch_peak_bytes", "runtime", "backend"),
)
COLUMNS = (
    *("task_id", "process", "tag", "name", "status", "exit", "attempt", "submit", "start", "complete", "duration"),
    *("realtime", "cpus", "memory", "time", "disk", "%cpu", "read_bytes", "write_bytes", "run", "outcome"),
    *("directory", *_OF_THE_INDEX),
)
NEEDED = (
    *("run", "name", "rule", "wildcards", "attempt", "outcome", "exit_code", "signal", "submitted", "started"),
    *("seconds", "cpus", "memory_limit_bytes", "wall_limit_seconds", "disk_limit_bytes", "io_read_bytes"),
    *("io_write_bytes", *_OF_THE_INDEX),
)
"""Columns of the index that :func:`cells` reads."""
_STATUS = {"succeeded": "COMPLETED", "running": "RUNNING", "cancelled": "ABORTED"}
_NO_VALUE = "-"


def cells(row: Row) -> list[Any]:
    """The values of :data:`COLUMNS` of an attempt; None where there is none."""
    tag = printable(wildcards_in_words(row["wildcards"]))
    rule, seconds = printable(row["rule"]), row["seconds"]
    submit, start = epoch_ms(row["submitted"]), epoch_ms(row["started"])
    real = None if seconds is None else round(seconds * 1000)
    complete = None if start is None or real is None or row["outcome"] == "running" else start + real
    wall, cpu = row["wall_limit_seconds"], row["cpu_seconds"]
    return [
        int(number) if (number := row["name"].partition("-")[0]).isdecimal() else None,
        rule,
        tag,
        f"{rule} ({tag})" if tag else rule,
        _STATUS.get(row["outcome"], "FAILED"),
        128 + row["signal"] if row["signal"] else row["exit_code"],
        row["attempt"],
        submit,
        start,
        complete,
        None if complete is None or submit is None else complete - submit,
        real,
        row["cpus"],
        row["memory_limit_bytes"],
        None if wall is None else round(wall * 1000),
        row["disk_limit_bytes"],
        None if cpu is None or not seconds else _number(100 * cpu / seconds, 1),
        row["io_read_bytes"],
        row["io_write_bytes"],
        row["run"],
        row["outcome"],
        printable(f".snakemake/forge/runs/{row['run']}/{row['name']}"),
        *(_plain(value) for value in map(row.get, _OF_THE_INDEX)),
    ]


def _plain(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else _number(value, 3) if isinstance(value, float) else value


def _number(value: float, digits: int) -> float:
    """A rounded number, which Python and the page's script write alike."""
    rounded = round(value, digits)
    return int(rounded) if rounded == int(rounded) else rounded


def epoch_ms(text: str | None) -> int | None:
    """Milliseconds since 1970 of a time of the record; None without one."""
    if not text:
        return None
    return round((datetime.fromisoformat(text) - _EPOCH) / timedelta(milliseconds=1))


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def tsv(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of the table, each with its end. No cell has a tab or a line end: they are escaped."""
    yield "\t".join(COLUMNS) + "\n"
    for row in rows:
        yield "\t".join(_NO_VALUE if value is None else str(value) for value in cells(row)) + "\n"
