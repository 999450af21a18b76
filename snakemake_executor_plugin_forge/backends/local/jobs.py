"""The decisions of the local backend: which orders the nursery gets, and which verdict each job gets.

No process, no socket, no clock: each method of :class:`LocalJobs` is one event and returns instructions.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass

from ...spec.backend import Done
from ...spec.job import LaunchSpec
from ...spec.outcome import supplemented
from ...spec.verdict import Cause, Order, Verdict
from ...workers.channel import Frame, FrameKind
from ...workers.pool import encode_job


@dataclass(slots=True, eq=False)
class LocalJob:
    """One submitted attempt."""

    spec: LaunchSpec
    payload: bytes
    done: Done
    is_command: bool

    def order(self) -> Frame:
        """Return the order that starts it."""
        kind = FrameKind.RENDER if self.is_command else FrameKind.RUN
        return Frame(kind, self.spec.name, encode_job(self.spec, self.payload))


@dataclass(frozen=True, slots=True)
class Send:
    """An instruction: send this to the nursery."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Tell:
    """An instruction: call ``done`` of a job, then :meth:`LocalJobs.told`."""

    job: LocalJob
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class TellLost:
    """An instruction: as :class:`Tell`, with a verdict of a job that nothing was heard of."""

    job: LocalJob
    cause: Cause
    detail: str


Instruction = Send | Tell | TellLost


class LocalJobs:
    """The jobs that were submitted and whose ``done`` has not returned. Not for several threads at a time.

    It keeps its state and changes it, so that an event costs nothing in proportion to the number of jobs.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, LocalJob] = {}
        self._telling: set[str] = set()
        self._dead: str | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def submitted(self, job: LocalJob) -> list[Instruction]:
        """Accept a job."""
        spec = job.spec
        if self._closed or spec.name in self._jobs:
            raise AssertionError(f"{spec.name} was submitted {'after the end' if self._closed else 'twice'}")
        self._jobs[spec.name] = job
        if self._dead is not None:
            return self._over(job, TellLost(job, Cause.NURSERY_KILLED, f"{self._dead}; nothing of it was run"))
        return [Send(job.order())]

    def interrupted(self, name: str) -> list[Instruction]:
        """Forget a job whose submission was interrupted: no verdict may come, and Snakemake does not wait for one."""
        if name not in self._telling:
            self._jobs.pop(name, None)
        return []

    def cancelled(self, name: str, order: Order) -> list[Instruction]:
        """End one job, or all of them ("")."""
        return self._send(Frame(FrameKind.END, name, pickle.dumps(order)))

    def left(self, order: Order) -> list[Instruction]:
        """Forget the jobs that continue without Snakemake, and end the others."""
        leaving = {name for name, job in self._jobs.items() if job.spec.detachable} - self._telling
        others = [name for name in self._jobs if name not in leaving]
        for name in leaving:
            del self._jobs[name]
        return [*(i for name in others for i in self.cancelled(name, order)), *self._send(Frame(FrameKind.LEAVE))]

    def refused(self, name: str, reason: str) -> list[Instruction]:
        """Take note that a job could not be started."""
        job = self._heard_of(name)
        return [] if job is None else self._over(job, TellLost(job, Cause.START_REFUSED, reason))

    def ended(self, name: str, verdict: Verdict) -> list[Instruction]:
        """Take note of a verdict."""
        job = self._heard_of(name)
        if job is None:
            return []
        if self._dead is not None and not verdict.ok:  # the supervisor can only guess why it was to end the job
            verdict = supplemented(verdict, self._dead)
        return self._over(job, Tell(job, verdict))

    def told(self, name: str) -> None:
        """Forget a job whose ``done`` has returned."""
        self._telling.remove(name)
        del self._jobs[name]

    def died(self, why: str) -> None:
        """Take note that the nursery is dead. Verdicts may still come: its supervisors end their jobs and say so."""
        if self._dead is not None:
            raise AssertionError("the nursery died twice")
        self._dead = why

    def silent(self, seconds: float) -> list[Instruction]:
        """Take note that no verdict will come any more, some seconds after the nursery died."""
        if self._dead is None:
            raise AssertionError("the nursery still lives")
        reason = f"{self._dead}; its job ended {seconds:.1f} s later"
        jobs = [job for name, job in self._jobs.items() if name not in self._telling]
        return [i for job in jobs for i in self._over(job, TellLost(job, Cause.NURSERY_KILLED, reason))]

    def closed(self) -> list[Instruction]:
        """Accept no more jobs."""
        self._closed = True
        return self._send(Frame(FrameKind.QUIT))

    def _send(self, frame: Frame) -> list[Instruction]:
        return [Send(frame)] if self._dead is None else []

    def _heard_of(self, name: str) -> LocalJob | None:
        """Return the job that a message is about; None if it is over already.

        A supervisor that dies right after its report is reaped, and its reaper reports again.
        """
        return None if name in self._telling else self._jobs.get(name)

    def _over(self, job: LocalJob, tell: Instruction) -> list[Instruction]:
        self._telling.add(job.spec.name)
        return [tell]
