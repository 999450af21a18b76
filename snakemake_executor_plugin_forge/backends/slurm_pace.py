"""How often Slurm's controller is asked, which jobs go together, and when a silent job is given up. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from .slurm_states import TABLE, Fate
from .slurm_text import Row

CALL_SECONDS = 1.0
"""At most one call in that time, whatever for: sites ask for it, and some enforce it."""

GATHER_SECONDS = 0.05
"""Jobs that become ready within so long of each other are submitted together."""

GATHER_AT_MOST_SECONDS = 0.5

MIN_POLL_SECONDS = 2.0
MAX_POLL_SECONDS = 60.0
_POLL_GROWTH = 1.5

RESULT_SECONDS = 10.0
"""How long the verdict of a job that Slurm says has ended may take to be seen through a network file system."""

WRITTEN_RESULT_SECONDS = 90.0
"""The same if the job's script ended well, so that it was written: longer than NFS keeps what it knows (60 s)."""

ABSENT_SECONDS = 8.0
"""How long a job may be unknown to a controller that answers: right after sbatch, and after a restart."""


class Limiter:
    """Lets one call pass in every interval. Times are those of one monotonic clock, in seconds."""

    def __init__(self, interval_seconds: float = CALL_SECONDS) -> None:
        self._interval = interval_seconds
        self._last: float | None = None

    def wait_seconds(self, now: float) -> float:
        """How long until a call may be made; 0 if it may be made now."""
        return 0.0 if self._last is None else max(0.0, self._last + self._interval - now)

    def take(self, now: float) -> bool:
        """Make use of it, if a call may be made now."""
        if self.wait_seconds(now) > 0:
            return False
        self._last = now
        return True


def next_poll_seconds(last_seconds: float, *, changed: bool) -> float:
    """The pause after a query of the queue.

    Verdicts come through the file system; the queue only tells of jobs that died without one. So it is asked often
    while there is news in it, and less and less while there is none, or no answer.
    """
    if changed:
        return MIN_POLL_SECONDS
    return min(max(last_seconds, MIN_POLL_SECONDS) * _POLL_GROWTH, MAX_POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that is to be submitted."""

    name: str
    shape: tuple[str, ...]
    since: float


def gathered(waiting: Iterable[Waiting], now: float) -> bool:
    """Whether it is time to submit: nobody came for a moment, or the first has waited long enough."""
    times = [job.since for job in waiting]
    return bool(times) and (now - max(times) >= GATHER_SECONDS or now - min(times) >= GATHER_AT_MOST_SECONDS)


def next_batch(waiting: Iterable[Waiting], max_array: int) -> tuple[Waiting, ...]:
    """Those that are submitted with the next call: of the shape that most jobs have, the oldest first.

    Args:
        max_array: how many jobs an array may have.

    """
    shapes: dict[tuple[str, ...], list[Waiting]] = {}
    for job in waiting:
        shapes.setdefault(job.shape, []).append(job)
    if not shapes:
        return ()
    largest = max(shapes.values(), key=lambda jobs: (len(jobs), -min(job.since for job in jobs)))
    return tuple(sorted(largest, key=lambda job: job.since)[:max_array])


class Silence(enum.Enum):
    """What to do with a job that has left no verdict."""

    WAIT = enum.auto()
    ENDED = enum.auto()  # it never will: Slurm says how it ended
    GONE = enum.auto()  # it never will: Slurm does not know it (any more)


def judge_silence(row: Row | None, since: float, now: float) -> Silence:
    """Decide on a job without a verdict. To be asked only after a query that was answered: unknown is not dead.

    Args:
        row: the job in that answer; None if it was not there.
        since: when it was first seen like this (ended, or not there at all).
        now: of the same clock.

    """
    if row is None:
        return Silence.GONE if now - since >= ABSENT_SECONDS else Silence.WAIT
    if row.state is None or TABLE[row.state].fate is not Fate.ENDED:
        return Silence.WAIT
    patience = WRITTEN_RESULT_SECONDS if row.state == "COMPLETED" else RESULT_SECONDS
    return Silence.ENDED if now - since >= patience else Silence.WAIT
