"""The phases of an attempt, from the events of its record: how long each took, and what its supervisor used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import median
from typing import Any

from ..record.archive import read_entries
from ..record.jsonfile import EVENTS
from ..record.plain_files import read_lines

PHASES = ("plan", "dispatch", "enter", "run", "wait", "judge", "publish", "record", "report")
"""The phases in their order; docs/explanation/performance.md says of what each consists."""
CPU = "supervisor_cpu"

_MARKS = {
    "enter": ("created", "started"),
    "run": ("started", "exited"),
    "wait": ("exited", "all dead"),
    "judge": ("all dead", "judged"),
    "publish": ("judged", "published"),
    "record": ("published", "recorded"),
    "report": ("recorded", "reported"),
}
"""The events between which a phase lies."""

Timings = dict[str, float | None]


def phases(events: Iterable[object]) -> Timings:
    """Return the seconds of each phase; None for one that the record does not tell. Pure."""
    times: dict[str, float] = {}
    known: dict[str, float | None] = {}
    for event in events:
        if not isinstance(event, Mapping):
            continue
        name, seconds = event.get("event"), _seconds(event.get("seconds"))
        if isinstance(name, str) and seconds is not None:
            times.setdefault(name, seconds)
        if name == "created":
            known |= {phase: _seconds(event.get(f"{phase}_seconds")) for phase in ("plan", "dispatch")}
        elif name == "reported":
            known[CPU] = _seconds(event.get("cpu_seconds"))
            if (recorded := _seconds(event.get("recorded_seconds"))) is not None:
                times["recorded"] = recorded
    for phase, (begin, end) in _MARKS.items():
        known[phase] = round(max(0.0, times[end] - times[begin]), 6) if begin in times and end in times else None
    return {name: known.get(name) for name in (*PHASES, CPU)}


def medians(found: Iterable[Timings]) -> Timings:
    """Return the median of each phase over the attempts that tell it. Pure."""
    every = list(found)
    columns = {name: [seconds for one in every if (seconds := one[name]) is not None] for name in (*PHASES, CPU)}
    return {name: median(column) if column else None for name, column in columns.items()}


def read(attempts: Iterable[Mapping[str, Any]], runs: str) -> Iterator[Timings]:
    """Yield the timings of attempts, in their order.

    Args:
        attempts: with ``run`` and ``name``, those of one run one after the other.
        runs: the directory with the records of all runs.
    """
    archived: dict[str, object] = {}
    archive = ""
    for attempt in attempts:
        run, name = attempt["run"], attempt["name"]
        lines = read_lines(f"{runs}/{run}/{name}/{EVENTS}")
        if lines is None and archive != run:
            archive, archived = run, {entry["name"]: entry.get("events") for entry in read_entries(f"{runs}/{run}")}
        events = lines if lines is not None else archived.get(name)
        yield phases(events if isinstance(events, list) else ())


def _seconds(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and abs(value) < 2.0**53 else None  # type: ignore[arg-type]
