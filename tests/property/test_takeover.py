"""Decisions on an earlier run's job, in every possible situation and in whole histories; no process is started."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.backends.local.takeover import Deed, Seen, Takeover, TakeoverPhase, decide
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Order, Outcome, Usage, Verdict
from snakemake_executor_plugin_forge.staging.pending import Status

ENDS = [None, *(Verdict(outcome, "", None, None, Usage(), "", 0.0) for outcome in Outcome)]
ORDERS = [None, *(Order(EndedBy.USER, "Ctrl-C", grace=grace) for grace in (True, False))]
PATIENCE = 40.0

seen = st.builds(Seen, st.floats(0, 100), st.sampled_from(Status), st.booleans(), st.booleans(), st.sampled_from(ENDS),
                 st.booleans(), st.sampled_from(ORDERS), st.booleans())  # fmt: skip


@pytest.mark.parametrize(("why", "phase"), list(product(["", "its code has changed"], list(TakeoverPhase)[:3])))
@given(seen=seen, terminated_at=st.none() | st.just(10.0))
def test_every_step_obeys_the_laws(why: str, phase: TakeoverPhase, seen: Seen, terminated_at: float | None) -> None:
    state = Takeover(why, PATIENCE, phase, terminated_at)
    if phase is not TakeoverPhase.CLAIM and not seen.held:
        with pytest.raises(AssertionError, match="claim was lost"):
            decide(state, seen)
        return
    following, deed = decide(state, seen)
    running = seen.status is Status.RUNNING
    claimed = {Deed.PUBLISH, Deed.RECORD, Deed.DISCARD, Deed.FORGET, Deed.RUN_AGAIN, Deed.STOPPED, Deed.TERMINATE, Deed.KILL}
    assert seen.held or deed not in claimed, "no job is touched without a claim"
    assert not (deed is Deed.PUBLISH and (seen.left or seen.status is not Status.WAITING)), deed
    assert not (deed is Deed.WAIT and (seen.order or seen.left)), "an order is obeyed"
    assert not (deed is Deed.WAIT_FOR_CLAIM and (seen.order or seen.left or not seen.exists))
    assert not (running and deed in {Deed.DISCARD, Deed.FORGET, Deed.RUN_AGAIN, Deed.STOPPED, Deed.RECORD}), "it still runs"
    if deed is Deed.KILL:
        late = terminated_at is not None and seen.now - terminated_at > PATIENCE
        assert late or (seen.order is not None and not seen.order.grace), "it has its grace"
    if phase is TakeoverPhase.CLAIM and why:
        assert following.phase is not TakeoverPhase.ADOPT, "another job is never adopted"
        assert deed is not Deed.COUNT
    if following.phase is TakeoverPhase.OVER:
        with pytest.raises(AssertionError, match="over"):
            decide(following, seen)


@pytest.mark.parametrize(
    ("why", "status", "verdict", "published", "deeds"),
    [
        ("", Status.WAITING, None, False, [Deed.ADOPT, Deed.PUBLISH]),
        ("differs", Status.WAITING, None, False, [Deed.REPLACE, Deed.DISCARD]),
        ("", Status.OVER, Outcome.SUCCEEDED, True, [Deed.ADOPT, Deed.RECORD]),
        ("", Status.OVER, Outcome.FAILED, False, [Deed.FORGET]),
        ("differs", Status.OVER, Outcome.SUCCEEDED, True, [Deed.FORGET]),
        ("", Status.ELSEWHERE, None, False, [Deed.NOTHING]),
    ],
)
def test_a_job_that_no_longer_runs(
    why: str, status: Status, verdict: Outcome | None, published: bool, deeds: list[Deed]
) -> None:
    end = next((end for end in ENDS if end is not None and end.outcome is verdict), None)
    assert _history(Takeover(why, PATIENCE), [Seen(0, status, True, True, end, published, None, False)] * len(deeds)) == deeds


@pytest.mark.parametrize(
    ("outcome", "order", "deed"),
    [
        (Outcome.FAILED, None, Deed.RECORD),
        (Outcome.LOST, None, Deed.RUN_AGAIN),
        (Outcome.CANCELLED, ORDERS[1], Deed.STOPPED),
        (None, None, Deed.PUBLISH),
    ],
)
def test_a_job_that_runs_is_waited_for(outcome: Outcome | None, order: Order | None, deed: Deed) -> None:
    runs = Seen(0, Status.RUNNING, True, True, None, False, None, False)
    end = next((end for end in ENDS if end is not None and end.outcome is outcome), None)
    ended = replace(runs, status=Status.OVER if end else Status.WAITING, verdict=end, order=order)
    asked = [replace(runs, order=order)] if order else []
    expected = [Deed.WAIT_FOR_CLAIM, Deed.ADOPT, Deed.WAIT, *([Deed.TERMINATE] if order else []), deed]
    assert _history(Takeover("", PATIENCE), [replace(runs, held=False), runs, runs, *asked, ended]) == expected


def test_patience_ends() -> None:
    runs = Seen(5, Status.RUNNING, True, True, None, False, None, False)
    history = [runs, runs, replace(runs, now=45), replace(runs, now=46), replace(runs, status=Status.OVER, now=47)]
    expected = [Deed.REPLACE, Deed.TERMINATE, Deed.TERMINATE, Deed.KILL, Deed.DISCARD]
    assert _history(Takeover("differs", PATIENCE), history) == expected


def _history(state: Takeover, history: list[Seen]) -> list[Deed]:
    deeds = []
    for event in history:
        state, deed = decide(state, event)
        deeds.append(deed)
    assert state.phase is TakeoverPhase.OVER
    return deeds
