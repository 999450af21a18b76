"""Parts of Snakemake's scheduler that Forge uses although Snakemake does not document them.

Read from the sources of Snakemake 9.0.0 to 9.27.1; a Snakemake without one of them is left as it is.

====================================================  ===============================================================
part                                                  what it is for
====================================================  ===============================================================
``Workflow.scheduler``, ``DAG._ready_jobs``,          tell the scheduler plugin what has become ready, instead of all
``JobScheduler.open_jobs``, ``.job_selector``,        that is ready in each round
``.remaining_jobs``, ``.resources``
``Job.is_pipe_or_service_input``,                     prepare a job with 10,000 inputs in a time that does not grow
``.pipe_or_service_output``, ``DAG.dependencies``     with the square of their number
``JobScheduler._handle_error``, ``DAG._running``,     restart a job that failed before a checkpoint ended; reckon
``AbstractJob._scheduler_resources``                  with the resources of the new attempt
``JobScheduler._schedule_reevalutation`` (sic),       look for jobs no more often than something can have changed
``JobScheduler.job_rate_limiter``
``DAG.has_unfinished_queue_input_jobs``
``JobScheduler.job_selector``                         measure how long choosing takes
====================================================  ===============================================================
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any

_SHARE = 0.1  # of the time span: two rounds that are nearer to each other become one


class Arrivals(set[Any]):
    """The ready jobs of a DAG, which remember what has been added. Only these two methods of a set add to it there."""

    def __init__(self, jobs: Iterable[Any] = ()) -> None:
        super().__init__(jobs)
        self._added: list[Any] = []

    def add(self, job: Any) -> None:
        """Add a job, and remember it."""
        if job not in self:
            super().add(job)
            self._added.append(job)

    def update(self, *others: Iterable[Any]) -> None:
        """Add jobs, and remember them."""
        for jobs in others:
            for job in jobs:
                self.add(job)

    def some(self) -> list[Any]:
        """Return the added jobs; if there are none, any job: Snakemake only wants to know whether there is one."""
        return [job for job in self._added if job in self] or list(islice(self, 1))

    def take(self) -> list[Any]:
        """Return the jobs that were added since the last call."""
        added, self._added = list(dict.fromkeys(job for job in self._added if job in self)), []
        return added


def follow(dag: Any) -> Arrivals | None:
    """Have Snakemake's scheduler pass to its plugin what has become ready, and no more, from the next round on.

    It would weigh all ready jobs, look up the sizes of all their inputs, and list all jobs of the DAG in each round.

    Returns:
        The ready jobs of the DAG, as they will be; None if nothing has changed.
    """
    scheduler = getattr(getattr(dag, "workflow", None), "scheduler", None)
    wanted = ("open_jobs", "job_selector", "remaining_jobs")
    if not all(hasattr(type(scheduler), name) for name in wanted) or type(getattr(dag, "_ready_jobs", None)) is not set:
        return None
    mend(scheduler)
    dag._ready_jobs = arrivals = Arrivals(dag._ready_jobs)
    scheduler.__class__ = _following(type(scheduler), arrivals)
    return arrivals


def _following(base: Any, arrivals: Arrivals) -> Any:
    """Make a class of schedulers that know what has become ready since the last round."""

    class FollowingScheduler(base):  # type: ignore[misc]
        @property
        def open_jobs(self) -> list[Any]:
            """The ready jobs, to Snakemake: of which it resets parameters and resources."""
            return arrivals.some()

        @property
        def remaining_jobs(self) -> Sequence[Any]:
            """All jobs that have to run: while there are ready jobs, only plugins want them."""
            return () if arrivals else super().remaining_jobs

        def job_selector(self, jobs: Any) -> Any:
            """Validate the new jobs, look up the sizes of their inputs, and have the plugin choose."""
            del jobs
            limiter = self.job_rate_limiter
            chooses = self.resources["_cores"] != 0 and (limiter is None or limiter.get_free_jobs() > 0)
            chosen = super().job_selector(arrivals.take() if chooses else [])
            for job in chosen:
                for member in job.jobs if job.is_group() else (job,):
                    _note_pipes(self.workflow.dag, member)
            return chosen

    return FollowingScheduler


_MANY = 100  # producers


def _note_pipes(dag: Any, job: Any) -> None:
    """Find out once which inputs are pipes: Snakemake looks for the producer of each among the producers of all."""
    producers = dag.dependencies[job]
    if len(producers) > _MANY:
        pipes = {file for job_, files in producers.items() for file in files if file in job_.pipe_or_service_output}
        job.is_pipe_or_service_input = pipes.__contains__


def mend(scheduler: Any) -> None:
    """Spare a scheduler rounds in which nothing can have changed, and have it lose no job that is to be restarted."""
    make_sparse(scheduler)
    keep_restarts(scheduler)


def keep_restarts(scheduler: Any) -> None:
    """Have the DAG know that a job that is to be restarted does not run, and the scheduler what it needs now.

    When a checkpoint has ended, the DAG finds its ready jobs again, and leaves out those that it takes to be running:
    such a job would never be restarted (snakemake#823, "Out of jobs ready to be started, but not all files built yet").
    And of a job whose ``mem_mb`` depends on the attempt, Snakemake would always reckon with what the first one needed.
    """
    handle = getattr(scheduler, "_handle_error", None)
    dag = scheduler.workflow.dag
    if handle is None or not hasattr(dag, "_running") or "_handle_error" in vars(scheduler):
        return

    def handle_error(job: Any, *arguments: Any, **options: Any) -> None:
        handle(job, *arguments, **options)
        if job in dag.ready_jobs:
            dag._running.discard(job)
            if hasattr(job, "_scheduler_resources"):
                job._scheduler_resources = None

    scheduler._handle_error = handle_error


def make_sparse(scheduler: Any) -> None:
    """Have a scheduler look again only if the limit of jobs kept it from starting more: nothing else changes with time.

    Whether it did is known when jobs are chosen; once they have been started, their time span may be over. The end of a
    job, the only other change, makes the scheduler look by itself; but who waits for ``from_queue()`` looks in vain
    until something is in the queue, after a time that may be as long as that span.
    """
    limiter = getattr(scheduler, "job_rate_limiter", None)
    look_again = getattr(scheduler, "_schedule_reevalutation", None)
    if limiter is None or look_again is None or "_schedule_reevalutation" in vars(scheduler):
        return
    waits_for_queue = scheduler.workflow.dag.has_unfinished_queue_input_jobs
    free_jobs, register = limiter.get_free_jobs, limiter.register_jobs
    left: int = free_jobs()  # how many more the limit would have let start when jobs were chosen
    due = 0.0

    def get_free_jobs() -> int:
        nonlocal left
        left = free_jobs()
        return left

    def register_jobs(number: int) -> None:
        nonlocal left
        left -= number
        register(number)

    def look_again_if_necessary(delay: float) -> None:
        nonlocal due
        if delay == limiter.timespan and not waits_for_queue():
            wanted = time.monotonic() + delay
            if left > 0 or wanted - due < delay * _SHARE:
                return
            due = wanted
        look_again(delay)

    limiter.get_free_jobs, limiter.register_jobs = get_free_jobs, register_jobs
    scheduler._schedule_reevalutation = look_again_if_necessary


class ChoosingTime:
    """The time that a scheduler takes, while nothing else happens in Snakemake. Made when the first jobs start."""

    def __init__(self, scheduler: Any) -> None:
        self._begin = time.monotonic()
        self.seconds = 0.0
        if hasattr(type(scheduler), "job_selector"):
            scheduler.job_selector = partial(self._choose, scheduler)

    def _choose(self, scheduler: Any, jobs: Any) -> Any:
        begin = time.monotonic()
        try:
            return type(scheduler).job_selector(scheduler, jobs)
        finally:
            self.seconds += time.monotonic() - begin

    def since_first(self) -> float:
        """Seconds since the first jobs."""
        return time.monotonic() - self._begin
