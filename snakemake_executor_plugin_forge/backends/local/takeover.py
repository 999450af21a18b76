"""The decisions about a job of an earlier run that writes the same files as a job of this run. Pure.

::

    CLAIM ──► ADOPT, if it is the same job ──► wait for its end ──► publish or record it
          └─► REPLACE, if it is another one ──► end it ──► discard it
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from ...spec.verdict import Order, Outcome, Verdict
from ...staging.pending import Status


class TakeoverPhase(enum.Enum):
    """The state of a takeover."""

    CLAIM = enum.auto()
    ADOPT = enum.auto()
    REPLACE = enum.auto()
    OVER = enum.auto()


class Deed(enum.Enum):
    """An instruction. From ADOPT on, the entry is claimed."""

    NOTHING = enum.auto()
    WAIT_FOR_CLAIM = enum.auto()  # another run has it
    COUNT = enum.auto()  # another run has published it
    ADOPT = enum.auto()  # say so
    REPLACE = enum.auto()  # say so
    WAIT = enum.auto()  # for its end, or an order
    TERMINATE = enum.auto()  # SIGTERM to its supervisor
    KILL = enum.auto()  # SIGKILL to its supervisor
    PUBLISH = enum.auto()
    RECORD = enum.auto()  # it came to its own end: its verdict counts
    RUN_AGAIN = enum.auto()  # it was lost or ended
    STOPPED = enum.auto()  # it was ended because an order came
    DISCARD = enum.auto()
    FORGET = enum.auto()  # it failed: nothing is staged


@dataclass(frozen=True, slots=True)
class Takeover:
    """The state of one entry."""

    why: str  # it is another job, in words; empty if it is not
    patience_seconds: float  # from the first SIGTERM to SIGKILL
    phase: TakeoverPhase = TakeoverPhase.CLAIM
    terminated_at: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """An event: the facts about an entry at one moment."""

    now: float  # seconds
    status: Status
    held: bool  # this run has claimed it
    exists: bool
    verdict: Verdict | None  # of a job that is over
    published: bool  # a job that is over has published its outputs
    order: Order | None  # to end the job of this run
    left: bool  # Snakemake loses its terminal: whatever runs continues


def decide(state: Takeover, seen: Seen) -> tuple[Takeover, Deed]:
    """Decide the next step."""
    if state.phase is TakeoverPhase.OVER:
        raise AssertionError("the takeover is over")
    if state.phase is TakeoverPhase.CLAIM:
        phase, deed = _claim(state.why, seen)
    elif not seen.held:
        raise AssertionError("the claim was lost")
    elif state.phase is TakeoverPhase.ADOPT and seen.left:
        phase, deed = TakeoverPhase.OVER, Deed.NOTHING
    elif seen.status is not Status.RUNNING:
        phase, deed = TakeoverPhase.OVER, Deed.DISCARD if state.phase is TakeoverPhase.REPLACE else _conclude(seen)
    elif state.phase is TakeoverPhase.ADOPT and seen.order is None:
        phase, deed = state.phase, Deed.WAIT
    else:
        begin = seen.now if state.terminated_at is None else state.terminated_at
        late = seen.now - begin > state.patience_seconds or (seen.order is not None and not seen.order.grace)
        return replace(state, terminated_at=begin), Deed.KILL if late else Deed.TERMINATE
    return replace(state, phase=phase), deed


def _claim(why: str, seen: Seen) -> tuple[TakeoverPhase, Deed]:
    if seen.status is Status.ELSEWHERE:
        return TakeoverPhase.OVER, Deed.NOTHING
    if not seen.held:
        if seen.exists and not (seen.left or seen.order):
            return TakeoverPhase.CLAIM, Deed.WAIT_FOR_CLAIM
        return TakeoverPhase.OVER, Deed.COUNT if seen.published and not why else Deed.NOTHING
    if seen.status is Status.OVER and (why or not seen.published):
        return TakeoverPhase.OVER, Deed.FORGET
    return (TakeoverPhase.REPLACE, Deed.REPLACE) if why else (TakeoverPhase.ADOPT, Deed.ADOPT)


def _conclude(seen: Seen) -> Deed:
    """Decide what becomes of an adopted job that has ended."""
    if seen.status is Status.WAITING:
        return Deed.PUBLISH
    if seen.verdict is None or seen.verdict.outcome in (Outcome.LOST, Outcome.CANCELLED):
        return Deed.RUN_AGAIN if seen.order is None else Deed.STOPPED
    return Deed.RECORD
