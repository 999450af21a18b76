"""Metrics of a run and of its history, for Prometheus: names and units after prometheus.io/docs/practices/naming.

One tally holds the sums; it is filled from the index (``snakemake-forge metrics``) or, during a run, verdict by verdict
(``--forge-metrics-file``). It grows with the number of rules and not with that of jobs.
"""

from __future__ import annotations

import importlib.metadata
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Any, Final

from ..record.codec import verdict_json
from ..record.index import as_row
from ..record.jsonfile import replace_file
from ..spec.backend import Done
from ..spec.errors import UsageError, require
from ..spec.job import LaunchSpec
from ..spec.verdict import Verdict

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
_WRITE_SECONDS = 5.0
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


@dataclass(slots=True)
class Tally:
    """The sums over runs and attempts."""

    rules: dict[str, _Rule] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    started: float | None = None  # of the newest run, Unix time
    ended: float | None = None

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

    def collect(self) -> Iterator[Any]:
        """The families of metrics."""
        core, rules = self._core, sorted(self._tally.rules.items())
        info = core.InfoMetricFamily("forge", "The version of Forge that wrote this.")
        info.add_metric([], {"version": importlib.metadata.version(_PACKAGE)})
        yield info
        attempts = core.CounterMetricFamily("forge_attempts", "Attempts that have ended.", labels=["rule", "outcome"])
        duration = core.HistogramMetricFamily(
            "forge_attempt_duration_seconds",
            "From the start of an attempt until all of it was dead.",
            labels=["rule"],
            unit="seconds",
        )
        bounds = (*map(str, _BUCKETS), "+Inf")
        for rule, found in rules:
            for outcome, number in sorted(found.outcomes.items()):
                attempts.add_metric([rule, outcome], number)
            buckets = list(zip(bounds, accumulate(found.buckets), strict=True))
            duration.add_metric([rule], buckets, found.seconds)
        yield attempts
        yield duration
        for kind, name, text in _PER_RULE:
            unit = name.rpartition("_")[2]
            family = getattr(core, f"{kind}MetricFamily")(f"forge_{name}", text, labels=["rule"], unit=unit)
            for rule, found in rules:
                if (value := getattr(found, name)) is not None:
                    family.add_metric([rule], value)
            yield family
        yield from self._current()

    def _current(self) -> Iterator[Any]:
        gauge, tally = self._core.GaugeMetricFamily, self._tally
        text = "Attempts that have been started and have not ended."
        running = gauge("forge_attempts_running", text, labels=["rule"])
        for rule in sorted({*tally.rules, *tally.running}):
            running.add_metric([rule], tally.running.get(rule, 0))
        yield running
        yield self._core.CounterMetricFamily("forge_runs", "Starts of Snakemake.", value=tally.runs)
        for what, time in (("start", tally.started), ("end", tally.ended)):
            if time is not None:
                name = f"forge_last_run_{what}_timestamp_seconds"
                yield gauge(name, f"When the newest run did {what}, Unix time.", value=time, unit="seconds")


def metrics_text(tally: Tally, *, openmetrics: bool = False) -> str:
    """The text format 0.0.4, which the textfile collector of node_exporter reads, or OpenMetrics 1.0.0: openmetrics.io.

    Raises:
        UsageError: if prometheus_client is not installed.
    """
    library = "prometheus_client.openmetrics.exposition" if openmetrics else "prometheus_client"
    text: bytes = require(library, "metrics").generate_latest(_Collector(tally))
    return text.decode()


def write_metrics(path: str, tally: Tally) -> None:
    """Write the file of a textfile collector, which never sees a part of it.

    Raises:
        OSError: if it cannot be written.
        UsageError: if prometheus_client is not installed.
    """
    replace_file(os.path.abspath(path), metrics_text(tally))


class MetricsFile:
    """The file of ``--forge-metrics-file``, which a thread rewrites every few seconds while verdicts arrive.

    The thread renames the file into place, so that a reader sees all of it. A job waits for a few additions, never for
    a disk.
    """

    def __init__(self, path: str, notice: Callable[[str], None]) -> None:
        """Write it for the first time.

        Raises:
            UsageError: if it cannot be written, or prometheus_client is not installed.
        """
        self._path = path
        self._notice = notice
        self._tally = Tally(runs=1, started=datetime.now().astimezone().timestamp())
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._over = threading.Event()
        try:
            write_metrics(path, self._tally)
        except OSError as error:
            raise UsageError(f"--forge-metrics-file={path}: cannot be written: {error.strerror}.") from None
        self._thread = threading.Thread(target=self._work, name="forge-metrics", daemon=True)
        self._thread.start()

    def observe(self, spec: LaunchSpec, done: Done) -> Done:
        """Count an attempt from now until ``done`` is called."""
        with self._lock:
            self._tally.running[spec.rule] = self._tally.running.get(spec.rule, 0) + 1
        self._changed.set()

        def counted(verdict: Verdict) -> None:
            row = as_row("", spec.name, verdict_json(spec, verdict))
            with self._lock:
                self._tally.running[spec.rule] -= 1
                self._tally.add(row)
            self._changed.set()
            done(verdict)

        return counted

    def close(self) -> None:
        """Write it for the last time."""
        self._tally.ended = datetime.now().astimezone().timestamp()
        self._over.set()
        self._changed.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.is_set():
            self._changed.wait()
            self._changed.clear()
            self._write()
            self._over.wait(_WRITE_SECONDS)
        self._write()

    def _write(self) -> None:
        with self._lock:
            text = metrics_text(self._tally)
        try:
            replace_file(os.path.abspath(self._path), text)
        except OSError as error:
            with suppress(Exception):  # the log may be closed already
                self._notice(f"Forge: --forge-metrics-file={self._path} cannot be written: {error.strerror}.")
            self._over.wait(_WRITE_SECONDS * 10)
