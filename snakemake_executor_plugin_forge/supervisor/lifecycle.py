"""The decisions of a supervisor while a job runs. Pure: state and event give the next state and instructions.

::

    running ── its time is over, an order ──► SIGTERM ── grace ──► SIGKILL ──► over ──► ended
       ├─────── it exceeds a limit ──────────────────────────────► SIGKILL ──► over ──► ended
       └─────── it exits ──► lingers, while processes that it left behind write ──► over ──► ended

A job that lingers is watched like one that runs: its limits hold, its time may end, and an order ends it. How long it
may linger depends on what its processes write: see :func:`_left`.

All times are those of time.monotonic(), in seconds.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple, assert_never

from ..sandbox.cgroups.base import Sample
from ..spec.verdict import Excess, Order, Writer, WritesTo

FIRST_SAMPLE_SECONDS = 0.02
LAST_SAMPLE_SECONDS = 2.0
_LONG_SECONDS = 0.5
_SURVIVORS_SECONDS = 0.02

MAY_WRITE_SECONDS = 5.0
"""Seconds for processes without a file to open one: Snakemake waits so long for missing outputs."""
LOG_SECONDS = 60.0
IDLE_SECONDS = 10.0
"""Seconds for which a writer of a log or of an undeclared file may do nothing: servers hold their logs for ever."""
WRITE_SECONDS = 600.0
"""Seconds that writers may take at least, where the job has no wall time; or as long as the command itself took."""
_LOOK_SECONDS = (0.002, 0.25)  # the shortest and the longest pause between two checks of the writers
_LOOK_SHARE = 8  # a pause is this part of the time that they were waited for


class Terms(NamedTuple):
    """The limits on the time of one job."""

    wall_seconds: float | None
    grace_seconds: float  # between SIGTERM and SIGKILL


class JobState(NamedTuple):
    """The history of a job since its start, and the times of what is to be done next."""

    begin: float
    sample_at: float
    measure_at: float = math.inf  # its disk; inf: the disk has no limit
    interval: float = FIRST_SAMPLE_SECONDS
    kill_at: float = math.inf  # the end of its grace; inf: nobody has told it to end
    exited_at: float = math.inf  # when its first process had done its work, if that has left writers behind
    look_at: float = math.inf  # at the writers
    progress: int = 0  # of the writers, when they were last seen to do something
    progress_at: float = math.inf
    claimed_at: float = -math.inf  # when something was last seen that writes, or may be about to
    writers: tuple[Writer, ...] = ()  # when they were last seen
    truncated: bool = False  # it was ended although outputs were still being written
    over: bool = False  # it has done its work or died; processes that it left behind may live
    ended: bool = False  # nothing is left to watch
    killed: bool = False
    detached: bool = False
    is_long: bool = False
    was_inside: bool = False  # a sample has found it in its cgroup
    timed_out: bool = False
    cancelled: Order | None = None  # the first order to end it
    excess: Excess | None = None
    error: str | None = None  # why nothing limited it any more

    @property
    def terminated(self) -> bool:
        """Return whether it was told to end, for whatever reason."""
        return self.kill_at < math.inf

    @property
    def lingers(self) -> bool:
        """Return whether it has done its work, and only waits for writers that it has left behind."""
        return self.exited_at < math.inf and not self.over


# -- events ----------------------------------------------------------------------------------------------------------


class Happened(enum.Enum):
    """Events without more to say."""

    ABANDONED = "Snakemake is gone, and the job is one that continues without it"
    EXITED = "the job has done its work or died"


class Woke(NamedTuple):
    """The loop has dealt with all descriptors that were ready."""

    survivors: int = 0  # processes that the job has left behind; counted when it is over


class Sampled(NamedTuple):
    """The state of the cgroup: the answer to :class:`TakeSample`."""

    sample: Sample
    pause_seconds: float  # until the next sample
    missing: str | None = None  # a file without which its limits do not hold, and which is gone
    is_alive: bool = True


class DiskMeasured(NamedTuple):
    """The result of the meter: the answer to :attr:`Do.MEASURE_DISK`."""

    excess: Excess | None
    due: float  # when to measure next


class Left(NamedTuple):
    """The processes that the job has left behind: the answer to :attr:`Do.LOOK`."""

    writers: tuple[Writer, ...] = ()
    alive: bool = False  # whether there is any
    may_write: bool = False  # whether others hold nothing, but may be about to open a file
    progress: int = 0  # grows while they do something
    failed: bool = False  # whether the job itself has failed


Event = Woke | Happened | Order | Sampled | DiskMeasured | Left

# -- instructions ----------------------------------------------------------------------------------------------------


class Do(enum.Enum):
    """Instructions without more to say."""

    REAP = "wait until the job's first process is dead, whatever that takes; it answers with EXITED"
    MEASURE_DISK = "measure the disk that the job takes, for some milliseconds"
    SAVE_MEMORY = (
        "free what only serves to start the next job, and bring the record to the disk: this job takes its time"
    )
    DETACH = "continue without Snakemake"
    LOOK = "see what its processes still write, now that its first one has done its work, if nothing is more urgent"


class Terminate(NamedTuple):
    """Note that the job is told to end and, if it has a grace, send SIGTERM to each of its processes."""

    why: str
    grace_seconds: float


class Kill(NamedTuple):
    """Kill everything."""

    why: str


class TakeSample(NamedTuple):
    """Read the counters of the cgroup."""

    usual_pause_seconds: float


Instruction = Do | Terminate | Kill | TakeSample
_Step = tuple[JobState, tuple[Instruction, ...]]

# -- decisions -------------------------------------------------------------------------------------------------------


def decide(state: JobState, event: Event, terms: Terms, now: float) -> _Step:  # noqa: C901 - a table
    """Conclude what follows from an event.

    Raises:
        AssertionError: if the event is impossible in this state.
    """
    if state.ended:
        raise AssertionError(f"{event} after the end")
    match event:
        case Woke(survivors) if state.over:
            return state._replace(ended=survivors == 0 or now >= state.kill_at), ()
        case Woke():
            return _woke(state, terms, now)
        case Order():
            state = state._replace(cancelled=state.cancelled or event)
            return _terminate(state, "cancelled", terms.grace_seconds if event.grace else 0.0, now)
        case Happened.ABANDONED if not state.detached:
            return state._replace(detached=True), (Do.DETACH,)
        case Happened.EXITED if not state.over:
            return _exited(state, now)
        case Left():
            return _left(state, event, terms, now)
        case Sampled():
            return _sampled(state, event, now)
        case DiskMeasured(None, due):
            return state._replace(measure_at=due), ()
        case DiskMeasured(excess, _):
            return _kill(state._replace(excess=excess, measure_at=math.inf), "too much disk")
        case Happened.ABANDONED | Happened.EXITED:
            raise AssertionError(f"{event} is impossible: {state}")
    assert_never(event)


def next_wakeup(state: JobState, terms: Terms, now: float) -> float:
    """Return when the loop has to wake up, if no descriptor is ready before."""
    if state.over:
        return min(state.kill_at, now + _SURVIVORS_SECONDS)
    times = [state.sample_at, state.measure_at, state.kill_at, state.look_at]
    if not state.terminated and terms.wall_seconds is not None:
        times.append(state.begin + terms.wall_seconds)
    return min(times)


def _woke(state: JobState, terms: Terms, now: float) -> _Step:
    if now >= state.kill_at:
        return _end_of_grace(state)
    instructions: list[Instruction] = []
    if now >= state.sample_at:
        interval = min(state.interval * 2, LAST_SAMPLE_SECONDS)
        if interval > _LONG_SECONDS and not state.is_long:
            instructions.append(Do.SAVE_MEMORY)
        is_long = interval > _LONG_SECONDS
        state = state._replace(interval=interval, sample_at=now + interval, is_long=is_long)
        instructions.append(TakeSample(interval))
    if now >= state.measure_at:
        instructions.append(Do.MEASURE_DISK)
    if now >= state.look_at:
        instructions.append(Do.LOOK)
    if not state.terminated and terms.wall_seconds is not None and now - state.begin >= terms.wall_seconds:
        state, more = _terminate(state._replace(timed_out=True), "timeout", terms.grace_seconds, now)
        instructions += more
    return state, tuple(instructions)


def _terminate(state: JobState, why: str, grace_seconds: float, now: float) -> _Step:
    """Tell the job to end; a grace that it has got already only becomes shorter."""
    state = state._replace(kill_at=min(state.kill_at, now + grace_seconds), over=state.over or state.lingers)
    told = Terminate(why, grace_seconds)
    if state.over or now < state.kill_at:
        return state._replace(ended=now >= state.kill_at), (told,)
    state, more = _end_of_grace(state)
    return state, (told, *more)


def _end_of_grace(state: JobState) -> _Step:
    return state._replace(killed=True), (Kill("end of the grace"), Do.REAP)


def _kill(state: JobState, why: str) -> _Step:
    if state.over or state.killed:
        return state, ()
    return state._replace(killed=True, over=state.lingers, ended=state.lingers), (Kill(why),)


def _exited(state: JobState, now: float) -> _Step:
    if state.terminated or state.killed or state.lingers:
        return state._replace(over=True, ended=not state.terminated or now >= state.kill_at), ()
    return state._replace(exited_at=now, progress_at=now, look_at=now), (Do.LOOK,)


def _left(state: JobState, left: Left, terms: Terms, now: float) -> _Step:
    """Wait for what the job has left behind, or end it.

    An output must be whole: its writers have all of the job's time, and where that is not limited, as long as the
    command itself took. Whoever is still at work then makes the job fail. Servers and monitors that nobody has ended
    hold logs and undeclared files for ever, and the job ends without them.
    """
    if not state.lingers:
        return state, ()
    if left.progress != state.progress:
        state = state._replace(progress=left.progress, progress_at=now)
    state = state._replace(writers=left.writers, claimed_at=now if left.writers or left.may_write else state.claimed_at)
    waited, idle, held = now - state.exited_at, now - state.progress_at, {writer.to for writer in left.writers}
    if waited >= _patience(state, left, terms, held):
        truncated = not left.failed and not held <= {WritesTo.LOG}
        return state._replace(over=True, ended=True, truncated=truncated, look_at=math.inf), ()
    if held and WritesTo.OUTPUT not in held and idle >= IDLE_SECONDS:
        return _terminate(state, "idle", terms.grace_seconds, now)
    shortest, longest = _LOOK_SECONDS
    return state._replace(look_at=now + min(max(shortest, waited / _LOOK_SHARE), longest)), ()


def _patience(state: JobState, left: Left, terms: Terms, held: set[WritesTo]) -> float:
    """Return how many seconds after its exit a job may linger with what it has left."""
    if not held and not left.may_write:  # who has written something, and is alive, may open another file
        return state.claimed_at - state.exited_at + MAY_WRITE_SECONDS if left.alive else 0.0
    if not held or left.failed:
        return MAY_WRITE_SECONDS
    if held == {WritesTo.LOG}:
        return LOG_SECONDS
    return math.inf if terms.wall_seconds is not None else max(WRITE_SECONDS, state.exited_at - state.begin)


def _sampled(state: JobState, event: Sampled, now: float) -> _Step:
    state = state._replace(sample_at=now + event.pause_seconds)
    if state.over or state.killed:
        return state, ()
    if event.sample.oom_kills:
        return _kill(state, "a process was killed for memory")
    if event.sample.over:
        return _kill(state, "too many processes")
    if event.missing is not None:
        error = (
            f"the supervisor failed while the job ran: {event.missing} is gone: somebody removed or changed the job's "
            "cgroup, so nothing limited it; the job was killed"
        )
        return state._replace(error=error, killed=True), (Kill("its cgroup is gone"), Do.REAP)
    if not event.sample.empty:
        return state._replace(was_inside=True), ()
    if state.was_inside and event.is_alive:
        error = (
            "its cgroup was emptied or removed from outside while it ran, so that its limits held no more; "
            "the job was killed"
        )
        return _kill(state._replace(error=error), "not in its cgroup any more")
    return state, ()
