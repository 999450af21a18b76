"""Times of calls to Slurm, and decisions on jobs without a result; all pure."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.backends.slurm.parse import QueueRow
from snakemake_executor_plugin_forge.backends.slurm.polling import (
    ABSENT_SECONDS,
    CALL_SECONDS,
    MAX_POLL_SECONDS,
    RESULT_SECONDS,
    WRITTEN_RESULT_SECONDS,
    Call,
    Demand,
    Limiter,
    Polling,
    Step,
    Traces,
    Waiting,
    is_complete,
    next_batch,
    next_step,
    remark,
    step_after_accounting,
)
from snakemake_executor_plugin_forge.backends.slurm.states import TABLE, SlurmState, parse_state


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200), st.floats(0.1, 10))
def test_never_more_calls_than_one_an_interval(pauses: list[float], interval: float) -> None:
    limiter, now, passed = Limiter(interval), 0.0, []
    for pause in pauses:
        now += pause
        if limiter.take(now):
            passed.append(now)
        else:
            assert limiter.wait_seconds(now) > 0
    assert all(later - earlier >= interval - 1e-9 for earlier, later in itertools.pairwise(passed))


def test_the_queue_is_asked_less_and_less_while_there_is_no_news() -> None:
    polling, pauses = Polling(), []
    for _ in range(20):
        polling = polling.answered(100.0, news=False)
        pauses.append(polling.due - 100.0)
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_POLL_SECONDS
    assert polling.answered(100.0, news=True).due - 100.0 < pauses[0]
    assert polling.at_latest(103.0).due == 103.0
    assert polling.at_latest(1000.0).due == polling.due


def test_a_controller_that_does_not_answer_is_asked_often_enough() -> None:
    polling = Polling().unanswered(10.0)
    for now in range(20, 200, 10):
        polling = polling.unanswered(float(now))
        assert polling.out_since == 10.0
        assert polling.due - now <= 10.0
    assert polling.answered(300.0, news=False).out_since is None


def test_jobs_that_come_together_are_submitted_together_but_none_waits_for_ever() -> None:
    assert not is_complete([], 5.0)
    assert not is_complete([Waiting("a", (), 5.0)], 5.01)
    assert is_complete([Waiting("a", (), 5.0)], 5.1)
    steady = [Waiting(str(n), (), 5 + n * 0.04) for n in range(28)]
    assert not is_complete(steady[:5], 5.17)
    assert is_complete(steady, 6.09)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 10)), max_size=40), st.integers(1, 10))
def test_every_job_is_in_exactly_one_batch_of_its_shape(jobs: list[tuple[str, float]], largest: int) -> None:
    waiting = [Waiting(str(n), (shape_name,), since) for n, (shape_name, since) in enumerate(jobs)]
    left, seen = list(waiting), list[Waiting]()
    while batch := next_batch(left, largest):
        assert len({job.shape for job in batch}) == 1
        assert len(batch) <= largest
        seen += batch
        left = [job for job in left if job not in batch]
    assert not left
    assert sorted(job.name for job in seen) == sorted(job.name for job in waiting)


JOBS = (Waiting("a", (), 0.0),)


@pytest.mark.parametrize(("demand", "now", "call"), [
    (Demand((), False, False, False, 0.0), 9.0, None), (Demand(JOBS, True, True, True, 0.0), 9.0, Call.CANCEL),
    (Demand(JOBS, False, False, False, 0.0), 9.0, Call.SUBMIT), (Demand(JOBS, True, False, False, 8.0), 9.0, Call.SUBMIT),
    (Demand(JOBS, True, False, False, 1.0), 9.0, Call.QUERY), (Demand(JOBS, False, False, True, 8.0), 9.0, Call.QUERY),
    (Demand(JOBS, False, False, True, 10.0), 9.0, None), (Demand((), True, False, False, 10.0), 9.0, None)])
def test_which_call_is_made(demand: Demand, now: float, call: Call | None) -> None:
    assert demand.next_call(now) is call


def test_a_job_that_was_cancelled_before_it_was_submitted_is_not_kept_waiting() -> None:
    assert Demand((), True, False, True, 60.0).pause_seconds(1.0, 1.0) == 59.0
    assert Demand((), False, False, True, 60.0).pause_seconds(1.0, 1.0) is None
    assert Demand((), False, False, True, 60.0, dropped=True).pause_seconds(1.0, 1.0) == 0.0


@given(st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.floats(0, 100))
def test_whatever_is_wanted_comes_to_its_turn(unsent: bool, sent: bool, to_cancel: bool, blocked: bool, due: float) -> None:
    """The thread never sleeps forever: jobs, cancellations and queries all get their calls."""
    now, limiter, made, polling = 0.0, Limiter(), list[Call](), Polling(due=due)
    for _ in range(200):
        demand = Demand(JOBS if unsent else (), sent, to_cancel and sent, blocked, polling.due)
        pause = demand.pause_seconds(now, limiter.wait_seconds(now))
        if pause is None:
            break
        now += pause
        call = demand.next_call(now)
        if call is None or not limiter.take(now):
            continue
        made.append(call)
        match call:
            case Call.CANCEL:
                to_cancel = False
            case Call.SUBMIT:
                unsent, sent = False, True
                polling = polling.at_latest(now + 2 * CALL_SECONDS)
            case Call.QUERY:
                blocked, polling = False, polling.answered(now, news=False)
    assert not unsent
    assert not (to_cancel and sent)
    assert Call.QUERY in made or not sent


# -- jobs without a result


def row(state: str) -> QueueRow:
    return QueueRow("1", "n", 0, parse_state(state), state, "", "")


RAN = Traces(claims=1, output=True)


@pytest.mark.parametrize(("seen", "seconds", "traces", "cancelled", "expected"), [
    (row("RUNNING"), 1e9, RAN, True, Step.WAIT), (row("REQUEUE_HOLD"), 1e9, RAN, False, Step.WAIT),
    (row("NEW_IN_2030"), 1e9, RAN, False, Step.WAIT),
    (row("FAILED"), RESULT_SECONDS - 1, RAN, False, Step.WAIT), (row("FAILED"), RESULT_SECONDS, RAN, False, Step.ASK_USAGE),
    (row("FAILED"), RESULT_SECONDS - 1, Traces(), False, Step.WAIT),
    (row("COMPLETED"), RESULT_SECONDS, RAN, False, Step.WAIT), (row("COMPLETED"), RESULT_SECONDS, RAN, True, Step.ASK_USAGE),
    (row("COMPLETED"), WRITTEN_RESULT_SECONDS, RAN, False, Step.ASK_USAGE),
    (row("COMPLETED"), RESULT_SECONDS, Traces(), False, Step.SUBMIT_AGAIN),
    (row("COMPLETED"), RESULT_SECONDS, Traces(output=True), False, Step.WAIT),
    (row("COMPLETED"), RESULT_SECONDS - 1, Traces(), False, Step.WAIT),
    (row("PREEMPTED"), 0.0, Traces(1, terminated=True), False, Step.CONCLUDE),
    (row("PREEMPTED"), 0.0, Traces(1, terminated=True, packed=True), False, Step.CONCLUDE),
    (row("TIMEOUT"), 0.0, Traces(1, terminated=True), False, Step.CONCLUDE),
    (row("TIMEOUT"), 0.0, Traces(1, terminated=True, packed=True), False, Step.SUBMIT_AGAIN),
    (row("TIMEOUT"), 0.0, Traces(1, terminated=True, packed=True), True, Step.CONCLUDE),
    (row("TIMEOUT"), 0.0, Traces(1, packed=True), False, Step.WAIT),
    (row("TIMEOUT"), RESULT_SECONDS, Traces(1, packed=True), False, Step.SUBMIT_AGAIN),
    (row("CANCELLED"), 0.0, Traces(), True, Step.CONCLUDE), (row("CANCELLED"), 0.0, RAN, True, Step.WAIT),
    (row("CANCELLED"), 0.0, Traces(), False, Step.WAIT),
    (None, ABSENT_SECONDS - 1, Traces(), False, Step.WAIT), (None, ABSENT_SECONDS, Traces(), True, Step.ASK_STATE)])
def test_what_becomes_of_a_job_without_a_result(
    seen: QueueRow | None, seconds: float, traces: Traces, cancelled: bool, expected: Step
) -> None:
    assert next_step(seen, seconds, traces, cancelled=cancelled) is expected


@given(st.sampled_from(SlurmState), st.floats(0, 1e9), st.builds(Traces, st.integers(0, 3), st.booleans(), st.booleans()),
       st.booleans())
def test_nothing_is_concluded_on_what_may_be_alive(state: SlurmState, seconds: float, traces: Traces, cancelled: bool) -> None:
    step = next_step(row(state), seconds, traces, cancelled=cancelled)
    if TABLE[state].outcome is None:
        assert step is Step.WAIT
    if step is Step.SUBMIT_AGAIN:
        assert traces.claims == 0, "no copy of it has run"
    later = next_step(row(state), seconds + WRITTEN_RESULT_SECONDS, traces, cancelled=cancelled)
    assert (later is Step.WAIT) == (TABLE[state].outcome is None), "no job is waited for forever"


def test_what_the_accounting_says_of_a_job_that_the_controller_forgot() -> None:
    assert step_after_accounting(None, 0.0, Traces()) is Step.SUBMIT_AGAIN
    assert step_after_accounting(None, 0.0, RAN) is Step.ASK_USAGE
    assert step_after_accounting(row("TIMEOUT"), 0.0, Traces()) is Step.ASK_USAGE
    assert step_after_accounting(row("TIMEOUT"), 0.0, Traces(1, packed=True)) is Step.SUBMIT_AGAIN
    for state in ("CANCELLED", "NODE_FAIL", "COMPLETED"):
        assert step_after_accounting(row(state), 0.0, Traces(packed=True)) is Step.SUBMIT_AGAIN, "its turn had not come"
        assert step_after_accounting(row(state), 0.0, Traces(1, packed=True)) is Step.ASK_USAGE
    assert step_after_accounting(row("RUNNING"), 0.0, Traces(packed=True)) is Step.WAIT
    assert step_after_accounting(row("RUNNING"), 0.0, RAN) is Step.WAIT
    assert step_after_accounting(row("PENDING"), WRITTEN_RESULT_SECONDS, Traces()) is Step.SUBMIT_AGAIN, "a crashed controller lost it"
    assert step_after_accounting(row("RUNNING"), 1e9, RAN) is Step.WAIT


def test_what_only_a_person_can_change_is_said() -> None:
    assert remark(None, "map") is remark(row("RUNNING"), "map") is None
    assert "a state that this version of Forge does not know" in str(remark(row("NEW_IN_2030"), "map"))
    held = QueueRow("7", "n", 0, SlurmState.PENDING, "PENDING", "JobHeldUser", "")
    assert remark(held, "map") == (
        "Forge: rule map: Slurm job 7 is held (JobHeldUser); release it: scontrol release 7")
    for reason in ("job requeued in held state", "launch failed requeued held"):
        assert "scontrol release 7" in str(remark(replace(held, reason=reason), "map"))
    for reason in ("PartitionTimeLimit", "QOSMaxWallDurationPerJobLimit", "AssocMaxMemPerJob", "InvalidQOS", "QOSMinCpuNotSatisfied"):
        assert reason in str(remark(replace(held, reason=reason), "map"))
        assert next_step(replace(held, reason=reason), 0.0, Traces(packed=True), cancelled=False) is Step.TAKE_APART
        assert next_step(replace(held, reason=reason), 0.0, Traces(packed=True), cancelled=True) is Step.WAIT
        assert next_step(replace(held, reason=reason), 0.0, Traces(), cancelled=False) is Step.WAIT
    for reason in ("Resources", "Priority", "QOSMaxJobsPerUserLimit", "AssocGrpCpuLimit", "QOSMaxCpuPerUserLimit", "PartitionDown"):
        assert remark(replace(held, reason=reason), "map") is None
