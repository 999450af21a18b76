"""Costs that grow unseen: thousands of finished jobs before a resume, thousands of files beside a job."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench.process import Usage
from bench.settings import FORGE, Executor
from bench.timed import Metrics
from bench.workspace import Workspace, remove_outputs
from snakemake_executor_plugin_forge.spec.job import RunContext
from tests.records import Made, write_attempt

FILE_BYTES = 1_000_000


@dataclass(frozen=True)
class Finished:
    """A run whose Snakemake was killed when all jobs were done: `resume` beside the same command by hand."""

    jobs: int
    name: str = "finished"
    _made: dict[str, Path] = field(default_factory=dict)

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Make the directory once, then measure both ways."""
        if executor.name != FORGE:
            return {}
        if FORGE not in self._made:
            self._made[FORGE] = self._make(executor, workspace)
        directory = self._made[FORGE]
        plain = workspace.start(executor, directory, workspace.settings.cores, [f"jobs={self.jobs}"])
        rerun = plain.finish(workspace.settings.timeout)
        self._interrupt(directory)
        argv = [sys.executable, "-P", "-m", "snakemake_executor_plugin_forge.cli.main", "resume"]
        resumed = workspace.command(argv, directory).finish(workspace.settings.timeout)
        return {
            "rerun_s": [rerun.wall],
            "resume_s": [resumed.wall],
            "resume_to_rerun": [resumed.wall / rerun.wall],
            "resume_to_rerun_cpu": [resumed.cpu / rerun.cpu],
        }

    def _make(self, executor: Executor, workspace: Workspace) -> Path:
        """Make the outputs with their metadata, and a run of Forge with a record of each."""
        directory = workspace.up_to_date(self.jobs)
        remove_outputs(directory, self.jobs, count=1)
        workspace.snakemake(executor, directory, self.jobs, steps=2)
        run = _run_directory(directory)
        context = RunContext(run.name, str(directory), str(directory / ".snakemake/forge"), ())
        for number in range(2, self.jobs + 1):
            made = Made(rule="one", wildcards={"i": str(number)}, outputs=(f"out/{number}.txt",), inputs=("in.txt",))
            write_attempt(context, number, made)
        return directory

    def _interrupt(self, directory: Path) -> None:
        """Change the record of the run as if its Snakemake had died."""
        path = _run_directory(directory) / "run.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"ended": None}))


def _run_directory(directory: Path) -> Path:
    return min((directory / ".snakemake/forge/runs").iterdir())


@dataclass(frozen=True)
class ManyFiles:
    """Shell jobs in a directory of their own, and in one with thousands of (sparse) files beside."""

    jobs: int
    files: int
    name: str = "files"
    _order: list[bool] = field(default_factory=lambda: [False, True])

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Run both, in an order that turns with every round."""
        if executor.name != FORGE:
            return {}
        used: dict[bool, Usage] = {}
        for full in self._order:
            directory = workspace.directory("shell")
            if full:
                make_files(directory / "data", self.files)
            used[full] = workspace.snakemake(executor, directory, self.jobs, steps=self.jobs + 1)
        self._order.reverse()
        return {
            "empty_s": [used[False].wall],
            "full_s": [used[True].wall],
            "full_to_empty": [used[True].wall / used[False].wall],
            "full_to_empty_cpu": [used[True].cpu / used[False].cpu],
        }


def make_files(directory: Path, count: int) -> None:
    """Make sparse files of a megabyte, a hundred in each directory."""
    for number in range(count):
        path = directory / str(number // 100) / f"{number}.bam"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(FILE_BYTES)
