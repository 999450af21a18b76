"""The decisions of a pool of supervisors: laws that hold for every order of events; no process is started."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snakemake_executor_plugin_forge.workers.assignments import (
    Assignments,
    Fork,
    Instruction,
    LetGo,
    Pass,
    Refuse,
    ReportLost,
)
from snakemake_executor_plugin_forge.workers.channel import Frame, FrameKind


def detachable(frame: Frame) -> bool:
    return frame.kind is FrameKind.RUN and frame.body == b"leaves"


class Assigning(RuleBasedStateMachine):
    """Jobs come and end, supervisors are forked and die; a model of the assignments is checked after each step."""

    @initialize(keeps_spare=st.booleans())
    def begin(self, keeps_spare: bool) -> None:
        self.assignments = Assignments(detachable, keeps_spare=keeps_spare)
        self.count = 0
        self.pids = 0
        self.idle: set[int] = set()
        self.busy: dict[int, Frame] = {}
        self.launched: dict[str, Frame] = {}
        self.over: list[str] = []  # jobs that are over, in any way
        self.reaped: set[str] = set()
        self.stale: set[int] = set()  # get no more jobs
        self.retired: set[int] = set()
        self.ends: list[int] = []  # supervisors that got an order to end their job
        self.closing = False

    def _carry_out(self, instructions: list[Instruction], fork: bool = True) -> None:
        for instruction in instructions:
            match instruction:
                case Pass(pid, frame) if frame.kind in (FrameKind.RUN, FrameKind.REAP):
                    assert frame.kind is FrameKind.REAP or not self.closing, "no job starts after close"
                    assert frame.name not in self.over
                    if frame.kind is FrameKind.REAP:
                        assert frame.name not in self.reaped, "reaped twice"
                        self.reaped.add(frame.name)
                    assert pid not in self.stale, "it does not see a new mount"
                    self.idle.remove(pid)  # it has no other job
                    self.busy[pid] = frame
                case Pass(pid, Frame(FrameKind.QUIT)):
                    self.idle.remove(pid)
                    self.retired.add(pid)
                case Pass(pid, frame):
                    assert pid in self.busy
                    self.ends += [pid] if frame.kind is FrameKind.END else []
                case LetGo(pid, name):
                    job = self.busy.pop(pid)
                    assert (detachable(job), job.name) == (True, name)
                    self._forget(name)
                case Refuse(name) | ReportLost(Frame(_, name)):
                    self._forget(name)
                case Fork():
                    with pytest.raises(AssertionError, match="is being forked"):
                        self.assignments.died(0)
                    self.pids += 1
                    if fork:
                        self.idle.add(self.pids)
                        self._carry_out(self.assignments.forked(self.pids))
                    else:
                        self._carry_out(self.assignments.fork_failed("no"))

    def _forget(self, name: str) -> None:
        assert name not in self.over, "over twice"
        self.over.append(name)

    @rule(leaves=st.booleans(), fork=st.booleans(), kind=st.sampled_from([FrameKind.RUN, FrameKind.RENDER]))
    def run(self, leaves: bool, fork: bool, kind: FrameKind) -> None:
        self.count += 1
        job = Frame(FrameKind.RUN, f"job{self.count}", b"leaves" if leaves else b"")
        if kind is FrameKind.RENDER and not self.closing:
            self.assignments.launched(job)
            self.launched[job.name] = job
            return
        self._carry_out(self.assignments.order(job), fork)
        assert (job.name in self.over) == (job.name not in {frame.name for frame in self.busy.values()})
        assert not self.closing or job.name in self.over

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def a_job_ends(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(sorted(self.busy)))
        with pytest.raises(AssertionError, match="does not have"):
            self.assignments.ended(pid, "another")
        name = self.busy.pop(pid).name
        self.idle.add(pid)
        self._carry_out(self.assignments.ended(pid, name))
        assert (pid in self.retired) == (pid in self.stale)
        self._forget(name)

    @rule()
    def a_mount_comes(self) -> None:
        self.stale |= {*self.busy}
        self._carry_out(self.assignments.renew())
        assert not self.idle

    @precondition(lambda self: self.retired)
    @rule(data=st.data())
    def a_retired_supervisor_ends(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(sorted(self.retired)))
        self.retired.remove(pid)
        assert self.assignments.died(pid) == []

    @precondition(lambda self: self.busy or self.idle)
    @rule(data=st.data(), fork=st.booleans())
    def a_supervisor_dies(self, data: st.DataObject, fork: bool) -> None:
        pid = data.draw(st.sampled_from(sorted({*self.busy, *self.idle})))
        self.idle.discard(pid)
        job = self.busy.pop(pid, None)
        decided = self.assignments.died(pid)
        self._carry_out(decided, fork)
        if job is not None and job.kind is FrameKind.REAP:
            assert [type(one) for one in decided] == [ReportLost]
        elif job is not None and job.name not in self.over:
            (reap,) = [frame for frame in self.busy.values() if frame.name == job.name]
            assert pickle.loads(reap.body) == (job.body, pid)
        with pytest.raises(AssertionError, match="not known"):
            self.assignments.died(pid)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        names = {frame.name: pid for pid, frame in self.busy.items()}
        name = data.draw(st.sampled_from(["", "nobody", *sorted(names)]))
        self.ends = []
        self._carry_out(self.assignments.order(Frame(FrameKind.END, name)))
        assert sorted(self.ends) == (sorted(self.busy) if not name else [names[name]] if name in names else [])

    @rule()
    def leave(self) -> None:
        staying = {pid: job for pid, job in self.busy.items() if not detachable(job)}
        left = len(staying) < len(self.busy) or any(map(detachable, self.launched.values()))
        self._carry_out(self.assignments.order(Frame(FrameKind.LEAVE)))
        assert self.busy == staying
        assert self.assignments.has_left >= left

    @rule()
    def close(self) -> None:
        self._carry_out(self.assignments.order(Frame(FrameKind.QUIT)))
        self.closing = True

    @precondition(lambda self: self.launched)
    @rule(data=st.data())
    def a_launched_job_is_over(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.launched)))
        del self.launched[name]
        self.assignments.launched_over(name)
        self.over.append(name)
        with pytest.raises(AssertionError, match="does not have"):
            self.assignments.launched_over(name)

    @rule(is_alone=st.booleans(), fork=st.booleans())
    def the_launcher_dies(self, is_alone: bool, fork: bool) -> None:
        expected = [job for job in self.launched.values() if not (is_alone and detachable(job))]
        self.over += [name for name, job in self.launched.items() if job not in expected]
        self.launched = {}
        assert self.assignments.launcher_died(is_alone=is_alone) == expected
        for job in expected:
            self._carry_out(self.assignments.reap(job, dead_pid=0), fork)

    @rule()
    def what_cannot_happen_is_an_error(self) -> None:
        with pytest.raises(AssertionError, match="was to be forked"):
            self.assignments.forked(1)
        with pytest.raises(AssertionError, match="got DONE"):
            self.assignments.order(Frame(FrameKind.DONE))
        for frame in self.busy.values():
            with pytest.raises(AssertionError, match="started twice"):
                self.assignments.reap(frame, 0)

    @invariant()
    def every_job_is_at_one_place(self) -> None:
        if hasattr(self, "assignments"):
            assert self.assignments.pids == {*self.idle, *self.busy, *self.retired}
            names = [*self.over, *self.launched, *(frame.name for frame in self.busy.values())]
            assert sorted(names) == sorted(f"job{number + 1}" for number in range(self.count))
            assert self.assignments.is_over == (self.closing and not self.busy and not self.launched)


TestAssigning = Assigning.TestCase


def test_a_spare_supervisor_is_forked_ahead_until_the_run_is_over() -> None:
    assignments = Assignments(detachable, keeps_spare=True)
    assert assignments.order(one := Frame(FrameKind.RUN, "one")) == [Fork()]
    assert assignments.forked(11) == [Pass(11, one), Fork()]
    assert assignments.fork_failed("no memory") == [], "nobody asked for it"
    assignments.ended(11, "one")
    assert assignments.order(two := Frame(FrameKind.RUN, "two")) == [Pass(11, two), Fork()]
    assert assignments.forked(12) == []
    assignments.order(Frame(FrameKind.QUIT))
    (reaping,) = assignments.died(11)
    assert isinstance(reaping, Pass)
    assert (reaping.pid, reaping.frame.kind) == (12, FrameKind.REAP)
    assert pickle.loads(reaping.frame.body) == (b"", 11)


def test_jobs_wait_in_their_order_while_no_supervisor_can_be_forked() -> None:
    assignments = Assignments(detachable, keeps_spare=True)
    one, two, three, four, five = (Frame(FrameKind.RUN, name) for name in ("one", "two", "three", "four", "five"))
    assert assignments.order(one) == [Fork()]
    assert assignments.forked(1) == [Pass(1, one), Fork()]
    assert assignments.fork_postponed() == []  # for a spare one: no job waits for it
    assert not assignments.waits
    assert assignments.order(two) == [Fork()]
    assert assignments.fork_postponed() == []
    assert assignments.order(three) == assignments.order(four) == assignments.order(five) == []  # no job overtakes
    assert assignments.waits
    assert assignments.has_busy
    assert assignments.try_again() == [Fork()]
    assert assignments.fork_postponed() == []
    assert assignments.order(Frame(FrameKind.END, "three")) == [Refuse("three", "the run is being ended")]
    assert assignments.ended(1, "one") == [Pass(1, two), Fork()]
    assert assignments.fork_postponed() == []
    assert assignments.died(1) == []  # its job is reaped, in its turn
    assert assignments.order(Frame(FrameKind.QUIT)) == []
    assert not assignments.is_over
    assert assignments.try_again() == [Fork()]
    assert assignments.forked(2) == [Pass(2, four)]
    assert assignments.try_again() == [Fork()]
    assert assignments.fork_failed("short") == [Refuse("five", "short")]
    assert assignments.try_again() == [Fork()]
    (reaping,) = assignments.forked(3)
    assert isinstance(reaping, Pass)
    assert (reaping.frame.kind, reaping.frame.name) == (FrameKind.REAP, "two")
    assert assignments.try_again() == []
    assert assignments.ended(2, "four") == assignments.ended(3, "two") == []
    assert assignments.is_over
