"""The scheduler that Snakemake makes: it keeps the ready jobs in order, and chooses from them in each round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snakemake_interface_scheduler_plugins.base import SchedulerBase

from .ready_jobs import ReadyJobs, Reward

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_STARTS = "_job_count"
"""Snakemake's name for the number of jobs that may still be started in the time span of --max-jobs-per-timespan."""


class Scheduler(SchedulerBase):  # type: ignore[misc]
    """Chooses as Snakemake's ``greedy`` does: always the job with the highest reward of those that fit."""

    def __post_init__(self) -> None:
        self._ready = ReadyJobs()
        self._present: set[Any] | None = None
        self._temporary: set[Any] = set()  # outputs of the producers that have been looked at
        self._producers: set[Any] = set()

    def select_jobs(
        self,
        selectable_jobs: Iterable[Any],
        remaining_jobs: Sequence[Any],
        available_resources: Mapping[str, int | str],
        input_sizes: Mapping[Any, int | None],
    ) -> list[Any]:
        """Choose the jobs to start now.

        Args:
            selectable_jobs: all ready jobs; once :func:`follow` has succeeded, those that have become ready since.
        """
        del remaining_jobs
        free = {name: number for name, number in available_resources.items() if isinstance(number, int)}
        starts = free.pop(_STARTS, None)
        if self._present is None:
            self._ready.clear()
        jobs = list(selectable_jobs)
        for job in jobs:
            needs = job.scheduler_resources
            self._ready.add(job, [needs.get(name, 0) for name in free], self.reward(job, input_sizes))
        present = set(jobs) if self._present is None else self._present
        chosen = self._ready.choose(list(free.values()), starts, present)
        if self._present is None:
            from .snakemake_internals import follow

            self._present = follow(self.dag)
        return chosen

    def reward(self, job: Any, input_sizes: Mapping[Any, int | None]) -> Reward:
        """The worth of a job: priority, then bytes of temporary inputs, then bytes of all inputs.

        The flag of a temporary file is on the output of its producer. ``greedy`` looks for it on the input only, where
        it is not, unless a rule has temp() in its ``input:``.
        """
        for member in _members(job):
            for producer in self.dag.job_dependencies(member):
                if producer not in self._producers:
                    self._producers.add(producer)
                    self._temporary.update(file for file in producer.output if file.is_flagged("temp"))
        sizes = [(input_sizes.get(file) or 0, file) for file in job.input]
        temporary = sum(size for size, file in sizes if file in self._temporary or file.is_flagged("temp"))
        return job.priority, temporary, sum(size for size, _ in sizes)


def _members(job: Any) -> Iterable[Any]:
    """The jobs of a group, and any other job itself. By the interface ``jobs`` is a method, in Snakemake a property."""
    jobs = getattr(job, "jobs", (job,))
    return jobs() if callable(jobs) else jobs
