"""The progress of a run, and an estimate of the time that it still takes. Pure; docs/decisions has the reasons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .units import show_seconds

_MOST_DRIFT = 100.0
_SHOWN_RULES = 8


class Planned(NamedTuple):
    """The jobs of one rule that a run has to do."""

    jobs: int
    threads: int = 1  # 0: its jobs only name their inputs, and take no time
    after: tuple[str, ...] = ()  # the rules whose outputs it reads


class Times(NamedTuple):
    """The wall times of a rule's newest jobs, in seconds."""

    mean: float
    longest: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Times | None:
        """The times of these jobs; None without any."""
        known = list(seconds)
        return cls(sum(known) / len(known), max(known)) if known else None


@dataclass(frozen=True, slots=True)
class RuleProgress:
    """The progress of one rule."""

    planned: Planned
    done: int = 0
    failed: int = 0  # and not started again
    running: tuple[float, ...] = ()  # the seconds since each running job has started
    times: Times | None = None  # None: not known

    @property
    def pending(self) -> int:
        """Number of jobs that have not started."""
        return max(0, self.planned.jobs - self.done - self.failed - len(self.running))


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run."""

    rules: Mapping[str, RuleProgress]
    slots: float = math.inf  # cores, or jobs at once where Snakemake counts no cores
    elapsed: float = 0.0  # seconds since the first job has started
    more: int = 0  # jobs whose rules are not known, as a checkpoint adds them; below 0, those that it has removed

    @property
    def done(self) -> int:
        """Number of jobs that have succeeded."""
        return sum(rule.done for rule in self.rules.values())

    @property
    def running(self) -> int:
        """Number of running jobs."""
        return sum(len(rule.running) for rule in self.rules.values())

    @property
    def failed(self) -> int:
        """Number of jobs that have failed and do not run again."""
        return sum(rule.failed for rule in self.rules.values())

    @property
    def pending(self) -> int:
        """Number of jobs that have not started."""
        return max(0, self.more + sum(rule.pending for rule in self.rules.values()))

    @property
    def total(self) -> int:
        """Number of all jobs: at least as many as have been seen."""
        return self.done + self.running + self.failed + self.pending

    def running_rules(self) -> list[tuple[str, int]]:
        """The rules with running jobs and their numbers, the largest number first."""
        counts = ((name, len(rule.running)) for name, rule in self.rules.items() if rule.running)
        return sorted(counts, key=lambda item: -item[1])


@dataclass(frozen=True, slots=True)
class Estimate:
    """The time that a run still takes, as far as it is known."""

    seconds: float
    whole: bool  # else a job has no known time, or runs longer than any before it: it takes at least so long
    stops_early: bool = False  # jobs have failed, so that others may never run: it takes at most so long

    def words(self) -> str:
        """Words such as "12 min"; "?" if nothing is known."""
        if not self.whole:
            return f"> {show_roughly(self.seconds)}" if self.seconds >= 1 and not self.stops_early else "?"
        return f"{'< ' if self.stops_early else ''}{show_roughly(self.seconds)}"


@dataclass(slots=True)
class _Load:
    """Work of a run: before now, or ahead."""

    each: dict[str, float] = field(default_factory=dict)  # seconds of the longest job of a rule
    all: dict[str, float] = field(default_factory=dict)  # seconds of all jobs of a rule, if it has all slots

    def bound(self, after: Mapping[str, tuple[str, ...]]) -> float:
        """The least time that it takes.

        That is the time of all work with all slots in use, or of the longest chain of rules in which all jobs of one
        rule, and one job of each other rule, follow each other.
        """
        chains: dict[str, tuple[float, float]] = {}  # up to a rule: with one job of each, and with all jobs of one rule
        for rule in _in_order(self.each, after):
            before = [chains[name] for name in after.get(rule, ()) if name in chains]
            plain, heavy = (max((chain[kind] for chain in before), default=0.0) for kind in (0, 1))
            each = self.each.get(rule, 0.0)
            chains[rule] = plain + each, max(plain + max(each, self.all.get(rule, 0.0)), heavy + each)
        return max(sum(self.all.values()), max((heavy for _, heavy in chains.values()), default=0.0))


def _in_order(rules: Iterable[str], after: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """The rules and all before them, each after those that it follows. A rule can follow itself."""
    waiting, entered, left = list(rules), set[str](), set[str]()
    while waiting:
        rule = waiting[-1]
        first = [] if rule in entered else [name for name in after.get(rule, ()) if name not in entered]
        entered.add(rule)
        if first:
            waiting += first
            continue
        waiting.pop()
        if rule not in left:
            left.add(rule)
            yield rule


def estimate(progress: Progress) -> Estimate:
    """Estimate the rest of a run from the times of earlier jobs.

    What has been done so far took longer than the least time that it could take (limits of memory, Snakemake's own
    time, failed attempts). The rest is presumed to take longer than its least time by the same factor.
    """
    behind, ahead, whole = _Load(), _Load(), progress.more == 0
    for name, rule in progress.rules.items():
        at_once = max(1.0, progress.slots // max(1, rule.planned.threads))
        times = Times(0.0, 0.0) if rule.planned.threads == 0 else rule.times
        each = times.mean if times else 0.0
        if rule.done or rule.running:
            behind.each[name] = max(each if rule.done else 0.0, *rule.running, 0.0)
            behind.all[name] = (rule.done * each + sum(rule.running)) / at_once
        rests = [_rest(times, seconds) for seconds in rule.running]
        whole = whole and None not in rests and (times is not None or not rule.pending)
        if rule.running or rule.pending:
            rest = [seconds or 0.0 for seconds in rests]
            ahead.each[name] = max(*rest, each if rule.pending else 0.0, 0.0)
            ahead.all[name] = (sum(rest) + rule.pending * each) / at_once
    after = {name: rule.planned.after for name, rule in progress.rules.items()}
    drift = (progress.elapsed + 1) / (behind.bound(after) + 1)
    return Estimate(ahead.bound(after) * min(max(drift, 1.0), _MOST_DRIFT), whole, progress.failed > 0)


def _rest(times: Times | None, ran: float) -> float | None:
    """The seconds that a running job still takes; None if that is not known."""
    if times is None or ran > times.longest:
        return None
    return (times.mean if ran <= times.mean else times.longest) - ran


def show_roughly(seconds: float) -> str:
    """A time to come, for people: "40 s", "12 min", "2 h 05 min", "3 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 55:
        step = 1 if seconds < 10 else 5
        return f"{math.ceil(seconds / step) * step} s"
    if minutes < 60:
        return f"{max(1, minutes)} min"
    hours = round(seconds / 3600)
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def percent(done: int, total: int) -> int:
    """Full percents, of which there are 100 only at the end."""
    return done * 100 // total if total else 100


def pieces(progress: Progress) -> list[str]:
    """Return the words about a run, the most important first, the running rules last. Plain ASCII."""
    rules = [f"{number} {rule}" for rule, number in progress.running_rules()]
    more = [f"{len(rules) - _SHOWN_RULES} more rules"] if len(rules) > _SHOWN_RULES else []
    finished = progress.done >= progress.total
    return [
        f"{progress.done}/{progress.total}",
        "" if finished else f"ETA {estimate(progress).words()}",
        f"{progress.failed} failed" if progress.failed else "",
        f"{progress.running} running" if progress.running else "",
        f"{percent(progress.done, progress.total)}%",
        ", ".join(rules[:_SHOWN_RULES] + more),
    ]


def sentence(progress: Progress, *, ended: bool = False) -> str:
    """A line for a log file; ``ended``: of a run that does not continue."""
    count, eta, failed, running, share, rules = pieces(progress)
    at_work = f"{running} ({rules})" if rules else ""
    done = f"{count.replace('/', ' of ')} jobs ({share}) done"
    done += f" in {show_seconds(progress.elapsed)}" if ended else ""
    return ", ".join(part for part in ((done, failed) if ended else (done, at_work, failed, eta)) if part)
