"""Jobs that run at the same time, because pipes or services connect them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..run.resource_checks import RefusedError
from ..spec.verdict import Verdict
from .snakemake_internals import spare
from .submission import Submitter

Failure = Verdict | str

_PAUSE_SECONDS = 0.2


class ConnectedJobs:
    """A pipe or service group: all members run at the same time, each in a sandbox of its own.

    The group ends its services when all other members have succeeded, and all members at the first failure.
    """

    def __init__(self, submitter: Submitter, jobs: Iterable[Any], report: Callable[[Failure | None], None]) -> None:
        """Prepare a group.

        Args:
            report: called once, when all members have ended; with None if the group has succeeded.
        """
        self._submitter = submitter
        self._report = report
        self._lock = threading.RLock()
        self._running: dict[str, Any] = {}  # attempt to job
        self._waiting = sorted(jobs, key=lambda job: not job.is_service)
        self._consumers = sum(not job.is_service for job in self._waiting)
        self._failure: Failure | None = None
        self._reported = False

    def start(self) -> None:
        """Start every member, services first: preparing a job that uses a service waits for that service."""
        job = self._waiting[0]
        try:
            self._submitter.check_group(self._waiting)
            while self._failure is None and self._waiting:
                job = self._waiting[0]
                prepared = self._submitter.prepare(job)
                with self._lock:  # so that a verdict finds its job among the running ones
                    if self._failure is not None:  # meanwhile
                        return
                    self._waiting.pop(0)
                    done = partial(self._done, job)
                    name = self._submitter.submit(job, prepared, done)
                    self._running[name] = job
                if job.is_service:
                    self._await(name)
        except Exception as error:  # Snakemake's or ours: it fails this group, and no other job
            with self._lock:
                failure = error.verdict if isinstance(error, RefusedError) else str(error)
                if self._failure is None:
                    self._fail(failure, f"{job.rule.name}, a member of the same group, could not be started")
            self._report_end()

    def _await(self, name: str) -> None:
        """Wait for a service that waits itself, in the queue of a cluster: the time for its file begins after that."""
        while self._failure is None and not self._submitter.has_begun(name):
            time.sleep(_PAUSE_SECONDS)

    def _done(self, job: Any, verdict: Verdict) -> None:
        with self._lock:
            self._running = {name: other for name, other in self._running.items() if other is not job}
            ended_service = job.is_service and self._consumers == 0
            if not ended_service:  # which Snakemake takes for a success
                spare(job, verdict)
            if not verdict.ok and not ended_service and self._failure is None:
                self._fail(verdict, f"{job.rule.name}, a member of the same group, failed")
            if not job.is_service:
                self._consumers -= 1
                if self._consumers == 0 and self._failure is None:
                    self._end("all jobs that use this service are done")
        self._report_end()

    def _report_end(self) -> None:
        """Report once, when no member runs or waits."""
        with self._lock:
            if self._reported or self._running or self._waiting:
                return
            self._reported = True
        self._report(self._failure)

    def _fail(self, failure: Failure, reason: str) -> None:
        self._failure = failure
        self._waiting.clear()
        self._end(reason)

    def _end(self, reason: str) -> None:
        for name in self._running:
            self._submitter.end(name, reason)
