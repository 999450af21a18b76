"""Jobs that run at the same time, because pipes or services connect them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from .previous import spare

if TYPE_CHECKING:
    from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

    from .model import Verdict


class Executor(Protocol):
    """What a group asks of Snakemake's side of Forge."""

    def check_group(self, jobs: list[Any]) -> None:
        """Refuse jobs that cannot run at the same time."""

    def prepare(self, job: Any) -> Any:
        """Prepare a job; what comes of it is for :meth:`submit`."""

    def submit(self, job: Any, prepared: Any, done: Callable[[Verdict], None]) -> str:
        """Hand a prepared job over and return the attempt's name."""

    def end(self, name: str, reason: str) -> None:
        """End one attempt."""

    def report_job_success(self, info: SubmittedJobInfo) -> None:
        """Tell Snakemake that all went well."""

    def report_error(self, info: SubmittedJobInfo, message: str, logs: list[str]) -> None:
        """Tell Snakemake what went wrong."""

    def report_failure(self, info: SubmittedJobInfo, verdict: Verdict) -> None:
        """Tell Snakemake which verdict it was."""


class Group:
    """A pipe or service group: all members run at the same time, each in a sandbox of its own.

    Services are ended when all others have succeeded. The first failure ends the rest.
    """

    def __init__(self, executor: Executor, info: SubmittedJobInfo) -> None:
        self._executor = executor
        self._info = info
        self._lock = threading.RLock()
        self._running: dict[str, Any] = {}  # attempt to job
        self._waiting = sorted(info.job, key=lambda job: not job.is_service)
        self._consumers = sum(not job.is_service for job in self._waiting)
        self._failure: Verdict | str | None = None

    def start(self) -> None:
        """Start every member, services first: to prepare a job that uses one means to wait for it."""
        job = self._waiting[0]
        try:
            self._executor.check_group(self._waiting)
            while self._failure is None and self._waiting:
                job = self._waiting[0]
                prepared = self._executor.prepare(job)
                with self._lock:  # so that a verdict finds its job among the running ones
                    self._waiting.pop(0)
                    done = partial(self._done, job)
                    self._running[self._executor.submit(job, prepared, done)] = job
        except Exception as error:  # of Snakemake's or ours: it is this group's failure and nobody else's
            with self._lock:
                self._fail(str(error), f"{job.rule.name}, a member of the same group, could not be started")
                finished = not self._running
            if finished:
                self._report()

    def _done(self, job: Any, verdict: Verdict) -> None:
        spare(job, verdict)
        with self._lock:
            self._running = {name: other for name, other in self._running.items() if other is not job}
            ended_service = job.is_service and self._consumers == 0
            if not verdict.ok and not ended_service and self._failure is None:
                self._fail(verdict, f"{job.rule.name}, a member of the same group, failed")
            if not job.is_service:
                self._consumers -= 1
                if self._consumers == 0 and self._failure is None:
                    self._end("all jobs that use this service are done")
            finished = not self._running and not self._waiting
        if finished:
            self._report()

    def _fail(self, failure: Verdict | str, reason: str) -> None:
        self._failure = failure
        self._waiting.clear()
        self._end(reason)

    def _end(self, reason: str) -> None:
        for name in self._running:
            self._executor.end(name, reason)

    def _report(self) -> None:
        match self._failure:
            case None:
                self._executor.report_job_success(self._info)
            case str() as message:
                self._executor.report_error(self._info, message, [])
            case verdict:
                self._executor.report_failure(self._info, verdict)
