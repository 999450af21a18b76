"""The local backend's decisions: laws that hold for every order of events; no process is started."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from snakemake_executor_plugin_forge.backends.local.jobs import Instruction, LocalJob, LocalJobs, Send, Tell, TellLost
from snakemake_executor_plugin_forge.record.attempt_dir import JobDirectory, write_verdict
from snakemake_executor_plugin_forge.spec.verdict import Cause, EndedBy, Order, Outcome, Usage, Verdict
from snakemake_executor_plugin_forge.supervisor.reaper import unheard_of
from snakemake_executor_plugin_forge.workers.channel import FrameKind

from .specs import spec

VERDICT = Verdict(Outcome.FAILED, "exit code 3", 3, None, Usage(), "", 1.0)
ORDER = Order(EndedBy.USER, "Ctrl-C")


def job(name: str, *, detachable: bool = False, is_command: bool = False) -> LocalJob:
    return LocalJob(replace(spec(name, None), detachable=detachable), b"payload", lambda _: None, is_command)


class Local(RuleBasedStateMachine):
    """Jobs come, end and are cancelled, the nursery dies; a model of what each job was told is checked."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs = LocalJobs()
        self.running: dict[str, LocalJob] = {}  # in the nursery
        self.over: set[str] = set()  # told, or left
        self.count = 0
        self.dead = self.closed = False

    def _carry_out(self, instructions: list[Instruction]) -> list[tuple[FrameKind, str]]:
        """Carry out what was decided; returns what was sent."""
        sent = []
        for instruction in instructions:
            match instruction:
                case Send(frame):
                    assert not self.dead
                    sent.append((frame.kind, frame.name))
                case Tell(one, _) | TellLost(one, _, _):
                    name = one.spec.name
                    assert name not in self.over, "told twice"
                    assert self.jobs.ended(name, VERDICT) == [], "its verdict comes again while it is told"
                    self.over.add(name)
                    self.running.pop(name, None)
                    self.jobs.told(name)
        return sent

    @precondition(lambda self: not self.closed)
    @rule(leaves=st.booleans(), is_command=st.booleans())
    def submit(self, leaves: bool, is_command: bool) -> None:
        self.count += 1
        made = job(f"job{self.count}", detachable=leaves, is_command=is_command)
        if not self.dead:
            self.running[made.spec.name] = made
        sent = self._carry_out(self.jobs.submitted(made))
        assert sent == ([] if self.dead else [(FrameKind.RENDER if is_command else FrameKind.RUN, made.spec.name)])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), refused=st.booleans())
    def end(self, data: st.DataObject, refused: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self._carry_out(self.jobs.refused(name, "no") if refused else self.jobs.ended(name, VERDICT))
        assert name in self.over

    @precondition(lambda self: self.running)
    @rule()
    def interrupt(self) -> None:
        name = next(reversed(self.running))
        del self.running[name]
        self.over.add(name)
        assert self.jobs.interrupted(name) == []
        assert self.jobs.ended(name, VERDICT) == [], "the nursery had got it"

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def a_verdict_that_comes_again_is_ignored(self, data: st.DataObject) -> None:
        assert self.jobs.ended(data.draw(st.sampled_from(sorted(self.over))), VERDICT) == []

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(["", "nobody", *self.running]))
        assert self._carry_out(self.jobs.cancelled(name, ORDER)) == ([] if self.dead else [(FrameKind.END, name)])

    @precondition(lambda self: not self.dead)
    @rule()
    def leave(self) -> None:
        leaving = {name for name, one in self.running.items() if one.spec.detachable}
        self.over |= leaving
        self.running = {name: one for name, one in self.running.items() if name not in leaving}
        ends = [(FrameKind.END, name) for name in self.running]
        assert self._carry_out(self.jobs.left(ORDER)) == [*ends, (FrameKind.LEAVE, "")]

    @precondition(lambda self: not self.dead)
    @rule()
    def die(self) -> None:
        with pytest.raises(AssertionError, match="still lives"):
            self.jobs.silent(1)
        self.jobs.died("killed")
        self.dead = True
        with pytest.raises(AssertionError, match="twice"):
            self.jobs.died("killed")

    @precondition(lambda self: self.dead)
    @rule()
    def nothing_more_is_heard(self) -> None:
        self._carry_out(self.jobs.silent(1))
        assert not self.running

    @rule()
    def close(self) -> None:
        self.closed = True
        assert self._carry_out(self.jobs.closed()) == ([] if self.dead else [(FrameKind.QUIT, "")])
        with pytest.raises(AssertionError, match="after the end"):
            self.jobs.submitted(job("late"))

    @invariant()
    def each_job_is_at_one_place(self) -> None:
        assert len(self.jobs) == len(self.running)
        assert self.over.isdisjoint(self.running)
        assert self.over | self.running.keys() == {f"job{n + 1}" for n in range(self.count)}


TestLocal = Local.TestCase


def test_why_jobs_ended_is_said() -> None:
    jobs = LocalJobs()
    first, second, late = job("first"), job("second"), job("late")
    for one in (first, second):
        jobs.submitted(one)
    with pytest.raises(AssertionError, match="twice"):
        jobs.submitted(job("first"))
    jobs.died("killed")
    (told,) = jobs.ended("first", VERDICT)
    assert isinstance(told, Tell)
    assert told.verdict.reason == "exit code 3 (killed)"
    assert jobs.silent(2) == [TellLost(second, Cause.NURSERY_KILLED, "killed; its job ended 2.0 s later")]
    assert jobs.submitted(late) == [TellLost(late, Cause.NURSERY_KILLED, "killed; nothing of it was run")]


def test_a_job_of_which_nothing_is_heard_is_recorded_as_lost_unless_its_end_is_on_record(tmp_path: Path) -> None:
    one = replace(spec("00001-call", None), job_dir=str(tmp_path / "00001-call"))
    JobDirectory(one).close()  # and then all of Forge's processes were killed
    told = unheard_of(one, Cause.NURSERY_KILLED, "killed")
    assert (told.outcome, told.reason) == (Outcome.LOST, "lost: killed")
    assert json.loads((tmp_path / "00001-call/verdict.json").read_text())["rule"] == one.rule
    write_verdict(one, VERDICT)
    assert unheard_of(one, Cause.NURSERY_KILLED, "killed").reason == VERDICT.reason
