"""Facts about a run, from Snakemake's log events. Reads no clock and no file."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from snakemake_executor_plugin_forge.spec.progress import Planned, Progress, RuleProgress, Times

_NEWEST = 20  # jobs of a rule that say how long the next one takes
_TARGET = "all"  # the name of a rule that by custom only names files


class _Job(NamedTuple):
    rule: str
    started: float


@dataclass(frozen=True, slots=True)
class Known:
    """Facts from Forge's records: the times of rules in earlier runs, and the plan of a run with Forge."""

    times: Mapping[str, Times] = field(default_factory=dict)
    plan: Mapping[str, Planned] = field(default_factory=dict)  # empty if another executor runs the jobs


class Watched:
    """A run as its events show it."""

    def __init__(self) -> None:
        """Begin before the first event."""
        self.began: float | None = None  # when the first job was started
        self.total: int | None = None
        self._slots = math.inf
        self._stats: dict[str, int] = {}
        self._after: dict[str, set[str]] = {}
        self._threads: dict[str, int] = {_TARGET: 0}
        self._jobs: dict[str, set[int]] = {}  # all that have started
        self._running: dict[int, _Job] = {}
        self._failed: dict[int, str] = {}  # job to rule
        self._done: Counter[str] = Counter()
        self._seconds: dict[str, deque[float]] = {}

    def note(self, event: str, fields: Mapping[str, Any], now: float) -> None:
        """Take an event.

        Args:
            event: a value of Snakemake's ``LogEvent``.
            fields: of the log record.
            now: when it was logged, in seconds since the epoch.
        """
        match event:
            case "run_info":
                self._stats = {rule: number for rule, number in fields["stats"].items() if rule != "total"}
            case "resources_info":
                self._slots = fields.get("cores") or fields.get("nodes") or self._slots
            case "rulegraph":
                for link in fields["rulegraph"]["links"]:
                    self._after.setdefault(link["targetrule"], set()).add(link["sourcerule"])
            case "job_info":
                self._start(fields["jobid"], fields["rule_name"], fields["threads"], now)
            case "job_finished":
                self._finish(fields["job_id"], now)
            case "job_error":
                self._running.pop(fields["jobid"], None)
                self._failed[fields["jobid"]] = fields["rule_name"]
            case "progress":
                self.total = fields["total"]

    def _start(self, job: int, rule: str, threads: int, now: float) -> None:
        self.began = now if self.began is None else self.began
        self._running[job] = _Job(rule, now)
        self._failed.pop(job, None)  # it is run again
        self._jobs.setdefault(rule, set()).add(job)
        if len(self._jobs[rule]) > self._stats.get(rule, 0):
            self._stats[rule] = len(self._jobs[rule])
            if self.total is not None and sum(self._stats.values()) > self.total:
                self.total = None  # a checkpoint has added jobs, and the next event tells how many
        self._threads.setdefault(rule, threads)

    def _finish(self, job: int, now: float) -> None:
        ended = self._running.pop(job, None)
        if ended is not None:
            self._done[ended.rule] += 1
            self._seconds.setdefault(ended.rule, deque(maxlen=_NEWEST)).append(max(0.0, now - ended.started))

    def progress(self, known: Known, now: float) -> Progress:
        """Return the progress of the run."""
        running: dict[str, list[float]] = {}
        for job in self._running.values():
            running.setdefault(job.rule, []).append(max(0.0, now - job.started))
        failed = Counter(self._failed.values())
        rules = {}
        for rule in {**known.plan, **self._stats, **self._done, **running, **failed}:
            seen = self._done[rule] + failed[rule] + len(running.get(rule, ()))
            planned = known.plan.get(rule) or Planned(
                self._stats.get(rule, 0), self._threads.get(rule, 1), tuple(self._after.get(rule, ()))
            )
            planned = planned._replace(jobs=max(planned.jobs, seen))
            own, recorded = Times.of(self._seconds.get(rule, ())), known.times.get(rule)
            times = (recorded or own) if known.plan else (own or recorded)
            rules[rule] = RuleProgress(planned, self._done[rule], failed[rule], tuple(running.get(rule, ())), times)
        more = 0 if self.total is None else self.total - sum(rule.planned.jobs for rule in rules.values())
        more = max(0, more) if known.plan else more  # the plan can be newer
        return Progress(rules, self._slots, 0.0 if self.began is None else max(0.0, now - self.began), more)
