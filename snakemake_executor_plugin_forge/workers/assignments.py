"""The decisions of a pool: which supervisor gets a job, what follows its death, which jobs leave, when the pool ends.

No process, no socket: each method of :class:`Assignments` is one event and returns instructions.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .channel import Frame, FrameKind


@dataclass(frozen=True, slots=True)
class Pass:
    """An instruction: send a frame to a supervisor."""

    pid: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class Fork:
    """An instruction: fork a supervisor; the next event is its result."""


@dataclass(frozen=True, slots=True)
class LetGo:
    """An instruction: forget a supervisor, which continues without the pool, and its job."""

    pid: int
    name: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """An instruction: say that a job could not be started, and forget it."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReportLost:
    """An instruction: say that a job's supervisor and the one that cleared up after it are dead, and forget the job."""

    reap: Frame


Instruction = Pass | Fork | LetGo | Refuse | ReportLost


class Assignments:
    """The jobs and their supervisors. It changes its state in place, so that an event costs little."""

    def __init__(self, detachable: Callable[[Frame], bool], *, keeps_spare: bool) -> None:
        """Begin without supervisors.

        Args:
            detachable: says whether the job of a RUN frame continues without Snakemake. Pure.
            keeps_spare: fork one supervisor ahead, so that a job finds one that has cleared up after its last.
        """
        self._detachable = detachable
        self._keeps_spare = keeps_spare
        self._idle: deque[int] = deque()
        self._stale: set[int] = set()  # busy supervisors that get no further job
        self._retired: set[int] = set()
        self._busy: dict[str, int] = {}
        self._jobs: dict[int, Frame] = {}  # by supervisor: a RUN or a REAP frame
        self._launched: dict[str, Frame] = {}  # by name: the launcher's jobs
        self._waiting: deque[Frame] = deque()  # jobs for which no supervisor could be forked yet
        self._forking: Frame | None = None
        self._is_forking = False
        self.is_closing = False
        self.has_left = False  # a job continues without Snakemake

    @property
    def pids(self) -> set[int]:
        """All supervisors."""
        return {*self._idle, *self._jobs, *self._retired}

    @property
    def is_over(self) -> bool:
        """Whether no job is left, and none will come."""
        return self.is_closing and not self._busy and not self._launched and not self._waiting

    @property
    def waits(self) -> bool:
        """Whether a job waits for a supervisor."""
        return bool(self._waiting)

    @property
    def has_busy(self) -> bool:
        """Whether a supervisor will be free in time."""
        return bool(self._busy or self._launched)

    def order(self, frame: Frame) -> list[Instruction]:
        """Take an order from the process above."""
        match frame.kind:
            case FrameKind.RUN | FrameKind.RENDER if self.is_closing:
                return [Refuse(frame.name, "the run is over")]
            case FrameKind.RUN:
                return self._start(frame)
            case FrameKind.END:
                pids = list(self._jobs) if not frame.name else [self._busy[n] for n in self._busy if n == frame.name]
                return [*self._end_waiting(frame.name), *(Pass(pid, frame) for pid in pids)]
            case FrameKind.LEAVE:
                return self._leave()
            case FrameKind.QUIT:
                self.is_closing = True
                return []
            case _:
                raise AssertionError(f"a pool got {frame.kind.name}")

    def forked(self, pid: int) -> list[Instruction]:
        """Take the supervisor that was asked for with :class:`Fork`."""
        frame = self._fork_result()
        if pid in self.pids:
            raise AssertionError(f"supervisor {pid} was forked twice")
        if frame is not None:
            return self._assign(frame, pid)
        self._idle.append(pid)
        return []

    def fork_failed(self, reason: str) -> list[Instruction]:
        """Refuse the job for which no supervisor could be forked; a spare one is not needed."""
        frame = self._fork_result()
        return [] if frame is None else [Refuse(frame.name, reason)]

    def fork_postponed(self) -> list[Instruction]:
        """Let the job wait for which no supervisor can be forked now; a spare one is not needed."""
        frame = self._fork_result()
        if frame is not None:
            self._waiting.appendleft(frame)
        return []

    def try_again(self) -> list[Instruction]:
        """Start the job that has waited for the longest."""
        return self._start(self._waiting.popleft(), now=True) if self._waiting else []

    def renew(self) -> list[Instruction]:
        """Have the next jobs get new supervisors: those that live do not see a mount that has come or gone."""
        self._check_quiet()
        idle, self._idle, self._stale = list(self._idle), deque(), set(self._jobs)
        self._retired.update(idle)
        return [Pass(pid, Frame(FrameKind.QUIT)) for pid in idle]

    def ended(self, pid: int, name: str) -> list[Instruction]:
        """Take note that a supervisor has reported the verdict on its job."""
        self._check_quiet()
        if self._busy.get(name) != pid:
            raise AssertionError(f"supervisor {pid} reports {name}, which it does not have")
        del self._busy[name], self._jobs[pid]
        if pid in self._stale:
            self._stale.discard(pid)
            self._retired.add(pid)
            return [Pass(pid, Frame(FrameKind.QUIT))]
        self._idle.append(pid)
        return self.try_again()

    def died(self, pid: int) -> list[Instruction]:
        """Take note of the death of a supervisor. Its job is dead too (see sandbox/namespaces.py)."""
        self._check_quiet()
        self._stale.discard(pid)
        if pid in self._retired:
            self._retired.discard(pid)
            return []
        if pid in self._idle:
            self._idle.remove(pid)
            return []
        if pid not in self._jobs:
            raise AssertionError(f"supervisor {pid}, which died, is not known")
        job = self._jobs.pop(pid)
        del self._busy[job.name]
        if job.kind is FrameKind.REAP:  # trying again could last for ever
            return [ReportLost(job)]
        return self.reap(job, pid)

    def reap(self, job: Frame, dead_pid: int) -> list[Instruction]:
        """Have a supervisor clear up after a job whose supervisor is dead; 0 if its pid is not known."""
        return self._start(Frame(FrameKind.REAP, job.name, pickle.dumps((job.body, dead_pid))))

    # -- the launcher's jobs, in the nursery -----------------------------------------------------------------------

    def launched(self, job: Frame) -> None:
        """Take note of a job that the launcher has got."""
        if job.name in self._launched or job.name in self._busy:
            raise AssertionError(f"{job.name} was started twice")
        self._launched[job.name] = job

    def launched_over(self, name: str) -> None:
        """Take note that the launcher has no more to do with a job."""
        if self._launched.pop(name, None) is None:
            raise AssertionError(f"the launcher reports {name}, which it does not have")

    @property
    def launcher_detachable(self) -> bool:
        """Whether the launcher has a job that continues without Snakemake."""
        return any(map(self._detachable, self._launched.values()))

    def launcher_died(self, *, is_alone: bool) -> list[Frame]:
        """Return the jobs to be reaped after the launcher's death: its supervisors end them.

        Args:
            is_alone: whether Snakemake is dead too; then the jobs that continue without it do so.
        """
        jobs, self._launched = list(self._launched.values()), {}
        reaped = [job for job in jobs if not (is_alone and self._detachable(job))]
        self.has_left |= len(reaped) < len(jobs)
        return reaped

    # ----------------------------------------------------------------------------------------------------------------

    def _start(self, frame: Frame, *, now: bool = False) -> list[Instruction]:
        self._check_quiet()
        if frame.name in self._busy:
            raise AssertionError(f"{frame.name} was started twice")
        if self._waiting and not now:
            self._waiting.append(frame)
            return []
        if self._idle:
            return self._assign(frame, self._idle.popleft())
        self._forking, self._is_forking = frame, True
        return [Fork()]

    def _assign(self, frame: Frame, pid: int) -> list[Instruction]:
        self._busy[frame.name], self._jobs[pid] = pid, frame
        if not self._keeps_spare or self._idle or self.is_closing:
            return [Pass(pid, frame)]
        self._is_forking = True
        return [Pass(pid, frame), Fork()]

    def _end_waiting(self, name: str) -> list[Instruction]:
        """Refuse the jobs that wait: one by its name, or all."""
        ended = [job for job in self._waiting if name in ("", job.name) and job.kind is FrameKind.RUN]
        self._waiting = deque(job for job in self._waiting if job not in ended)
        return [Refuse(job.name, "the run is being ended") for job in ended]

    def _leave(self) -> list[Instruction]:
        """Let jobs go that continue without Snakemake."""
        self.has_left |= self.launcher_detachable
        leaving = [(pid, job.name) for pid, job in self._jobs.items() if self._detachable(job)]
        self.has_left |= bool(leaving)
        for pid, name in leaving:
            del self._jobs[pid], self._busy[name]
        return [i for pid, name in leaving for i in (Pass(pid, Frame(FrameKind.LEAVE)), LetGo(pid, name))]

    def _fork_result(self) -> Frame | None:
        if not self._is_forking:
            raise AssertionError("no supervisor was to be forked")
        frame, self._forking, self._is_forking = self._forking, None, False
        return frame

    def _check_quiet(self) -> None:
        if self._is_forking:
            raise AssertionError("a supervisor is being forked")
