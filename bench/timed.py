"""The cases that time whole runs: trivial jobs of three kinds, one heavy job, and a large DAG."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.process import Usage
from bench.settings import Executor
from bench.workspace import Workspace, remove_outputs

Metrics = dict[str, list[float]]


class Case(Protocol):
    """One thing to measure; each call of ``measure`` adds the samples of one round."""

    @property
    def name(self) -> str:
        """The name on the command line and in the results."""

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Measure one round with one executor."""


@dataclass(frozen=True)
class Trivial:
    """Many jobs that do next to nothing, in a fresh working directory every time.

    A run of one job in the same directory follows the run of all jobs: the difference is the cost of the
    other jobs, without the start of Snakemake and of the executor.
    """

    name: str
    jobs: int

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Run all jobs and then a single one."""
        jobs = executor.jobs(self.jobs)
        directory = workspace.directory(self.name)
        full = workspace.snakemake(executor, directory, jobs, steps=jobs + 1)
        remove_outputs(directory, total=jobs, count=1)
        single = workspace.snakemake(executor, directory, jobs, steps=2)
        return _pair_metrics(full, single, jobs)


@dataclass(frozen=True)
class Heavy:
    """One job with real work to do: the cost of containment for a process that computes and writes."""

    name: str = "heavy"

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Run the job once on the prepared data."""
        directory = workspace.directory(self.name)
        os.link(workspace.heavy_data(), directory / "data.txt")
        return _usage_metrics(workspace.snakemake(executor, directory, jobs=1, steps=2), jobs=1)


@dataclass(frozen=True)
class LargeDag:
    """A DAG with a small part to run: whether its size makes each job more expensive.

    Every executor has a directory of its own, made once and kept over the rounds; before each run some outputs
    are removed. The baseline is a run of one job of the same DAG, not a run with nothing to do: Snakemake
    itself spends seconds on ten thousand jobs as soon as any of them has to run, whatever the executor.
    """

    jobs: int
    run: int
    name: str = "dag"
    _directories: dict[str, Path] = field(default_factory=dict)

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Run the missing jobs and then a single one."""
        if executor.name not in self._directories:
            self._directories[executor.name] = workspace.up_to_date(self.jobs)
        directory = self._directories[executor.name]
        remove_outputs(directory, self.jobs, self.run)
        full = workspace.snakemake(executor, directory, self.jobs, steps=self.run + 1)
        remove_outputs(directory, self.jobs, count=1)
        single = workspace.snakemake(executor, directory, self.jobs, steps=2)
        return _pair_metrics(full, single, self.run)


def _usage_metrics(usage: Usage, jobs: int) -> Metrics:
    return {
        "jobs": [float(jobs)],
        "wall_s": [usage.wall],
        "user_s": [usage.user],
        "system_s": [usage.system],
        "cpu_s": [usage.cpu],
        "left_running": [float(usage.left_running)],
    }


def _pair_metrics(full: Usage, single: Usage, jobs: int) -> Metrics:
    """Return the metrics of a run of ``jobs`` jobs and the run of a single one after it."""
    return {
        **_usage_metrics(full, jobs),
        "single_wall_s": [single.wall],
        "single_cpu_s": [single.cpu],
        "job_wall_ms": [1000 * (full.wall - single.wall) / (jobs - 1)],
        "job_cpu_ms": [1000 * (full.cpu - single.cpu) / (jobs - 1)],
    }
