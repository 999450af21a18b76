"""The scheduler's choices: those of Snakemake's greedy as long as no big job is held, and no big job waits forever."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
import snakemake.cli  # noqa: F401 - its modules import each other, and only from here on they can be
from hypothesis import given
from hypothesis import strategies as st
from snakemake.scheduling import greedy
from snakemake_interface_scheduler_plugins.tests import TestSchedulerBase

from snakemake_scheduler_plugin_forge import Scheduler, ready_jobs
from snakemake_scheduler_plugin_forge.ready_jobs import PATIENCE, ReadyJobs
from snakemake_scheduler_plugin_forge.snakemake_internals import Arrivals

NAMES = ("_cores", "mem_mb", "tokens")
TOTAL = (4, 1000, 2)


@dataclass(frozen=True)
class File:
    name: str
    temp: bool

    def is_flagged(self, flag: str) -> bool:
        return flag == "temp" and self.temp


@dataclass(eq=False)
class Job:
    needs: tuple[int, ...]
    priority: int = 0
    input: tuple[File, ...] = ()
    after: set[Job] = field(default_factory=set)
    failures: int = 0

    @property
    def scheduler_resources(self) -> dict[str, int]:
        return dict(zip(NAMES, self.needs, strict=True)) | {"_job_count": 1}


class Dag:
    """A DAG whose jobs have no producers."""

    @staticmethod
    def job_dependencies(job: Job) -> list[Job]:
        return []


def _scheduler() -> Any:
    return Scheduler(Dag(), None, logging.getLogger())


class TestByTheInterface(TestSchedulerBase):  # type: ignore[misc]  # it has no types
    __test__ = True

    def get_scheduler_cls(self) -> Any:
        return Scheduler

    def get_scheduler_settings(self) -> None:
        return None


needs = st.one_of(
    st.tuples(st.integers(0, 4), st.sampled_from((0, 100, 900)), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(0, 1000), st.just(0)),
)
files = st.tuples(st.builds(File, st.sampled_from("abcdef"), st.just(True)), st.builds(File, st.sampled_from("ghijkl"), st.just(False)))
jobs = st.lists(st.builds(Job, needs, st.integers(0, 2), files, failures=st.integers(0, 1)), min_size=1, max_size=40)
sizes = st.fixed_dictionaries({File(name, name < "g"): st.one_of(st.none(), st.integers(0, 5)) for name in "abcdefghijkl"})


def _greedys(ready: list[Job], free: tuple[int, ...], starts: int, known: dict[File, int | None]) -> list[Job]:
    chooser = greedy.Scheduler(None, greedy.SchedulerSettings(), logging.getLogger())
    resources = dict(zip(NAMES, free, strict=True)) | {"_job_count": starts}
    return list(chooser.select_jobs(ready, ready, resources, known))


@given(jobs, st.tuples(*(st.integers(0, most) for most in TOTAL)), st.integers(0, 6), sizes)
def test_a_round_with_all_jobs_chooses_as_greedy_does(ready: list[Job], free: tuple[int, ...], starts: int, known: dict[File, int | None]) -> None:
    scheduler = _scheduler()
    resources: Any = dict(zip(NAMES, free, strict=True)) | {"_job_count": starts, "a string": "x"}
    for _ in range(2):  # without a Snakemake to follow, each round has all jobs
        assert set(scheduler.select_jobs(ready, ready, resources, known)) == set(_greedys(ready, free, starts, known))


@given(jobs, sizes, st.randoms(use_true_random=True), st.sampled_from((1, 20)))
def test_a_run_of_a_dag_never_chooses_worse_than_greedy_and_ends(made: list[Job], known: dict[File, int | None], random: Random, patience: int) -> None:
    """Jobs fail and come again, leave the DAG and come back with another priority; several end between two rounds."""
    for number, job in enumerate(made):
        job.after = set(random.sample(made[:number], min(number, random.randint(0, 2))))
    kept, weigh = ReadyJobs(), _scheduler().reward
    arrivals, waiting, running, ended = Arrivals(), list(made), list[Job](), set[Job]()
    away = list[Job]()
    free = list(TOTAL)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ready_jobs, "PATIENCE", patience)
        patched.setattr(ready_jobs, "_LOOK", patience)
        while len(ended) < len(made):
            arrivals.update([job for job in waiting if job.after <= ended])
            waiting = [job for job in waiting if job not in arrivals]
            for job in arrivals.take():
                kept.add(job, job.needs, weigh(job, known))
            starts = random.randint(0, 5)
            held = kept._held.first(kept._valid(arrivals)) if kept._held else None
            best = _greedys(sorted(arrivals, key=lambda job: kept._keys[job]), tuple(free), starts, known)
            chosen = kept.choose(free, starts, arrivals)
            assert len(chosen) == len(set(chosen)) <= starts
            assert set(chosen) <= arrivals
            if held is None:
                assert set(chosen) == set(best)
            else:
                urgent = {job for job in best if -job.priority < held[0]}
                assert urgent <= set(chosen)
            free = [rest - sum(job.needs[n] for job in chosen) for n, rest in enumerate(free)]
            assert min(free) >= 0
            arrivals -= set(chosen)
            running += chosen
            assert running or not starts or away, "nothing runs, and nothing is started"
            waiting, away = [*waiting, *away], []
            running = _end_some(random, running, free, ended, arrivals)
            if arrivals and random.random() < 0.5:  # as when Snakemake has replaced a part of the DAG
                job = random.choice(sorted(arrivals, key=made.index))
                arrivals.remove(job)
                job.priority = random.randint(0, 2)
                away.append(job)


def _end_some(random: Random, running: list[Job], free: list[int], ended: set[Job], arrivals: Arrivals) -> list[Job]:
    """End some jobs; one that fails is ready again."""
    if not running:
        return []
    for job in random.sample(running, random.randint(1, len(running))):
        free[:] = [rest + need for rest, need in zip(free, job.needs, strict=True)]
        running = [other for other in running if other is not job]
        if job.failures:
            job.failures -= 1
            arrivals.add(job)
        else:
            ended.add(job)
    return running


@pytest.mark.parametrize("priority", [0, 1])
def test_a_big_job_does_not_wait_for_an_endless_row_of_small_ones_unless_they_are_more_urgent(priority: int) -> None:
    big, kept = Job((4, 0, 0)), ReadyJobs()
    ready = {big} | {Job((1, 0, 0), priority) for _ in range(4)}
    for job in ready:
        kept.add(job, job.needs, (job.priority, 0, 0 if job is big else 1))  # greedy would always take a small one
    running, free, started = list[Job](), 4, 0
    while big not in running and started < 4 * PATIENCE * 4:
        chosen = kept.choose([free, 1000, 2], None, ready)
        ready -= set(chosen)
        running += chosen
        started += len(chosen)
        free -= sum(job.needs[0] for job in chosen)
        if big not in running:
            free += running.pop(0).needs[0]
            small = Job((1, 0, 0), priority)
            ready.add(small)
            kept.add(small, small.needs, (priority, 0, 1))
    assert (big in running) == (priority == 0)
    assert started < 2 * PATIENCE * 4 or priority


@pytest.mark.parametrize("shapes", [5, 1000])
def test_the_work_of_a_round_does_not_grow_with_the_number_of_ready_jobs(shapes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One core is free in each round; with many shapes, a part of the jobs lacks memory."""
    work = {}
    for number in (2000, 8000):
        kept, count = ReadyJobs(), [0]

        def counted(call: Any, count: list[int] = count) -> Any:
            return lambda *arguments: (count.__setitem__(0, count[0] + 1), call(*arguments))[1]

        ready = [Job((1, 1000 + n % shapes, 0)) for n in range(number)]
        for job in ready:
            kept.add(job, job.needs, (0, 0, 0))
        present = set(ready)
        with monkeypatch.context() as patched:
            for name in ("_fit", "heappop", "heappush"):
                patched.setattr(ready_jobs, name, counted(getattr(ready_jobs, name)))
            for _ in range(1000):
                assert len(kept.choose([1, 1000 + 4 * shapes // 5, 0], None, present)) == 1
        work[number] = count[0]
    assert work[8000] < 1.1 * work[2000]
