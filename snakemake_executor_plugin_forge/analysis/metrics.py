"""Metrics of a run and of its history, for Prometheus: names and units after prometheus.io/docs/practices/naming.

One tally holds the sums; it is filled from the index (``snakemake-forge metrics``) or, during a run, verdict by verdict
(``--forge-metrics-file``: :mod:`.metrics_file`). It grows with the number of rules and not with that of jobs.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Any, Final

from ..record.jsonfile import replace_file
from ..sandbox.cgroups.run_usage import NOTHING, RunUsage
from ..spec.errors import require
from ..spec.printable import printable
from ..spec.verdict import OomScope

COLUMNS = (
    *("rule", "outcome", "seconds", "cpu_seconds", "io_read_bytes", "io_write_bytes"),
    *("memory_peak_bytes", "memory_limit_bytes"),
)
_BUCKETS: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
_PER_RULE: Final = (
    ("Counter", "cpu_seconds", "CPU time of attempts."),
    ("Counter", "read_bytes", "Bytes that attempts read from disk."),
    ("Counter", "written_bytes", "Bytes that attempts wrote to disk."),
    ("Gauge", "memory_peak_bytes", "Highest memory peak of an attempt, page cache included."),
    ("Gauge", "memory_limit_bytes", "Memory limit of the newest attempt."),
)
"""Metrics that are a field of :class:`_Rule`."""
_OF_THE_RUN: Final = (
    ("Gauge", "memory_bytes", "Memory that all jobs of the run use together now, page cache included."),
    ("Gauge", "memory_peak_bytes", "The most memory that all jobs of the run have used together."),
    ("Gauge", "memory_limit_bytes", "Memory that all jobs of the run may use together: --forge-run-memory."),
    ("Gauge", "processes", "Processes and threads of all jobs of the run now."),
    ("Gauge", "processes_limit", "Processes and threads that all jobs of the run may have: --forge-run-pids."),
    ("Counter", "cpu_seconds", "CPU time of all jobs of the run."),
    ("Gauge", "cpu_weight", "Weight for the CPU beside other runs; 100 is the usual one."),
)
"""Metrics that are a field of :class:`RunUsage`."""
_SCOPES = frozenset(map(str, OomScope))
_PACKAGE = "snakemake-executor-plugin-forge"


@dataclass(slots=True)
class _Rule:
    """The sums over one rule's attempts."""

    outcomes: dict[str, int] = field(default_factory=dict)
    buckets: list[int] = field(default_factory=lambda: [0] * (len(_BUCKETS) + 1))
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    memory_peak_bytes: int = 0
    memory_limit_bytes: int | None = None  # of the newest
    oom_kills: dict[str, int] = field(default_factory=dict)  # by whose limit it was


@dataclass(slots=True)
class Now:
    """The facts of a run at the moment of writing; only the run knows them."""

    pending: dict[str, int] = field(default_factory=dict)  # by rule: jobs that have not started
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)  # by rule, of running attempts: used, and limits
    usage: RunUsage = NOTHING
    cores: int | None = None


@dataclass(slots=True)
class Tally:
    """The sums over runs and attempts."""

    labels: dict[str, str] = field(default_factory=dict)  # of every metric
    rules: dict[str, _Rule] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    started: float | None = None  # of the newest run, Unix time
    ended: float | None = None
    now: Now = field(default_factory=Now)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count an attempt: a row with :data:`COLUMNS`."""
        rule = row["rule"]
        if row["outcome"] == "running":
            self.running[rule] = self.running.get(rule, 0) + 1
            return
        found = self.rules.setdefault(rule, _Rule())
        found.outcomes[row["outcome"]] = found.outcomes.get(row["outcome"], 0) + 1
        found.buckets[bisect_left(_BUCKETS, row["seconds"])] += 1
        found.seconds += row["seconds"]
        found.cpu_seconds += row["cpu_seconds"] or 0
        found.read_bytes += row["io_read_bytes"] or 0
        found.written_bytes += row["io_write_bytes"] or 0
        found.memory_peak_bytes = max(found.memory_peak_bytes, row["memory_peak_bytes"] or 0)
        found.memory_limit_bytes = row["memory_limit_bytes"]

    def add_oom(self, record: Mapping[str, Any]) -> None:
        """Count the processes of an attempt that the kernel has killed for memory: its record."""
        evidence = record.get("evidence")
        if record["outcome"] != "oom" or not isinstance(evidence, dict):
            return
        kills, scope = evidence.get("oom_kills"), str(evidence.get("scope"))
        found = self.rules.setdefault(record["rule"], _Rule()).oom_kills
        scope = scope if scope in _SCOPES else str(OomScope.OUTSIDE)
        found[scope] = found.get(scope, 0) + (max(1, kills) if isinstance(kills, int) else 1)

    def add_runs(self, runs: Iterable[Mapping[str, Any]]) -> None:
        """Count runs, oldest first: objects of ``run.json``."""
        for run in runs:
            self.runs += 1
            self.started, self.ended = (_unix_time(run.get(key)) for key in ("started", "ended"))


def _unix_time(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


class _Collector:
    """A collector for prometheus_client over a tally."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._core = require("prometheus_client.core", "metrics")
        self._names = list(tally.labels)
        self._values = [printable(value) for value in tally.labels.values()]

    def _family(self, kind: str, name: str, text: str, labels: Iterable[str] = (), unit: str = "") -> Any:
        family = getattr(self._core, f"{kind}MetricFamily")
        return family(f"forge_{name}", text, labels=[*labels, *self._names], unit=unit)

    def _value(self, kind: str, name: str, text: str, value: float, unit: str = "") -> Any:
        family = self._family(kind, name, text, unit=unit)
        family.add_metric(self._values, value)
        return family

    def collect(self) -> Iterator[Any]:
        """The families of metrics."""
        info = self._core.InfoMetricFamily("forge", "The version of Forge that wrote this.", labels=self._names)
        info.add_metric(self._values, {"version": importlib.metadata.version(_PACKAGE)})
        yield info
        yield from self._ended()
        yield from self._current()
        yield from self._usage()
        text = "When this was written, Unix time."
        yield self._value("Gauge", "last_update_timestamp_seconds", text, time.time(), "seconds")

    def _ended(self) -> Iterator[Any]:
        rules = sorted(self._tally.rules.items())
        attempts = self._family("Counter", "attempts", "Attempts that have ended.", ("rule", "outcome"))
        text = "From the start of an attempt until all of it was dead."
        duration = self._family("Histogram", "attempt_duration_seconds", text, ("rule",), "seconds")
        text = "Processes that the kernel has killed for memory; scope: whose limit it was (job, run, outside)."
        kills = self._family("Counter", "oom_kills", text, ("rule", "scope"))
        bounds = (*map(str, _BUCKETS), "+Inf")
        for rule, found in rules:
            for outcome, number in sorted(found.outcomes.items()):
                attempts.add_metric([rule, outcome, *self._values], number)
            buckets = list(zip(bounds, accumulate(found.buckets), strict=True))
            duration.add_metric([rule, *self._values], buckets, found.seconds)
            for scope, number in sorted({"job": 0, **found.oom_kills}.items()):  # 0: so that a rise is seen
                kills.add_metric([rule, scope, *self._values], number)
        yield from (attempts, duration, kills)
        for kind, name, text in _PER_RULE:
            family = self._family(kind, name, text, ("rule",), name.rpartition("_")[2])
            for rule, found in rules:
                if (value := getattr(found, name)) is not None:
                    family.add_metric([rule, *self._values], value)
            yield family

    def _current(self) -> Iterator[Any]:
        tally, now = self._tally, self._tally.now
        text = "Attempts that have been started and have not ended."
        running = self._family("Gauge", "attempts_running", text, ("rule",))
        for rule in sorted({*tally.rules, *tally.running}):
            running.add_metric([rule, *self._values], tally.running.get(rule, 0))
        pending = self._family("Gauge", "jobs_pending", "Jobs that have not started.", ("rule",))
        for rule, number in sorted(now.pending.items()):
            pending.add_metric([rule, *self._values], number)
        text = "Memory that the running attempts use now, page cache included."
        memory = self._family("Gauge", "attempts_memory_bytes", text, ("rule",), "bytes")
        text = "Sum of the memory limits of the running attempts that have one."
        limits = self._family("Gauge", "attempts_memory_limit_bytes", text, ("rule",), "bytes")
        for rule, (used, limit) in sorted(now.memory.items()):
            memory.add_metric([rule, *self._values], used)
            if limit:
                limits.add_metric([rule, *self._values], limit)
        yield from (running, pending, memory, limits)
        yield self._value("Counter", "runs", "Starts of Snakemake.", tally.runs)
        for what, moment in (("start", tally.started), ("end", tally.ended)):
            if moment is not None:
                text = f"When the newest run did {what}, Unix time."
                yield self._value("Gauge", f"last_run_{what}_timestamp_seconds", text, moment, "seconds")

    def _usage(self) -> Iterator[Any]:
        now = self._tally.now
        for kind, name, text in _OF_THE_RUN:
            value = getattr(now.usage, name)
            if value is not None:
                unit = name.rpartition("_")[2] if name.endswith(("_bytes", "_seconds")) else ""
                yield self._value(kind, f"run_{name}", text, value, unit)
        if now.cores is not None:
            yield self._value("Gauge", "run_cores", "Cores that Snakemake counts: -j.", now.cores)


def metrics_text(tally: Tally, *, openmetrics: bool = False) -> str:
    """The text format 0.0.4, which the textfile collector of node_exporter reads, or OpenMetrics 1.0.0: openmetrics.io.

    Raises:
        UsageError: if prometheus_client is not installed.
    """
    library = "prometheus_client.openmetrics.exposition" if openmetrics else "prometheus_client"
    text: bytes = require(library, "metrics").generate_latest(_Collector(tally))
    return text.decode()


def write_metrics(path: str, tally: Tally, mode: int | None = None) -> None:
    """Write the file of a textfile collector, which never sees a part of it.

    Args:
        mode: see :func:`..record.jsonfile.replace_file`.

    Raises:
        OSError: if it cannot be written.
        UsageError: if prometheus_client is not installed.
    """
    replace_file(os.path.abspath(path), metrics_text(tally), mode=mode)
