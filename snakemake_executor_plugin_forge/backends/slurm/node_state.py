"""The decisions of one copy of an attempt on its node. Pure: a state and an event give a state and an instruction.

::

    PREPARING ── Prepared ──► RUNNING ── Ended ──► CONFIRMING ── FenceSaid ──┬─► HOLDING ──── Recorded ──► result
        │                                                                    ├─► TERMINATED ─ Recorded ──► word of it
        └─ Recorded: the node refuses the job ──► REPORTING ─► result        └─► SUPERSEDED ─ Recorded ──► nothing

A copy takes the attempt once, before it publishes, and reports a result only if it has taken it. A copy that Slurm has
told to end never takes it: after a preemption Slurm runs the job again, and the next copy has to find the attempt free.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from ...spec import words
from ...spec.outcome import revised
from ...spec.verdict import Cause, Outcome, Verdict
from .verdicts import needs_state


class Phase(enum.Enum):
    """The stages of a copy."""

    PREPARING = enum.auto()  # it has claimed the attempt
    RUNNING = enum.auto()
    CONFIRMING = enum.auto()  # the job has ended, and the fence is asked whether this copy may publish
    HOLDING = enum.auto()  # it has taken the attempt
    TERMINATED = enum.auto()  # Slurm has told it to end, and it has left the attempt to the next copy
    SUPERSEDED = enum.auto()  # the attempt belongs to another copy, or to the controller
    REPORTING = enum.auto()  # the fence is asked whether this copy may report
    OVER = enum.auto()


@dataclass(frozen=True, slots=True)
class CopyState:
    """A copy, with the verdict about which it asks, or has asked, the fence."""

    phase: Phase = Phase.PREPARING
    verdict: Verdict | None = None


class Prepared(NamedTuple):
    """Event: the node can run the job."""

    in_place: bool  # it cannot stage what was to be staged


class Ended(NamedTuple):
    """Event: the job has ended, and nothing is published yet."""

    verdict: Verdict


class FenceSaid(NamedTuple):
    """Event: the answer to :class:`AskFence`."""

    ours: bool
    why: str = ""  # why not, for the verdict


class Recorded(NamedTuple):
    """Event: the verdict is final, and in the record of this copy."""

    verdict: Verdict


class Run(NamedTuple):
    """Instruction: run the job."""

    clear_outputs: bool  # remove the old outputs first, as Snakemake does where nothing is staged


class AskFence(NamedTuple):
    """Instruction: ask whether the attempt is this copy's."""

    take: bool  # and take it, so that no other copy ever can


class Publish(NamedTuple):
    """Instruction: publish what this verdict allows."""

    verdict: Verdict


class Report(NamedTuple):
    """Instruction: leave a verdict for the controller."""

    verdict: Verdict
    terminated: bool  # it counts only if Slurm runs no other copy


CopyEvent = Prepared | Ended | FenceSaid | Recorded
Instruction = Run | AskFence | Publish | Report | None


def decide(state: CopyState, event: CopyEvent) -> tuple[CopyState, Instruction]:
    """Decide what a copy does after an event.

    Raises:
        AssertionError: for an event that is impossible in this state.
    """
    match state, event:
        case CopyState(Phase.PREPARING), Prepared(in_place):
            return CopyState(Phase.RUNNING), Run(clear_outputs=in_place)
        case CopyState(Phase.RUNNING), Ended(verdict):
            return CopyState(Phase.CONFIRMING, verdict), AskFence(take=not needs_state(verdict))
        case CopyState(Phase.CONFIRMING, Verdict() as verdict), FenceSaid(True):
            return CopyState(Phase.TERMINATED if needs_state(verdict) else Phase.HOLDING, verdict), Publish(verdict)
        case CopyState(Phase.CONFIRMING, Verdict() as verdict), FenceSaid(False, why):
            said = words.unseen(Cause.FENCED, why, verdict.reason)
            return CopyState(Phase.SUPERSEDED), Publish(revised(verdict, Outcome.LOST, Cause.FENCED, said))
        case CopyState(Phase.HOLDING), Recorded(verdict):
            return CopyState(Phase.OVER), Report(verdict, terminated=False)
        case CopyState(Phase.SUPERSEDED), Recorded():
            return CopyState(Phase.OVER), None
        case CopyState(Phase.PREPARING | Phase.RUNNING | Phase.CONFIRMING | Phase.TERMINATED), Recorded(verdict):
            if needs_state(state.verdict or verdict):
                return CopyState(Phase.OVER), Report(verdict, terminated=True)
            return CopyState(Phase.REPORTING, verdict), AskFence(take=True)  # nobody has asked, or had an answer
        case CopyState(Phase.REPORTING, Verdict() as verdict), FenceSaid(ours):
            return CopyState(Phase.OVER), Report(verdict, terminated=False) if ours else None
    raise AssertionError(f"a copy in the phase {state.phase.name} cannot meet {event}")
