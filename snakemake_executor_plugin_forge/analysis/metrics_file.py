"""The file of ``--forge-metrics-file``: the metrics of one run, kept up to date while it runs."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from ..record.codec import verdict_json
from ..record.index import as_row
from ..record.jsonfile import replace_file
from ..sandbox.cgroups.run_usage import NOTHING, job_memory, run_directories, run_usage
from ..spec.backend import Done
from ..spec.errors import UsageError
from ..spec.job import LaunchSpec
from ..spec.paths import RUNS, run_name
from ..spec.printable import shell_words
from ..spec.verdict import Verdict
from .metrics import Now, Tally, metrics_text, write_metrics

WRITE_SECONDS: Final = 5.0
"""Between two writes, while attempts run."""
BEAT_SECONDS: Final = 15.0
"""Between two writes while none runs: as often as Prometheus usually asks."""
STALE_SECONDS: Final = 600.0
"""Seconds without a write after which a file in a directory of such files counts as that of a run that is over."""
_FOR_ALL: Final = 0o644  # whatever the umask is: another user's exporter reads it
_OURS: Final = re.compile(r"\.?forge-\d{8}-\d{6}-\d+-[0-9a-f]{4}\.prom(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The facts that the metrics of a run tell about it."""

    run: str
    workdir: str
    cgroup: str  # its directory, or why there is none
    cores: int  # that Snakemake counts


class MetricsFile:
    """The metrics of a run, which a thread rewrites every few seconds.

    The thread renames the file into place, so that a reader sees all of it. A job waits for a few additions or for the
    text, never for a disk or a cgroup.
    """

    def __init__(self, path: str, notice: Callable[[str], None], facts: RunFacts) -> None:
        """Write it for the first time.

        Args:
            path: of the file, or of a directory in which each run has a file of its own.

        Raises:
            UsageError: if it cannot be written, or prometheus_client is not installed.
        """
        self._notice = notice
        self._facts = facts
        self._path, self._mode = _place(path, facts)
        labels = {"workdir": facts.workdir, "run": facts.run}
        self._tally = Tally(labels, runs=1, started=time.time(), now=Now(cores=facts.cores))
        self._cgroups = run_directories(os.getpid(), run_name(facts.run), facts.cgroup)
        self._attempts: dict[str, LaunchSpec] = {}  # by name: running
        self._started: dict[str, int] = {}  # by rule: jobs of this run that have started
        self._planned: dict[str, int] = {}  # by rule: jobs that this run has to do
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._over = threading.Event()
        try:
            write_metrics(self._path, self._tally, self._mode)
        except OSError as error:
            which = "" if self._path == path else f"{self._path} "
            raise UsageError(
                f"--forge-metrics-file={path}: {which}cannot be written: {error.strerror}. "
                "Name a file in a directory that you may write to, or have its owner let you."
            ) from error
        self._thread = threading.Thread(target=self._work, name="forge-metrics", daemon=True)
        self._thread.start()

    def plan(self, plan: Mapping[str, Any]) -> None:
        """Take the plan of the run, as ``run.json`` has it: the jobs that wait are those that have not started."""
        with self._lock:
            self._planned = {
                rule: found["jobs"] - found["taken_over"] for rule, found in plan.items() if found["threads"] > 0
            }  # a rule without threads has nothing to run
        self._changed.set()

    def observe(self, spec: LaunchSpec, done: Done) -> Done:
        """Count an attempt from now until ``done`` is called."""
        first = spec.attempt == 1 and spec.retry == 0
        with self._lock:
            self._tally.running[spec.rule] = self._tally.running.get(spec.rule, 0) + 1
            self._started[spec.rule] = self._started.get(spec.rule, 0) + first
            self._attempts[spec.name] = spec
        self._changed.set()

        def counted(verdict: Verdict) -> None:
            record = verdict_json(spec, verdict)
            row = as_row("", spec.name, record)
            with self._lock:
                self._tally.running[spec.rule] -= 1
                self._attempts.pop(spec.name, None)
                self._tally.add(row)
                self._tally.add_oom(record)
                if first and self._is_of_another_run(verdict):  # the plan has it as taken over
                    self._started[spec.rule] -= 1
            self._changed.set()
            done(verdict)

        return counted

    def _is_of_another_run(self, verdict: Verdict) -> bool:
        here = f"{self._facts.workdir}/{RUNS}/{self._facts.run}/"
        return bool(verdict.directory) and not verdict.directory.startswith(here)

    def sample(self) -> None:
        """Sample the run while it has its cgroup for the last time."""
        now = self._now()
        with self._lock:
            self._tally.now = now

    def close(self) -> None:
        """Write it for the last time, when the run has no cgroup any more."""
        with self._lock:
            self._tally.ended = time.time()
            self._planned = {}
        self._over.set()
        self._changed.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.is_set():
            self._changed.wait(0 if self._attempts else BEAT_SECONDS - WRITE_SECONDS)
            self._changed.clear()
            self._write()
            self._over.wait(WRITE_SECONDS)
        self._write()

    def _write(self) -> None:
        now = self._now()
        with self._lock:
            self._tally.now = now
            text = metrics_text(self._tally)
        try:
            replace_file(os.path.abspath(self._path), text, mode=self._mode)
        except OSError as error:
            with suppress(Exception):  # the log may be closed already
                self._notice(f"Forge: --forge-metrics-file={self._path} cannot be written: {error.strerror}.")
            self._over.wait(WRITE_SECONDS * 10)

    def _now(self) -> Now:
        """Sample the cgroups: two reads of a file in memory for the run's counters, and one for each running job."""
        with self._lock:
            running = list(self._attempts.values()) if self._cgroups else []
            pending = {rule: max(0, jobs - self._started.get(rule, 0)) for rule, jobs in self._planned.items()}
            before = self._tally.now
        memory: dict[str, tuple[int, int]] = {}
        for spec in running:
            used, limits = memory.get(spec.rule, (0, 0))
            now, limit = job_memory(self._cgroups, spec.name), spec.limits.memory_bytes
            memory[spec.rule] = (used + now, limits + (limit or 0))
        usage = run_usage(self._cgroups)
        if usage == NOTHING:  # it is removed at the end of the run: what counters said last stays
            usage = replace(before.usage, memory_bytes=None, processes=None)
        return Now(pending, memory, usage, before.cores)


def _place(path: str, facts: RunFacts) -> tuple[str, int | None]:
    """The file of a run, and its permissions; in a directory, files of runs that are over are removed first.

    Raises:
        UsageError: for a name that exporters do not read: most likely it was to be a directory.
    """
    if os.path.isdir(path):
        remove_stale(path)
        return f"{path}/forge-{facts.run}.prom", _FOR_ALL
    if not path.endswith(".prom"):
        raise UsageError(
            f"--forge-metrics-file={path}: there is no such directory, and node_exporter reads only files whose names "
            f"end with .prom. Make the directory first (mkdir -p {shell_words([path])}), "
            f"or name a file such as {path}.prom."
        )
    return path, None


def remove_stale(directory: str) -> None:
    """Remove files of runs that are over from a directory of such files.

    A run that is alive writes its own more often. Files that this user may not remove stay.
    """
    with suppress(OSError):
        for name in os.listdir(directory):
            path = f"{directory}/{name}"
            with suppress(OSError):
                if _OURS.fullmatch(name) and time.time() - os.stat(path).st_mtime > STALE_SECONDS:
                    os.unlink(path)
