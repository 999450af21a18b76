"""Sums over rows of the index, for the report. Pure; report.py makes the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..record.index import Row
from . import trace
from .advise import Spread
from .timeline import Band, most_at_a_time

COLUMNS = tuple(dict.fromkeys((*trace.NEEDED, "scratch_peak_bytes")))
_WAIT_SECONDS = 1.0  # less is Forge's and Snakemake's own time


@dataclass(slots=True)
class RuleSums:
    """The sums over one rule."""

    rule: str
    outcomes: dict[str, int] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    scratch_bytes: int = 0
    memory_limit_bytes: int | None = None
    wall_limit_seconds: float | None = None
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

    def spread(self, what: str) -> Spread | None:
        """The spread of ``waits``, ``seconds``, ``memory_bytes`` or ``cores``; None without values."""
        return Spread.of(getattr(self, what))


@dataclass(slots=True)
class JobCounts:
    """The jobs of a rule by the outcome of their last attempts, and what a run has planned."""

    last: dict[str, int] = field(default_factory=dict)
    planned: int | None = None  # jobs; None: no run says so
    taken_over: int = 0  # done without an attempt of this run
    at_all: bool = True  # whether its jobs run anything

    @property
    def done(self) -> int:
        """The number of jobs that succeeded."""
        return self.last.get("succeeded", 0) + self.taken_over

    @property
    def running(self) -> int:
        """The number of running jobs."""
        return self.last.get("running", 0)

    @property
    def cancelled(self) -> int:
        """The number of cancelled jobs."""
        return self.last.get("cancelled", 0)

    @property
    def failed(self) -> int:
        """The number of jobs that ended otherwise."""
        return sum(self.last.values()) - self.last.get("succeeded", 0) - self.running - self.cancelled

    @property
    def pending(self) -> int:
        """The number of jobs that have not started."""
        known = self.done + self.running + self.failed + self.cancelled
        return max(0, (self.planned or 0) - known) if self.at_all else 0

    @property
    def state(self) -> str:
        """One word: ``failed``, ``running``, ``cancelled``, ``pending``, ``succeeded``, ``needless``."""
        for name in ("failed", "running", "cancelled", "pending"):
            if getattr(self, name):
                return name
        return "succeeded" if self.done else "needless"

    def words(self) -> str:
        """The numbers for people: "2 failed, 38 of 40 done"."""
        if not self.at_all:
            return "only names files"
        total = self.done + self.failed + self.running + self.cancelled + self.pending
        if not total:
            return "up to date"
        counts = [f"{n} {what}" for what in ("failed", "running", "cancelled") if (n := getattr(self, what))]
        return ", ".join([*counts, f"{self.done} of {total} done"])


@dataclass(slots=True)
class Gathered:
    """The numbers of the page."""

    rules: dict[str, RuleSums] = field(default_factory=dict)
    jobs: dict[str, JobCounts] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    attempts: list[list[Any]] = field(default_factory=list)  # the cells of trace.COLUMNS
    drawn: list[tuple[float, float, int]] = field(default_factory=list)  # begin, wait and lane of each
    bands: dict[str, Band] = field(default_factory=dict)
    seconds: float = 0.0  # from the first start to the last end
    cpus: list[int] = field(default_factory=list)  # in use, over the time
    waiting: list[int] = field(default_factory=list)  # jobs that waited, over the time
    runtimes: dict[tuple[str, str], int] = field(default_factory=dict)

    def total(self, what: str) -> int:
        """The sum of a number of :class:`JobCounts` over the rules."""
        return sum(int(getattr(counts, what)) for counts in self.jobs.values())


def gather(rows: Iterable[Row], plan: Mapping[str, Mapping[str, Any]]) -> Gathered:
    """Sum up rows. Pure.

    Args:
        rows: with :data:`COLUMNS`.
        plan: the jobs that the run has to do, as ``plan`` in ``run.json``; {} if none is known.
    """
    found, first = Gathered(), 0
    spans: list[tuple[float, float, int]] = []
    waits: list[tuple[float, float, int]] = []
    last: dict[tuple[str, str], str] = {}
    for row in sorted(rows, key=lambda row: row["started"]):
        at = trace.epoch_ms(row["started"]) or 0
        first = first if found.attempts else at
        begin = (at - first) / 1000
        end = begin + row["seconds"]
        found.seconds = max(found.seconds, end)
        wait = None if not row["submitted"] else max(0.0, (at - (trace.epoch_ms(row["submitted"]) or at)) / 1000)
        rule = row["rule"]
        _add_to_rule(found.rules.setdefault(rule, RuleSums(rule)), row, wait)
        found.outcomes[row["outcome"]] = found.outcomes.get(row["outcome"], 0) + 1
        place = (row["runtime"], row["backend"])
        found.runtimes[place] = found.runtimes.get(place, 0) + 1
        lane = found.bands.setdefault(rule, Band(rule)).add(begin, end, ok=row["outcome"] in ("succeeded", "running"))
        spans.append((begin, end, row["cpus"] or 1))
        if wait is not None and wait >= _WAIT_SECONDS:
            waits.append((max(0.0, begin - wait), begin, 1))
        last[rule, repr(row["wildcards"])] = row["outcome"]
        found.attempts.append(trace.cells(row))
        found.drawn.append((round(begin, 2), round(wait or 0, 2), lane))
    found.cpus, found.waiting = (most_at_a_time(one, found.seconds) for one in (spans, waits))
    found.jobs = _count(last, plan)
    return found


def _count(last: Mapping[tuple[str, str], str], plan: Mapping[str, Mapping[str, Any]]) -> dict[str, JobCounts]:
    found: dict[str, JobCounts] = {}
    for rule, planned in plan.items():
        found[rule] = JobCounts({}, planned["jobs"], planned["taken_over"], planned["threads"] > 0)
    for (rule, _), outcome in last.items():
        counts = found.setdefault(rule, JobCounts()).last
        counts[outcome] = counts.get(outcome, 0) + 1
    return found


def _add_to_rule(rule: RuleSums, row: Row, wait: float | None) -> None:
    rule.outcomes[row["outcome"]] = rule.outcomes.get(row["outcome"], 0) + 1
    rule.memory_limit_bytes, rule.disk_limit_bytes = row["memory_limit_bytes"], row["disk_limit_bytes"]
    rule.wall_limit_seconds = row["wall_limit_seconds"]
    rule.cpus = row["cpus"] or 1
    if wait is not None:
        rule.waits.append(wait)
    if row["memory_peak_bytes"] is None:  # it runs, or was lost
        return
    rule.seconds.append(row["seconds"])
    rule.memory_bytes.append(row["memory_peak_bytes"])
    if row["seconds"] > 0:
        rule.cores.append((row["cpu_seconds"] or 0) / row["seconds"])
    rule.cpu_seconds += row["cpu_seconds"] or 0
    rule.read_bytes += row["io_read_bytes"] or 0
    rule.written_bytes += row["io_write_bytes"] or 0
    rule.scratch_bytes = max(rule.scratch_bytes, row["scratch_peak_bytes"] or 0)
