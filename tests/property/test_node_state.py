"""Copies of one attempt on nodes: their decisions in every order, with the real fence and without a process."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.backends.slurm import fence
from snakemake_executor_plugin_forge.backends.slurm.node_state import (
    AskFence,
    CopyEvent,
    CopyState,
    Ended,
    FenceSaid,
    Phase,
    Prepared,
    Publish,
    Recorded,
    Report,
    Run,
    decide,
)
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Outcome, Usage, Verdict

GOOD = Verdict(Outcome.SUCCEEDED, "succeeded", 0, None, Usage(), "", 1.0)
BAD = Verdict(Outcome.FAILED, "exit code 3", 3, None, Usage(), "", 1.0)
PREEMPTED = Verdict(Outcome.CANCELLED, "cancelled", None, 15, Usage(), "", 1.0, ended_by=EndedBy.SLURM)
EVENTS: list[CopyEvent] = [Prepared(in_place=False), Ended(GOOD), Ended(PREEMPTED), FenceSaid(ours=True),
                           FenceSaid(False, "x"), Recorded(BAD), Recorded(PREEMPTED)]


class Copy:
    """A copy that does one thing at a time."""

    def __init__(self, mine: fence.CopyClaim, ends: Verdict, *, refused: bool, deaf: bool) -> None:
        self.mine, self.ends, self.refused, self.deaf = mine, ends, refused, deaf
        self.state = CopyState()
        self.event: CopyEvent | None = Recorded(BAD) if refused else Prepared(in_place=False)
        self.published: list[Verdict] = []
        self.reported: list[Report] = []

    def step(self) -> None:
        """Meet the next event, and do what the decision says."""
        if self.event is None:
            return
        self.state, instruction = decide(self.state, self.event)
        match instruction:
            case Run():
                self.event = Ended(self.ends)
            case AskFence() if self.deaf:  # the file system does not answer: the job counts as lost, or the process ends
                self.deaf, self.event = False, Recorded(BAD) if self.state.phase is Phase.CONFIRMING else None
            case AskFence(take):
                self.event = FenceSaid(fence.take(self.mine) if take else fence.is_current(self.mine), "another has it")
            case Publish(verdict):
                self.published.append(verdict)
                self.event = Recorded(verdict)
            case Report():
                self.reported.append(instruction)
                self.event = None
            case None:
                self.event = None


STEPS = st.lists(st.one_of(
    st.tuples(st.just("start"), st.sampled_from([GOOD, BAD, PREEMPTED]), st.booleans(), st.booleans()),
    st.tuples(st.just("step"), st.integers(0, 3)), st.just(("forbid",))), max_size=40)


@settings(max_examples=100)
@given(STEPS)
def test_at_most_one_copy_publishes_and_reports(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[object, ...]]) -> None:
    directory = str(tmp_path_factory.mktemp("attempt"))
    copies: list[Copy] = []
    given_up = False
    for step in (*steps, *(("step", n) for n in range(len(steps)) for _ in range(6))):
        match step:
            case ("start", Verdict() as ends, bool(refused), bool(deaf)):
                mine = fence.claim(directory, "test")
                copies += [Copy(mine, ends, refused=refused, deaf=deaf)] if mine is not None else []
            case ("step", int(number)) if copies:
                copies[number % len(copies)].step()
            case ("forbid",):
                given_up |= fence.forbid(directory, "the controller")
    results = [copy for copy in copies for report in copy.reported if not report.terminated]
    good = [copy for copy in copies if any(verdict.ok for verdict in copy.published)]
    assert len(results) + given_up <= 1
    assert all(fence.holds(copy.mine) for copy in (*results, *good))
    for copy in copies:
        assert len(copy.published) <= 1
        assert len(copy.reported) <= 1
        if copy.ends is PREEMPTED and not copy.refused:
            assert not fence.holds(copy.mine), "the next copy has to find the attempt free"
            assert all(report.terminated for report in copy.reported)


def test_a_copy_that_the_fence_refuses_says_why_and_reports_nothing() -> None:
    state, _ = decide(CopyState(Phase.RUNNING), Ended(GOOD))
    state, instruction = decide(state, FenceSaid(False, "a later copy of this attempt has been started"))
    assert isinstance(instruction, Publish)
    assert instruction.verdict.outcome is Outcome.LOST
    assert instruction.verdict.reason == (
        "lost: this copy may not publish what it has written: a later copy of this attempt has been started; "
        "by itself it was: succeeded")
    assert decide(state, Recorded(instruction.verdict)) == (CopyState(Phase.OVER), None)


@pytest.mark.parametrize("in_place", [False, True])
def test_old_outputs_are_removed_where_nothing_is_staged(in_place: bool) -> None:
    assert decide(CopyState(), Prepared(in_place)) == (CopyState(Phase.RUNNING), Run(clear_outputs=in_place))


@pytest.mark.parametrize("phase", list(Phase))
def test_an_impossible_event_is_an_error(phase: Phase) -> None:
    possible = {
        Phase.PREPARING: (Prepared, Recorded), Phase.RUNNING: (Ended, Recorded), Phase.HOLDING: (Recorded,),
        Phase.CONFIRMING: (FenceSaid, Recorded), Phase.TERMINATED: (Recorded,), Phase.SUPERSEDED: (Recorded,),
        Phase.REPORTING: (FenceSaid,), Phase.OVER: (),
    }
    state = CopyState(phase, GOOD if phase in (Phase.CONFIRMING, Phase.REPORTING) else None)
    for event in EVENTS:
        if isinstance(event, possible[phase]):
            decide(state, event)
        else:
            with pytest.raises(AssertionError, match=f"in the phase {phase.name} cannot meet"):
                decide(state, event)
