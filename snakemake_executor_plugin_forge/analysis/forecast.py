"""The progress of a run, from its plan and the records of its attempts; and the times of rules, from all records."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime

from ..record.index import Index, Row
from ..spec.progress import Planned, Progress, RuleProgress, Times

NEWEST = 20
"""The number of a rule's newest jobs from which the time of its next one is estimated."""


def times_of_rules(index: Index) -> dict[str, Times]:
    """The wall times of the newest succeeded attempts of each rule, of any run."""
    found = {rule: Times.of(seconds) for rule, seconds in index.wall_times(NEWEST).items()}
    return {rule: times for rule, times in found.items() if times is not None}


def planned_jobs(run: Row) -> dict[str, Planned]:
    """The plan in a ``run.json``; empty if there is none."""
    return {
        rule: Planned(plan["jobs"], plan["threads"], tuple(plan["after"])) for rule, plan in run.get("plan", {}).items()
    }


def progress_of_newest_run(index: Index, times: Mapping[str, Times]) -> Progress | None:
    """Return the progress of the newest run; None if its record has no plan, as in older versions."""
    runs = index.runs()
    plan = planned_jobs(runs[-1][1]) if runs else {}
    if not plan:
        return None
    name, run = runs[-1]
    running: dict[str, list[float]] = {}
    active = set()
    for record in index.unfinished():
        if record["outcome"] == "running":
            running.setdefault(record["rule"], []).append(record["seconds"])
            active.add((record["rule"], json.dumps(record["wildcards"], ensure_ascii=False)))
    done: Counter[str] = Counter({rule: found.get("taken_over", 0) for rule, found in run["plan"].items()})
    failed: Counter[str] = Counter()
    began: list[str] = []
    for rule, wildcards, ok, started in index.ended_jobs(name):
        began.append(started)
        if ok:
            done[rule] += 1
        elif (rule, wildcards) not in active:
            failed[rule] += 1
    rules = {
        rule: RuleProgress(
            planned, min(done[rule], planned.jobs), failed[rule], tuple(running.get(rule, ())), times.get(rule)
        )
        for rule, planned in plan.items()
    }
    return Progress(rules, run.get("cores") or math.inf, _since(began, running.values()))


def _since(began: list[str], running: Iterable[list[float]]) -> float:
    """Seconds since the first job of a run has started."""
    longest = max((seconds for of_rule in running for seconds in of_rule), default=0.0)
    return max(longest, time.time() - datetime.fromisoformat(min(began)).timestamp()) if began else longest
