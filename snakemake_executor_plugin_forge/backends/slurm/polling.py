"""The times of calls to Slurm's controller, and the meaning of its answers for jobs without a result. Pure.

Times are in seconds, all of one monotonic clock.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from .parse import QueueRow
from .states import SlurmState

CALL_SECONDS = 1.0
"""At most one call in that time, whatever for: sites ask for it, and some enforce it."""

BATCH_SECONDS = 0.05
"""Jobs that become ready within this time of each other are submitted together."""

_BATCH_AT_MOST_SECONDS = 1.0  # while more come: Snakemake starts 100 jobs a second, and batches are Slurm jobs

MIN_POLL_SECONDS = 2.0
MAX_POLL_SECONDS = 60.0
_POLL_GROWTH = 1.5
_OUTAGE_POLL_SECONDS = 10.0
_FULL_SECONDS = 5.0
_OVERDUE_SECONDS = 5.0  # a query that has waited this long for its turn goes before new jobs

RESULT_SECONDS = 10.0
"""Seconds that a result may take to appear on a network file system, after Slurm has said that the job ended."""

WRITTEN_RESULT_SECONDS = 90.0
"""Seconds that it may take if the job's script ended well and so has written it: NFS keeps old answers for 60 s."""

ABSENT_SECONDS = 8.0
"""Seconds for which a controller that answers may not know a job: right after sbatch, and after a restart."""

MAX_SUBMISSIONS = 5
"""The number of times that Forge submits a job which Slurm loses before anything of it runs."""


class Limiter:
    """Lets one call pass in every interval."""

    def __init__(self, interval_seconds: float = CALL_SECONDS) -> None:
        self._interval = interval_seconds
        self._last: float | None = None

    def wait_seconds(self, now: float) -> float:
        """Return the seconds until a call may be made; 0 if it may be made now."""
        return 0.0 if self._last is None else max(0.0, self._last + self._interval - now)

    def take(self, now: float) -> bool:
        """Use the right to make a call, if there is one now."""
        if self.wait_seconds(now) > 0:
            return False
        self._last = now
        return True


@dataclass(frozen=True, slots=True)
class Polling:
    """The time of the next question to the queue.

    Results come through the file system; the queue only tells of jobs that died without one. So Forge asks often while
    there is news in the queue, and less and less while there is none, or no answer.
    """

    interval_seconds: float = MIN_POLL_SECONDS
    due: float = 0.0
    out_since: float | None = None  # when the controller stopped answering; None: it answers

    def answered(self, now: float, *, news: bool) -> Polling:
        """Plan the next query after an answer."""
        interval = MIN_POLL_SECONDS if news else self._longer()
        return Polling(interval, now + interval)

    def unanswered(self, now: float) -> Polling:
        """Plan the next query after a call without an answer."""
        interval = self._longer()
        since = now if self.out_since is None else self.out_since
        return Polling(interval, now + min(interval, _OUTAGE_POLL_SECONDS), since)

    def _longer(self) -> float:
        return min(self.interval_seconds * _POLL_GROWTH, MAX_POLL_SECONDS)

    def at_latest(self, due: float) -> Polling:
        """Ask soon, because something has changed: at the given time, or earlier if that was planned."""
        return Polling(MIN_POLL_SECONDS, min(self.due, due) if self.due else due, self.out_since)


@dataclass(frozen=True, slots=True)
class Room:
    """The capacity of the queue, after it refused jobs of a user with too many in it: fewer at a time, and later."""

    most: int | None = None  # jobs in one submission; None: no limit is known
    not_before: float = 0.0
    pause_seconds: float = _FULL_SECONDS

    def refused(self, jobs: int, now: float) -> Room:
        """Plan after the queue was too full for a submission: half of it, or one job after a pause."""
        if jobs > 1:
            return Room(jobs // 2, now)
        return Room(1, now + self.pause_seconds, min(self.pause_seconds * _POLL_GROWTH, MAX_POLL_SECONDS))

    def accepted(self) -> Room:
        """Plan after a submission was taken."""
        return self if self.most is None else Room(self.most * 2)

    def freed(self) -> Room:
        """Plan after a job of this run has ended, which makes room for another."""
        return Room(self.most)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that is to be submitted."""

    name: str
    shape: tuple[str, ...]
    since: float


class Call(enum.Enum):
    """A call to Slurm's commands."""

    CANCEL = enum.auto()
    SUBMIT = enum.auto()
    QUERY = enum.auto()


@dataclass(frozen=True, slots=True)
class Demand:
    """The work that waits for calls to Slurm."""

    unsent: tuple[Waiting, ...]
    sent: bool  # there are submitted jobs
    to_cancel: bool  # some of them are to be ended
    blocked: bool  # nothing is submitted before the next answer: there was none, or earlier runs may have left jobs
    due: float  # when the queue is to be asked
    dropped: bool = False  # some jobs were cancelled before they were submitted
    not_before: float = 0.0  # when the queue may have room again for ``unsent``

    def next_call(self, now: float) -> Call | None:
        """Decide which call to make now; None if none is due."""
        if self.to_cancel:
            return Call.CANCEL
        overdue = self.sent and now > self.due + _OVERDUE_SECONDS
        if not self.blocked and not overdue and now >= self.not_before and is_complete(self.unsent, now):
            return Call.SUBMIT
        return Call.QUERY if (self.sent or self.blocked) and now >= self.due else None

    def pause_seconds(self, now: float, turn_seconds: float) -> float | None:
        """Return the seconds in which nothing has to be done; None if there is nothing to wait for.

        Args:
            turn_seconds: how long until a call may be made.
        """
        if self.dropped:  # they need no call
            return 0.0
        if self.to_cancel:
            return max(BATCH_SECONDS / 2, turn_seconds)
        times = [self.due] if self.sent or self.unsent else []
        if self.unsent and not self.blocked:
            times = [self.not_before, *([self.due] if self.sent else [])]
        return max(BATCH_SECONDS / 2, turn_seconds, min(times) - now) if times else None


def is_complete(waiting: Iterable[Waiting], now: float) -> bool:
    """Whether a batch can be submitted: no job came for a moment, or the first one has waited long enough."""
    times = [job.since for job in waiting]
    return bool(times) and (now - max(times) >= BATCH_SECONDS or now - min(times) >= _BATCH_AT_MOST_SECONDS)


def next_batch(waiting: Iterable[Waiting], max_array: int) -> tuple[Waiting, ...]:
    """Choose the jobs of the next submission: of the shape that most jobs have, the oldest first.

    Args:
        waiting: all jobs that are to be submitted.
        max_array: how many jobs an array may have.
    """
    shapes: dict[tuple[str, ...], list[Waiting]] = {}
    for job in waiting:
        shapes.setdefault(job.shape, []).append(job)
    if not shapes:
        return ()
    largest = max(shapes.values(), key=lambda jobs: (len(jobs), -min(job.since for job in jobs)))
    return tuple(sorted(largest, key=lambda job: job.since)[:max_array])


class Step(enum.Enum):
    """The action of the controller on a job without a result."""

    WAIT = enum.auto()
    CONCLUDE = enum.auto()  # it will leave none, and what Slurm says of it is enough
    ASK_USAGE = enum.auto()  # it will leave none: conclude with what Slurm's accounting says it used
    ASK_STATE = enum.auto()  # Slurm does not know it (any more); its accounting may
    SUBMIT_AGAIN = enum.auto()  # Slurm has lost it before anything of it ran
    TAKE_APART = enum.auto()  # Slurm never starts a job that asks for what several attempts need together


@dataclass(frozen=True, slots=True)
class Traces:
    """The traces of a submitted job in its attempt directory."""

    claims: int = 0  # how many copies have started
    terminated: bool = False  # the newest of them has left word that Slurm has ended it
    output: bool = False  # the file for the output of the batch script is there: Slurm makes it before it runs that
    packed: bool = False  # it shares its Slurm job with others


def next_step(row: QueueRow | None, seconds: float, traces: Traces, *, cancelled: bool) -> Step:
    """Decide on a job without a result, after a query that was answered: unknown is not dead.

    Args:
        row: the job in that answer; None if it was not there.
        seconds: how long Slurm has said so (or nothing) of it.
        traces: what it has left, if Slurm says that it has ended; before that, whether it shares its Slurm job.
        cancelled: whether the controller has asked for its end.
    """
    if row is None:
        return Step.ASK_STATE if seconds >= ABSENT_SECONDS else Step.WAIT
    if not row.ended:
        return Step.TAKE_APART if row.barred and traces.packed and not cancelled else Step.WAIT
    if traces.packed and traces.claims == 0 and not cancelled:
        return Step.SUBMIT_AGAIN  # its Slurm job ended before its turn came
    if _reached_limit_of_pack(row, traces) and not cancelled and (traces.terminated or seconds >= RESULT_SECONDS):
        return Step.SUBMIT_AGAIN
    completed = row.state is SlurmState.COMPLETED
    if seconds >= (WRITTEN_RESULT_SECONDS if completed and not cancelled else RESULT_SECONDS):
        return Step.ASK_USAGE
    if traces.terminated or (cancelled and traces.claims == 0):
        return Step.CONCLUDE
    # Slurm 22.05 takes jobs for completed of which not even the batch script was started.
    began = traces.claims > 0 or traces.output
    return Step.SUBMIT_AGAIN if completed and not began and seconds >= RESULT_SECONDS else Step.WAIT


def _reached_limit_of_pack(row: QueueRow | None, traces: Traces) -> bool:
    """Whether Slurm ended a job for the time of those before it. Forge itself ends one that reaches its own limit."""
    return traces.packed and row is not None and row.state is SlurmState.TIMEOUT


def step_after_accounting(row: QueueRow | None, seconds: float, traces: Traces) -> Step:
    """Decide on a job that the controller has not known for ``seconds``, by the accounting's answer (None: nothing).

    For the accounting a job that a crashed controller has lost waits or runs for ever.
    """
    alive_too_long = row is not None and not row.ended and seconds >= WRITTEN_RESULT_SECONDS
    lost = row is None or alive_too_long or (traces.packed and row.ended)
    never_began = traces.claims == 0 and lost
    if never_began or _reached_limit_of_pack(row, traces):
        return Step.SUBMIT_AGAIN
    return Step.ASK_USAGE if row is None or row.ended else Step.WAIT


def remark(row: QueueRow | None, rule: str) -> str | None:
    """Say what only a person can change about a job; None if there is nothing to say. Pure."""
    if row is not None and row.state is None:
        return (
            f"Forge: Slurm says that job {row.job_id} is {row.state_text}, a state that this version of Forge does not "
            "know; Forge takes the job to be alive."
        )
    if row is not None and row.held:
        why = row.reason or row.state_text
        return f"Forge: rule {rule}: Slurm job {row.job_id} is held ({why}); release it: scontrol release {row.job_id}"
    if row is not None and row.barred:
        return (
            f"Forge: rule {rule}: Slurm will not start jobs that ask for what it does ({row.reason}): they wait until "
            "that limit is raised. Else stop the run (Ctrl-C) and change the rule's resources."
        )
    return None
