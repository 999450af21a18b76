"""Decisions of a supervisor while a job runs, for events in any order, without a process."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.sandbox.cgroups.base import Sample
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Excess, Order, Writer, WritesTo
from snakemake_executor_plugin_forge.supervisor.lifecycle import (
    DiskMeasured,
    Do,
    Event,
    Happened,
    JobState,
    Kill,
    Left,
    Sampled,
    TakeSample,
    Terminate,
    Terms,
    Woke,
    decide,
    next_wakeup,
)

WRITERS = [Writer("gzip", f"a.{to.value}", to) for to in WritesTo]
OUTPUT, LOG, UNDECLARED = ((writer,) for writer in WRITERS)
EXCESS = Excess(2, "/tmp/x", 2)
ORDERS = [Order(EndedBy.USER, "Ctrl-C"), Order(EndedBy.CONTROLLER, "Snakemake died", grace=False)]
SAMPLES = [
    Sample(1, 0, 1, oom_kills=0, empty=False),
    Sample(1, 0, 1, oom_kills=0, empty=True),
    Sample(1, 0, 1, oom_kills=1, empty=False),
    Sample(1, 0, 1, oom_kills=0, empty=False, over=True),
]


@dataclass
class World:
    """A job that obeys SIGTERM or not, and leaves processes behind or not; it dies some time after SIGKILL."""

    terms: Terms
    obeys: bool
    survivors: int
    left: Left
    samples: deque[Sampled]
    state: JobState = field(default_factory=lambda: JobState(0.0, 0.02))
    now: float = 0.0
    done: list[tuple[float, object]] = field(default_factory=list)
    over_at: float = math.inf

    def tell(self, event: Event) -> None:
        """Do what the event loop does, but with nothing real."""
        events = deque([event])
        while events and not self.state.ended:
            before = self.state.kill_at
            self.state, instructions = decide(self.state, events.popleft(), self.terms, self.now)
            assert self.state.kill_at <= before, "the grace has become longer"
            self.over_at = min(self.over_at, self.now) if self.state.over else math.inf
            for instruction in instructions:
                self.done.append((self.now, instruction))
                events.extend(self._answers(instruction))

    def _answers(self, instruction: object) -> list[Event]:
        match instruction:
            case Do.REAP:
                return [Happened.EXITED]
            case Do.LOOK:
                return [self.left]
            case Do.MEASURE_DISK:
                return [DiskMeasured(None, self.now + 1)]
            case TakeSample(pause):
                return [self.samples.popleft() if self.samples else Sampled(SAMPLES[0], pause)]
            case Terminate(_, grace) if grace and self.obeys and not self.state.over:
                return [Happened.EXITED]
        return []

    def run(self, until: float, most: int = 1000) -> None:
        """Wake up whenever the state machine wants it, and at ``until``."""
        for _ in range(most):
            self.now = max(self.now, min(until, next_wakeup(self.state, self.terms, self.now) + 1e-9))
            self.tell(Woke(self.survivors))
            if self.state.ended or self.now >= until:
                break


sampled = st.builds(Sampled, st.sampled_from(SAMPLES), st.floats(0.01, 2), st.sampled_from([None, None, "memory.max"]),
                    st.booleans())  # fmt: skip
events = st.lists(st.tuples(st.floats(0, 3), st.sampled_from(
    [*ORDERS, Happened.EXITED, Happened.ABANDONED, Woke(), DiskMeasured(EXCESS, math.inf)])), max_size=8)  # fmt: skip
worlds = st.builds(
    World,
    st.builds(Terms, st.none() | st.floats(0, 5), st.floats(0, 2)),
    obeys=st.booleans(),
    survivors=st.integers(0, 1),
    left=st.builds(Left, st.lists(st.sampled_from(WRITERS)).map(tuple), st.booleans(), st.booleans(), st.just(0), st.booleans()),
    samples=st.lists(sampled, max_size=4).map(deque),
)


@given(worlds, events)
def test_whatever_happens_the_job_ends_in_time(world: World, happenings: list[tuple[float, Event]]) -> None:
    for pause, event in happenings:
        world.run(world.now + pause)
        if event is Happened.EXITED and world.state.lingers:
            continue
        twice = (event is Happened.EXITED and world.state.over) or (event is Happened.ABANDONED and world.state.detached)
        if not world.state.ended and twice:
            with pytest.raises(AssertionError, match="impossible"):
                world.tell(event)
        elif not (isinstance(event, DiskMeasured) and world.state.excess):
            world.tell(event)
    if not world.state.ended:
        world.tell(ORDERS[0])
    world.run(math.inf)
    assert world.state.ended
    kills = [when for when, instruction in world.done if isinstance(instruction, Kill)]
    for when, instruction in world.done:
        if isinstance(instruction, Terminate):
            assert min([world.over_at, *kills]) <= when + instruction.grace_seconds + 1e-6, "no KILL after the TERM"
    with pytest.raises(AssertionError, match="after the end"):
        decide(world.state, Woke(), world.terms, world.now)


TERMS = Terms(10.0, 2.0)
RUNNING = JobState(0.0, math.inf, was_inside=True)
TERMINATED = JobState(0.0, math.inf, kill_at=5.0, cancelled=ORDERS[0])
LINGERS = JobState(0.0, math.inf, was_inside=True, exited_at=1.0, progress_at=1.0)
OVER = JobState(0.0, math.inf, kill_at=5.0, over=True)


@pytest.mark.parametrize(
    ("state", "event", "now", "instructions", "change"),
    [
        (RUNNING, Woke(), 1.0, (), {}),
        (RUNNING, Woke(), 10.0, (Terminate("timeout", 2.0),), {"timed_out": True, "kill_at": 12.0}),
        (RUNNING, ORDERS[0], 1.0, (Terminate("cancelled", 2.0),), {"cancelled": ORDERS[0], "kill_at": 3.0}),
        (RUNNING, ORDERS[1], 1.0, (Terminate("cancelled", 0.0), Kill("end of the grace"), Do.REAP), {"killed": True}),
        (RUNNING, Happened.EXITED, 1.0, (Do.LOOK,), {"over": False, "lingers": True, "look_at": 1.0}),  # again, if it is interrupted
        (LINGERS, Left(), 1.0, (), {"over": True, "ended": True, "truncated": False}),
        (LINGERS, Left(alive=True), 1.0, (), {"ended": True, "truncated": False}),
        (LINGERS._replace(claimed_at=9.0), Left(alive=True), 13.9, (), {"lingers": True}),
        (LINGERS._replace(claimed_at=9.0), Left(alive=True), 14.0, (), {"ended": True, "truncated": False}),
        (LINGERS._replace(claimed_at=9.0), Left(), 9.0, (), {"ended": True, "truncated": False}),
        (LINGERS, Left(OUTPUT), 1.0, (), {"lingers": True, "look_at": 1.002}),
        (LINGERS, Left(OUTPUT), 9.9, (), {"lingers": True, "look_at": 9.9 + 0.25, "writers": OUTPUT}),
        (LINGERS, Left(OUTPUT, failed=True), 6.0, (), {"ended": True, "truncated": False}),
        (LINGERS, Left((), may_write=True), 5.9, (), {"lingers": True}),
        (LINGERS, Left((), may_write=True), 6.0, (), {"ended": True, "truncated": False}),
        (LINGERS, Left(LOG), 11.0, (Terminate("idle", 2.0),), {"over": True, "ended": False, "kill_at": 13.0}),
        (LINGERS, Left(LOG, progress=1), 11.0, (), {"lingers": True, "progress_at": 11.0}),
        (LINGERS, Left(LOG, progress=1), 61.0, (), {"ended": True, "truncated": False, "writers": LOG}),
        (LINGERS, Woke(), 10.0, (Terminate("timeout", 2.0),), {"timed_out": True, "over": True, "ended": False}),
        (LINGERS._replace(look_at=2.0), Woke(), 2.0, (Do.LOOK,), {"lingers": True}),
        (LINGERS, ORDERS[1], 2.0, (Terminate("cancelled", 0.0),), {"ended": True}),
        (LINGERS, Sampled(SAMPLES[2], 1.0), 2.0, (Kill("a process was killed for memory"),), {"ended": True}),
        (RUNNING, Left(), 1.0, (), {"ended": False}),
        (RUNNING, Happened.ABANDONED, 1.0, (Do.DETACH,), {"detached": True, "ended": False}),
        (RUNNING, DiskMeasured(EXCESS, 2.0), 1.0, (Kill("too much disk"),), {"excess": EXCESS, "measure_at": math.inf}),
        (RUNNING, DiskMeasured(None, 2.0), 1.0, (), {"measure_at": 2.0}),
        (RUNNING, Sampled(SAMPLES[2], 1.0), 1.0, (Kill("a process was killed for memory"),), {"sample_at": 2.0}),
        (RUNNING, Sampled(SAMPLES[3], 1.0), 1.0, (Kill("too many processes"),), {"error": None}),
        (RUNNING, Sampled(SAMPLES[1], 1.0), 1.0, (Kill("not in its cgroup any more"),), {"killed": True}),
        (RUNNING, Sampled(SAMPLES[1], 1.0, is_alive=False), 1.0, (), {"error": None}),
        (RUNNING, Sampled(SAMPLES[0], 1.0, "x"), 1.0, (Kill("its cgroup is gone"), Do.REAP), {"killed": True}),
        (JobState(0.0, 1.0, interval=0.4), Woke(), 1.0, (Do.SAVE_MEMORY, TakeSample(0.8)), {"is_long": True}),
        (JobState(0.0, 1.0, interval=2.0, is_long=True), Woke(), 1.0, (TakeSample(2.0),), {"sample_at": 3.0}),
        (JobState(0.0, 9.0, measure_at=1.0), Woke(), 1.0, (Do.MEASURE_DISK,), {}),
        (TERMINATED, Woke(), 4.0, (), {"killed": False}),
        (TERMINATED, Woke(), 5.0, (Kill("end of the grace"), Do.REAP), {"killed": True}),
        (TERMINATED, ORDERS[1], 4.0, (Terminate("cancelled", 0.0), Kill("end of the grace"), Do.REAP),
         {"cancelled": ORDERS[0], "kill_at": 4.0}),
        (TERMINATED, Happened.EXITED, 4.0, (), {"over": True, "ended": False}),
        (OVER, Woke(1), 4.0, (), {"ended": False}),
        (OVER, Woke(0), 4.0, (), {"ended": True}),
        (OVER, Woke(1), 5.0, (), {"ended": True}),
    ],
)  # fmt: skip
def test_decisions(
    state: JobState, event: Event, now: float, instructions: tuple[object, ...], change: dict[str, object]
) -> None:
    after, done = decide(state, event, TERMS, now)
    assert done == instructions
    assert {name: getattr(after, name) for name in change} == change


@pytest.mark.parametrize("writers", [OUTPUT, UNDECLARED, LOG])
@pytest.mark.parametrize("ran", [1.0, 5000.0])
def test_without_a_wall_time_an_output_that_is_written_for_ever_fails_the_job(writers: tuple[Writer, ...], ran: float) -> None:
    state, now = JobState(0.0, math.inf, exited_at=ran, progress_at=ran), ran
    while not state.ended:
        now = next_wakeup(state, Terms(None, 2.0), now) if state.look_at < math.inf else now
        state, done = decide(state, Left(writers, progress=int(now * 1000)), Terms(None, 2.0), now)
        assert done == ()
    assert state.truncated == (writers != LOG)
    assert now - ran == pytest.approx(60.0 if writers == LOG else max(600.0, ran), abs=0.3)


@pytest.mark.parametrize(
    ("state", "event"),
    [(OVER, Happened.EXITED), (JobState(0.0, 0.0, detached=True), Happened.ABANDONED)],
)
def test_an_impossible_event_is_an_error(state: JobState, event: Event) -> None:
    with pytest.raises(AssertionError, match="impossible"):
        decide(state, event, TERMS, 1.0)
