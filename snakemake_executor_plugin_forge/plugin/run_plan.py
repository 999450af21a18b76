"""The plan of a run for its record: the jobs of each rule. ``snakemake-forge top`` and the logger plugin read it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ..spec.progress import Planned
from .rule_resources import known_resources

_WRITE_SECONDS = 1.0
"""Jobs that are taken over may end by the thousand in a moment, and the record of the run is synced."""


class RunPlan:
    """Keeps the plan up to date. For several threads."""

    def __init__(self, dag: Any, directory: str, write: Callable[[dict[str, object]], None]) -> None:
        """Write the plan of the DAG as it is.

        Args:
            directory: of the run.
            write: puts the plan into its record.
        """
        self._dag, self._directory, self._write_plan = dag, directory, write
        self._lock = threading.Lock()
        self._planned: dict[str, Planned] = {}
        self._size = 0
        self._later: threading.Timer | None = None
        self._taken_over: Counter[str] = Counter()
        self.update()

    def update(self) -> None:
        """Write the plan again if a checkpoint has changed the number of jobs."""
        if len(self._dag) != self._size:
            self._size = len(self._dag)
            self._planned = _planned(self._dag, self._planned)
            self._write()

    def concluded(self, rule: str, directory: str | None) -> None:
        """Note that a job has succeeded, if this run has no attempt of it.

        Args:
            directory: with the record of the attempt, of this run or another; None for outputs of the cache.
        """
        if directory is not None and directory.startswith(f"{self._directory}/"):
            return
        with self._lock:
            self._taken_over[rule] += 1
            if self._later is None:
                self._later = threading.Timer(_WRITE_SECONDS, self._write)
                self._later.daemon = True
                self._later.start()

    def close(self) -> None:
        """Write what was put off."""
        with self._lock:
            later = self._later
        if later is not None:
            later.cancel()
            self._write()

    def _write(self) -> None:
        with self._lock, suppress(OSError):  # on a full disk all else says so; those who watch see older numbers
            self._later = None
            self._write_plan({
                rule: {**planned._asdict(), "taken_over": self._taken_over[rule]}
                for rule, planned in self._planned.items()
            })  # fmt: skip


def _planned(dag: Any, before: Mapping[str, Planned]) -> dict[str, Planned]:
    """The jobs of each rule that have to run or have run, and the rules that they wait for.

    Args:
        before: as it was before a checkpoint: Snakemake forgets who waited for that.
    """
    jobs = [job for job in dag.jobs if dag.needrun(job) or dag.finished(job)]
    counts = Counter(job.rule for job in jobs)
    after: dict[Any, set[str]] = {rule: {*before[rule.name].after} if rule.name in before else set() for rule in counts}
    for job in jobs:
        after[job.rule].update(other.rule.name for other in dag.dependencies[job])
    return {rule.name: Planned(number, _threads(rule), tuple(sorted(after[rule]))) for rule, number in counts.items()}


def _threads(rule: Any) -> int:
    """The threads of a rule: 1 if a function gives them, 0 if there is nothing to run."""
    threads = known_resources(rule).get("_cores", 1)
    return 0 if rule.norun else max(1, threads) if isinstance(threads, int) else 1
