"""Many ready jobs: Forge with its own scheduler beside the local executor with Snakemake's.

The latter would take too long: they weigh all ready jobs for each job, so a run of n jobs takes c + a n + b n². Runs of
one job and of two larger numbers give c, a and b, and these give the time for as many jobs as Forge's run has.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from bench.process import Usage
from bench.settings import FORGE, LOCAL, Executor
from bench.timed import Metrics
from bench.workspace import Workspace

CORES = 8
FEW = 400  # jobs, with which a job among many is compared
WORKFLOWS = {"shell": 1, "chain": 3}  # jobs for each output
CHANGES = re.compile(r"^(?:Finished jobid: \d+ \(Rule: (first|second)\)|Removing temporary output )", re.MULTILINE)


@dataclass(frozen=True)
class Scheduling:
    """Independent trivial jobs, and chains of three with temporary files between them, with 8 jobs at a time."""

    jobs: int
    greedy: tuple[int, int]
    ilp: tuple[int, int]
    name: str = "schedule"

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Run Forge with all jobs, and Snakemake's schedulers with as many as they can do."""
        metrics: Metrics = {}
        for workflow, length in WORKFLOWS.items():
            if executor.name == FORGE:
                metrics |= self._forge(replace(executor, scheduler="forge"), workspace, workflow)
            elif executor.name == LOCAL:
                for scheduler in ("greedy", "ilp"):
                    numbers = tuple(number // length for number in getattr(self, scheduler))
                    metrics |= self._local(replace(executor, scheduler=scheduler), workspace, workflow, numbers)
        return metrics

    def _forge(self, executor: Executor, workspace: Workspace, workflow: str) -> Metrics:
        one, few, many = (_run(executor, workspace, workflow, number) for number in (1, FEW, self.jobs))
        growth = {
            kind: ((many[kind] - one[kind]) / (self.jobs - 1)) / ((few[kind] - one[kind]) / (FEW - 1))
            for kind in ("wall_s", "cpu_s")
        }
        return {
            **{f"{workflow}_{kind}": [value] for kind, value in many.items()},
            **{f"{workflow}_growth_{kind}": [value] for kind, value in growth.items()},
        }

    def _local(self, executor: Executor, workspace: Workspace, workflow: str, numbers: tuple[int, ...]) -> Metrics:
        one, few, many = (_run(executor, workspace, workflow, number) for number in (1, *numbers))
        times = {
            kind: extrapolated(one[kind], dict(zip(numbers, (few[kind], many[kind]), strict=True)), self.jobs)
            for kind in ("wall_s", "cpu_s")
        }
        measured = {f"{numbers[-1]}_{kind}": many[kind] for kind in times}
        found = {**times, **measured, "temporary": many["temporary"]}
        return {f"{workflow}_{executor.scheduler}_{kind}": [value] for kind, value in found.items()}


def _run(executor: Executor, workspace: Workspace, workflow: str, number: int) -> dict[str, float]:
    """Run a workflow in a new directory; return its times, and the most temporary files at a time."""
    directory = workspace.directory(workflow)
    usage: Usage = workspace.snakemake(executor, directory, number, number * WORKFLOWS[workflow] + 1, cores=CORES)
    return {"wall_s": usage.wall, "cpu_s": usage.cpu, "temporary": temporary_files(workspace.root / "output.log")}


def temporary_files(log: Path) -> float:
    """Return the most temporary files at a time, from Snakemake's messages about their jobs and their removal."""
    there = most = 0
    for change in CHANGES.finditer(log.read_text(errors="replace")):
        there += 1 if change[1] else -1
        most = max(most, there)
    return float(most)


def extrapolated(one: float, measured: dict[int, float], jobs: int) -> float:
    """Return the time of ``jobs`` by c + a n + b n², from the times of one job and of two numbers of jobs."""
    (n, first), (m, second) = ((number - 1, time - one) for number, time in measured.items())
    b = (second / m - first / n) / (m - n)
    a = first / n - b * n
    wanted = jobs - 1
    return one + a * wanted + b * wanted**2
