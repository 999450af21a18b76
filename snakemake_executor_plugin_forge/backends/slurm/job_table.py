"""The attempts that the Slurm backend has, and the thread that reads their results."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress

from ...spec.verdict import Order, Verdict
from . import exchange
from .copies import record_copies
from .job import Job

_PAUSE_SECONDS = 0.2


class JobTable:
    """Attempts by name, each of which is finished once. Used from all threads; ``changed`` tells of every change."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._by_result: dict[tuple[str, str], Job] = {}
        self._all_ok = True
        self._finished: set[str] = set()
        self._to_cancel: set[str] = set()
        self.closing = False
        self.changed = threading.Condition(threading.RLock())

    def add(self, job: Job) -> None:
        """Add a job that is to be submitted."""
        with self.changed:
            self._jobs[job.spec.name] = job
            self.changed.notify_all()

    def close(self) -> None:
        """Tell all threads to end."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until no job is left; False if some are after the time."""
        with self.changed:
            return self.changed.wait_for(lambda: not self._jobs, timeout_seconds)

    @property
    def all_ok(self) -> bool:
        """Whether jobs have finished, and all of them with success."""
        with self.changed:
            return self._all_ok and bool(self._finished)

    @property
    def ended(self) -> int:
        """The number of jobs that have finished."""
        with self.changed:
            return len(self._finished)

    def jobs(self) -> list[Job]:
        """All unfinished jobs."""
        with self.changed:
            return list(self._jobs.values())

    def find(self, name: str) -> Job | None:
        """An unfinished job."""
        with self.changed:
            return self._jobs.get(name)

    def unsent(self) -> list[Job]:
        """Jobs that are to be submitted."""
        return [job for job in self.jobs() if job.unsent]

    def sent(self) -> list[Job]:
        """Jobs that were submitted."""
        return [job for job in self.jobs() if job.attempt]

    def dropped(self) -> list[Job]:
        """Jobs that were cancelled before they were submitted."""
        return [job for job in self.jobs() if not job.attempt and job.cancelled is not None]

    def was_sent(self, job: Job) -> None:
        """Note that a job was submitted, and so has an attempt directory."""
        with self.changed:
            self._by_result[job.result] = job
            self.changed.notify_all()

    def is_again_unsent(self, job: Job, now: float) -> None:
        """Note that a job is to be submitted once more."""
        with self.changed:
            self._by_result.pop(job.result, None)
            job.attempt, job.row, job.since = "", None, now
            self.changed.notify_all()

    def cancel(self, names: Iterable[str] | None, order: Order) -> None:
        """Note that jobs are to be ended: the named ones that the table has, or all of them."""
        with self.changed:
            for name in list(self._jobs) if names is None else names:
                if (job := self._jobs.get(name)) is not None:
                    job.cancelled = job.cancelled or order
                    self._to_cancel.add(name)
            self.changed.notify_all()

    def to_cancel(self) -> list[Job]:
        """Submitted jobs that are to be ended, which Slurm does not know yet."""
        with self.changed:
            return [job for name in self._to_cancel if (job := self._jobs.get(name)) is not None and job.attempt]

    def cancelled(self, jobs: Iterable[Job]) -> None:
        """Note that Slurm was told to end these jobs."""
        with self.changed:
            self._to_cancel -= {job.spec.name for job in jobs}

    def finish(self, job: Job, verdict: Verdict) -> None:
        """Report a verdict, unless one was reported already."""
        name = job.spec.name
        with self.changed:
            if name in self._finished or self._jobs.get(name) is not job:
                return
            self._finished.add(name)
            self._all_ok &= verdict.ok
            self._to_cancel.discard(name)
        if job.attempt:
            with suppress(OSError):  # a job is reported whatever becomes of the records of its other copies
                record_copies(job.spec, job.attempt, verdict)
        try:
            job.done(verdict)
        finally:
            with self.changed:
                self._jobs.pop(name, None)
                if job.attempt:
                    self._by_result.pop(job.result, None)
                self.changed.notify_all()

    def take(self, result: tuple[str, str]) -> bool:
        """Read a result and report it; False if there is none.

        Args:
            result: state directory and name; jobs that were adopted have the directories of their runs.
        """
        with self.changed:
            job = self._by_result.get(result)
        verdict = exchange.take_result(*result) if job is not None else None
        if verdict is None or job is None:
            return False
        self.finish(job, verdict)
        return True

    def listen(self) -> None:
        """Read results until the table is closed. Lists one directory for each run, however many jobs there are."""
        while not self.closing:
            for state in {exchange.state_of(job.attempt) for job in self.sent()}:
                names: list[str] = []
                with suppress(OSError):  # the next round tries again: without this thread verdicts come minutes late
                    names = exchange.new_results(state)
                for name in names:
                    self.take((state, name))
            with self.changed:
                if not self.closing:  # tested with the lock, else close() could come right before the wait
                    self.changed.wait(_PAUSE_SECONDS if self.sent() else None)
