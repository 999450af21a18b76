"""Admission of jobs: laws that hold for every order of requests and releases, and the rules of this host."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snakemake_executor_plugin_forge.backends.local.admission import (
    Admission,
    FifoAllocator,
    GpuAdmission,
    Holding,
    beside,
    by_cores,
    by_memory,
)
from snakemake_executor_plugin_forge.spec.job import LaunchSpec

from .specs import spec

CAPACITY = (4, 1000)


class Allocation(RuleBasedStateMachine):
    """Checks a model of holders and waiting jobs after each step."""

    @initialize(strict=st.booleans())
    def begin(self, strict: bool) -> None:
        self.strict = strict  # every request binds and waits
        self.allocator = FifoAllocator(*CAPACITY)
        self.held: dict[str, Holding] = {}
        self.waiting: dict[str, Holding] = {}  # in the order of the requests
        self.jobs = 0

    def _binds(self) -> bool:
        return any(demand.binds for demand in (*self.held.values(), *self.waiting.values()))

    def _free(self) -> list[int]:
        sizes = [demand.size for demand in self.held.values()]
        return [most - sum(min(size[n], most) for size in sizes) for n, most in enumerate(CAPACITY)]

    def _granted(self, names: list[str]) -> None:
        for name in names:
            assert name == next(iter(self.waiting)), "overtaken"
            self.held[name] = self.waiting.pop(name)
            assert not self._binds() or min(self._free()) >= 0, "granted twice"

    @rule(cores=st.integers(1, 6), memory=st.integers(0, 1500), binds=st.booleans(), waits=st.booleans())
    def request(self, cores: int, memory: int, binds: bool, waits: bool) -> None:
        self.jobs += 1
        name = f"job{self.jobs}"
        demand = Holding((cores, memory), binds or self.strict, waits or self.strict)
        if not demand.waits:
            assert self.allocator.request(name, demand) == [name]
            self.held[name] = demand
            return
        self.waiting[name] = demand
        self._granted(self.allocator.request(name, demand))

    @precondition(lambda self: self.held or self.waiting)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*self.held, *self.waiting]))
        self._release(name)

    def _release(self, name: str) -> None:
        self.held.pop(name, None)
        self.waiting.pop(name, None)
        self._granted(self.allocator.release(name))

    @precondition(lambda self: self.held or self.waiting)
    @rule(data=st.data())
    def a_second_request_is_an_error(self, data: st.DataObject) -> None:
        with pytest.raises(AssertionError, match="second time"):
            self.allocator.request(data.draw(st.sampled_from([*self.held, *self.waiting])), Holding((1, 1)))

    @rule()
    def an_unknown_job_releases_nothing(self) -> None:
        assert self.allocator.release("nobody") == []

    @invariant()
    def no_job_waits_without_need(self) -> None:
        if getattr(self, "waiting", None):
            first = next(iter(self.waiting.values()))
            assert self._binds()
            assert any(min(part, most) > free for part, most, free in zip(first.size, CAPACITY, self._free(), strict=True))

    def teardown(self) -> None:
        """No deadlock, no starvation: when the holders end one after the other, every job gets its turn."""
        while getattr(self, "held", None):
            self._release(next(iter(self.held)))
        assert not getattr(self, "waiting", None)


TestAllocation = Allocation.TestCase


@pytest.mark.parametrize(
    ("admission", "holdings"),
    [
        (by_cores(2), [Holding((4,)), Holding((1,)), Holding((1,)), Holding((1,))]),
        (by_memory(100), [Holding((60,), binds=False), Holding((70,)), Holding((0,), False, False), Holding((5,), False, False)]),
        (beside(2, 100, {}), [Holding((4, 60), False), Holding((1, 70), False), Holding((1, 0), False),
                              Holding((1, 5), False, False)]),
    ],
)  # fmt: skip
def test_what_jobs_hold_on_this_host(admission: Admission, holdings: list[Holding]) -> None:
    jobs = [spec("big", 60, cpus=4), spec("again", 70, retry=1), spec("unlimited", None)]
    jobs.append(replace(spec("member", 5), together=True))
    assert [admission.holding(job) for job in jobs] == holdings


def test_jobs_of_an_earlier_run_hold_their_share_until_they_end() -> None:
    admission = beside(2, 100, {"run/1": (2, 10), "run/2": (1, 10)})
    for number in range(3):
        assert admission.request(spec(f"job{number}", 50)) == []
    assert admission.release("run/1") == ["job0"]
    assert admission.release("run/2") == ["job1", "job2"], "without other jobs no limit counts"


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
def test_no_gpu_has_two_jobs(steps: list[tuple[int, bool]]) -> None:
    nodes = tuple(f"/dev/nvidia{number}" for number in range(4))
    said: list[str] = []
    admission = GpuAdmission(nodes, said.append)
    jobs = [replace(spec(f"job{number}", None), gpu_count=count) for number, (count, _) in enumerate(steps)]
    waiting: dict[str, LaunchSpec] = {}
    running: dict[str, tuple[str, ...]] = {}
    for job, (count, end_one) in zip(jobs, steps, strict=True):
        waiting[job.name] = job
        names = admission.request(job)
        assert count or names == [job.name], "a job without GPUs does not wait"
        assert bool(said) >= (not names), "the user is told"
        if end_one and running:
            del running[name := next(iter(running))]
            names += admission.release(name)
        for name in names:
            running[name] = admission.equip(started := waiting.pop(name)).gpus
            assert len(running[name]) == started.gpu_count
        taken = [node for gpus in running.values() for node in gpus]
        assert len(taken) == len(set(taken))
    assert len(said) <= 1
