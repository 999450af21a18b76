"""Who is let in: laws that hold for every order of asking, ending and giving up."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snakemake_executor_plugin_forge.backends.rooms import Beside, Cores, Memory
from snakemake_executor_plugin_forge.model import LaunchSpec

from .specs import spec

CAPACITY = 1000


class Rationing(RuleBasedStateMachine):
    """Jobs ask for memory, end and give up; a model of who is where is checked after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.room = Memory(CAPACITY)
        self.inside: dict[str, LaunchSpec] = {}
        self.waiting: dict[str, LaunchSpec] = {}  # in the order of asking
        self.jobs = 0

    def _admitted(self, names: list[str]) -> None:
        for name in names:
            asked = self.waiting.pop(name)
            self.inside[name] = asked
            self._check_sum(asked)

    def _check_sum(self, newest: LaunchSpec) -> None:
        """While a raised job runs or waits, nobody is let in beyond what there is."""
        raised = any(job.retry for job in (*self.inside.values(), *self.waiting.values()))
        if raised and not newest.together and newest.limits.memory_bytes:
            assert sum(min(job.limits.memory_bytes or 0, CAPACITY) for job in self.inside.values()) <= CAPACITY

    @rule(memory=st.one_of(st.none(), st.integers(1, 2 * CAPACITY)), raised=st.booleans(), together=st.booleans())
    def ask(self, memory: int | None, raised: bool, together: bool) -> None:
        self.jobs += 1
        job = spec(f"job{self.jobs}", memory, retry=int(raised and memory is not None and not together))
        job = replace(job, together=together)
        before = list(self.waiting)
        self.waiting[job.name] = job
        names = self.room.ask(job)
        assert names in ([], [job.name]), "nobody ends by this, so nobody else gets in"
        if names and before:
            assert job.together or not job.limits.memory_bytes, "overtaken"
        self._admitted(names)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.inside)))
        del self.inside[name]
        self._release(name)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[name]
        self._release(name)

    def _release(self, name: str) -> None:
        order = list(self.waiting)
        names = self.room.release(name)
        assert names == order[: len(names)], "in their order"
        self._admitted(names)

    @rule()
    def end_of_a_job_that_is_not_known(self) -> None:
        assert self.room.release("nobody") == []

    @invariant()
    def nobody_waits_without_need(self) -> None:
        raised = any(job.retry for job in (*self.inside.values(), *self.waiting.values()))
        assert raised or not self.waiting
        if self.waiting:
            first = next(iter(self.waiting.values()))
            held = sum(min(job.limits.memory_bytes or 0, CAPACITY) for job in self.inside.values())
            assert held + min(first.limits.memory_bytes or 0, CAPACITY) > CAPACITY

    @invariant()
    def what_cannot_be_waited_for_never_waits(self) -> None:
        assert not any(job.together or job.limits.memory_bytes is None for job in self.waiting.values())

    def teardown(self) -> None:
        """No deadlock, no starvation: when those that run end one after the other, all get their turn."""
        while self.inside:
            name = next(iter(self.inside))
            del self.inside[name]
            self._release(name)
        assert not self.waiting


TestRationing = Rationing.TestCase


@given(st.integers(1, 8), st.lists(st.tuples(st.integers(1, 16), st.booleans()), max_size=30))
def test_cores_are_never_given_twice_and_everybody_gets_a_turn(cores: int, steps: list[tuple[int, bool]]) -> None:
    room = Cores(cores)
    running: dict[str, int] = {}
    waiting: list[LaunchSpec] = []
    for number, (threads, end_one) in enumerate(steps):
        job = spec(f"job{number}", None, cpus=threads)
        waiting.append(job)
        names = room.ask(job)
        if end_one and running:
            name = next(iter(running))
            del running[name]
            names += room.release(name)
        for name in names:
            assert name == waiting[0].name
            running[name] = min(waiting.pop(0).limits.cpus, cores)
        assert sum(running.values()) <= cores
    while running:
        name = next(iter(running))
        del running[name]
        for following in room.release(name):
            running[following] = min(waiting.pop(0).limits.cpus, cores)
    assert not waiting


class BesideOthers(RuleBasedStateMachine):
    """Jobs ask, end and give up, while jobs of an earlier run hold cores and memory and end one by one."""

    @initialize(others=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 600)), max_size=4))
    def begin(self, others: list[tuple[int, int]]) -> None:
        self.others = {f"run/{n}": other for n, other in enumerate(others)}
        self.room = Beside(4, CAPACITY, self.others)
        self.inside: dict[str, LaunchSpec] = {}
        self.waiting: dict[str, LaunchSpec] = {}
        self.jobs = 0

    def _admitted(self, names: list[str]) -> None:
        for name in names:
            assert name in self.waiting
            self.inside[name] = self.waiting.pop(name)

    @rule(cpus=st.integers(1, 6), memory=st.none() | st.integers(1, 1500), together=st.booleans())
    def ask(self, cpus: int, memory: int | None, together: bool) -> None:
        self.jobs += 1
        job = replace(spec(f"job{self.jobs}", memory, cpus=cpus), together=together)
        self.waiting[job.name] = job
        self._admitted(self.room.ask(job))
        assert not together or job.name in self.inside

    @precondition(lambda self: self.inside or self.waiting)
    @rule(data=st.data())
    def end_or_give_up(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*self.inside, *self.waiting]))
        self.inside.pop(name, None)
        self.waiting.pop(name, None)
        self._admitted(self.room.release(name))

    @precondition(lambda self: self.others)
    @rule(data=st.data())
    def other_ends(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*self.others]))
        del self.others[name]
        self._admitted(self.room.release(name))

    @invariant()
    def nobody_waits_without_a_reason(self) -> None:
        """Who waits first would be too much; without others nobody waits."""
        if not hasattr(self, "room"):
            return
        assert self.others or not self.waiting
        if self.waiting:
            first = next(iter(self.waiting.values()))
            all_of_them = [*self.inside.values(), first]
            cores = sum(n for n, _ in self.others.values()) + sum(min(j.limits.cpus, 4) for j in all_of_them)
            memory = sum(m for _, m in self.others.values()) + sum(
                min(j.limits.memory_bytes or 0, CAPACITY) for j in all_of_them)
            assert cores > 4 or memory > CAPACITY


TestBesideOthers = BesideOthers.TestCase
