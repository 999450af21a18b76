"""All attempts that the Slurm backend has, and the thread that reads their results. Each is finished once."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ..model import Verdict
from . import handover
from .slurm_copies import bury_copies
from .slurm_job import Job

_PAUSE_SECONDS = 0.2


class Ledger:
    """Used from all threads; ``changed`` is notified of whatever happens to it."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._by_result: dict[tuple[str, str], Job] = {}
        self._all_ok = True
        self._finished: set[str] = set()
        self._to_cancel: set[str] = set()
        self.closing = False
        self.changed = threading.Condition(threading.RLock())

    def add(self, job: Job) -> None:
        """Take a job that is to be submitted."""
        with self.changed:
            self._jobs[job.spec.name] = job
            self.changed.notify_all()

    def wake(self) -> None:
        """Have all threads look again."""
        with self.changed:
            self.changed.notify_all()

    def close(self) -> None:
        """Have all threads end."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until no job is left; False if some are after the time."""
        with self.changed:
            return self.changed.wait_for(lambda: not self._jobs, timeout_seconds)

    @property
    def all_ok(self) -> bool:
        """Whether there were verdicts, and only good ones."""
        with self.changed:
            return self._all_ok and bool(self._finished)

    # -- what there is ---------------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """All."""
        with self.changed:
            return list(self._jobs.values())

    def unsent(self) -> list[Job]:
        """Those that are to be submitted."""
        return [job for job in self.jobs() if job.unsent]

    def sent(self) -> list[Job]:
        """Those that were."""
        return [job for job in self.jobs() if job.attempt]

    def was_sent(self, job: Job) -> None:
        """Take note of a job's attempt directory."""
        with self.changed:
            self._by_result[job.result] = job
            self.changed.notify_all()

    def is_again_unsent(self, job: Job, now: float) -> None:
        """Take note that it is to be submitted once more."""
        with self.changed:
            self._by_result.pop(job.result, None)
            job.attempt, job.row, job.since = "", None, now
            self.changed.notify_all()

    # -- cancelling ------------------------------------------------------------------------------------------------

    def cancel(self, names: Iterable[str] | None, reason: str) -> None:
        """Note that jobs are to be ended; all of them if no names are given. Unknown ones are left out."""
        with self.changed:
            for name in list(self._jobs) if names is None else names:
                if (job := self._jobs.get(name)) is not None:
                    job.cancelled = job.cancelled or reason
                    self._to_cancel.add(name)
            self.changed.notify_all()

    def to_cancel(self) -> list[Job]:
        """Submitted jobs of which Slurm is still to be told."""
        with self.changed:
            return [job for name in self._to_cancel if (job := self._jobs.get(name)) is not None and job.attempt]

    def cancelled(self, jobs: Iterable[Job]) -> None:
        """Slurm was told of these."""
        with self.changed:
            self._to_cancel -= {job.spec.name for job in jobs}

    # -- verdicts --------------------------------------------------------------------------------------------------

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
            bury_copies(job.spec, job.attempt, verdict)
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
            result: state directory and name: those of runs from which jobs were taken over are others.

        """
        with self.changed:
            job = self._by_result.get(result)
        verdict = handover.take_result(*result) if job is not None else None
        if verdict is None or job is None:
            return False
        self.finish(job, verdict)
        return True

    def listen(self) -> None:
        """Look for results until the end. One look at one directory, however many jobs there are."""
        while not self.closing:
            for state in {handover.state_of(job.attempt) for job in self.sent()}:
                for name in handover.new_results(state):
                    self.take((state, name))
            with self.changed:
                if not self.closing:  # asked with the lock, or the word to end may come right before the wait
                    self.changed.wait(_PAUSE_SECONDS if self.sent() else None)
