"""Sums over rows of the index, for the report. Pure; charts.py draws them, report.py makes the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..record.index import Row
from .advise import Spread
from .explain import job_in_words, wildcards_in_words

COLUMNS = (
    *("run", "name", "rule", "wildcards", "attempt", "outcome", "reason", "started", "seconds", "cpus", "cpu_seconds"),
    *("memory_peak_bytes", "memory_limit_bytes", "io_read_bytes", "io_write_bytes", "scratch_peak_bytes"),
    *("disk_limit_bytes", "runtime", "backend"),
)


@dataclass(slots=True)
class RuleSums:
    """The sums over one rule."""

    rule: str
    outcomes: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    scratch_bytes: int = 0
    memory_limit_bytes: int | None = None
    disk_limit_bytes: int | None = None
    cpus: int = 1

    @property
    def attempts(self) -> int:
        """The number of attempts."""
        return sum(self.outcomes.values())

    @property
    def not_succeeded(self) -> int:
        """The number of attempts that did not succeed."""
        return self.attempts - self.outcomes.get("succeeded", 0) - self.outcomes.get("running", 0)

    def spread(self, what: str) -> Spread:
        """The spread of ``seconds``, ``memory_bytes`` or ``cores``; zeros without values."""
        return Spread.of(getattr(self, what)) or Spread(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Bar:
    """An attempt on one lane of the timeline, in seconds from the start of the page."""

    lane: int
    begin: float
    end: float
    rule: str
    ok: bool
    label: str


@dataclass(slots=True)
class Gathered:
    """The numbers of the page."""

    rules: dict[str, RuleSums] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    attempts: list[list[Any]] = field(default_factory=list)  # for the table: see _as_cells
    bars: list[Bar] = field(default_factory=list)
    lanes: int = 0
    begin: datetime | None = None
    seconds: float = 0.0  # from the first start to the last end
    runtimes: dict[tuple[str, str], int] = field(default_factory=dict)


def gather(rows: Iterator[Row] | Sequence[Row]) -> Gathered:
    """Sum up rows. Pure.

    Args:
        rows: with :data:`COLUMNS`.
    """
    found = Gathered()
    ordered = sorted(rows, key=lambda row: row["started"])
    free: list[float] = []  # when each lane is
    for row in ordered:
        started = datetime.fromisoformat(row["started"] or "1970-01-01T00:00:00+00:00")
        if found.begin is None:
            found.begin = started
        begin = (started - found.begin).total_seconds()
        end = begin + row["seconds"]
        found.seconds = max(found.seconds, end)
        _add_to_rule(found.rules.setdefault(row["rule"], RuleSums(row["rule"])), row)
        found.outcomes[row["outcome"]] = found.outcomes.get(row["outcome"], 0) + 1
        place = (row["runtime"], row["backend"])
        found.runtimes[place] = found.runtimes.get(place, 0) + 1
        ok, label = row["outcome"] in ("succeeded", "running"), job_in_words(row)
        for lane in _take_lanes(free, begin, end, row["cpus"] or 1):
            found.bars.append(Bar(lane, begin, end, row["rule"], ok, label))
        found.attempts.append(_as_cells(row, begin))
    found.lanes = len(free)
    return found


def _take_lanes(free: list[float], begin: float, end: float, count: int) -> list[int]:
    """Lanes for a job, one per CPU: free lanes, the lowest first, then new ones."""
    lanes = [lane for lane, until in enumerate(free) if until <= begin + 0.001][:count]
    while len(lanes) < count:
        lanes.append(len(free))
        free.append(0.0)
    for lane in lanes:
        free[lane] = end
    return lanes


def _add_to_rule(rule: RuleSums, row: Row) -> None:
    rule.outcomes[row["outcome"]] = rule.outcomes.get(row["outcome"], 0) + 1
    rule.memory_limit_bytes, rule.disk_limit_bytes = row["memory_limit_bytes"], row["disk_limit_bytes"]
    rule.cpus = row["cpus"] or 1
    if row["memory_peak_bytes"] is None:  # it runs, or was lost
        return
    rule.seconds.append(row["seconds"])
    rule.memory_bytes.append(row["memory_peak_bytes"])
    if row["seconds"] > 0:
        rule.cores.append(row["cpu_seconds"] / row["seconds"])
    rule.cpu_seconds += row["cpu_seconds"]
    rule.read_bytes += row["io_read_bytes"]
    rule.written_bytes += row["io_write_bytes"]
    rule.scratch_bytes = max(rule.scratch_bytes, row["scratch_peak_bytes"])


def _as_cells(row: Row, begin: float) -> list[Any]:
    """One short row of the page's table of attempts, which may have 10,000 rows."""
    return [
        row["rule"],
        wildcards_in_words(row["wildcards"]),
        row["attempt"],
        row["outcome"],
        round(begin, 2),
        round(row["seconds"], 3),
        row["memory_peak_bytes"],
        row["memory_limit_bytes"],
        None if row["cpu_seconds"] is None else round(row["cpu_seconds"], 3),
        row["cpus"],
        "" if row["outcome"] == "succeeded" else row["reason"],
    ]
