"""The cost of commands that answer questions, with many attempts on record."""

import sys
from dataclasses import dataclass
from pathlib import Path

from bench.process import Usage
from bench.settings import FORGE, Executor
from bench.timed import Metrics
from bench.workspace import Workspace
from tests.records import MIB, Made, write_run

RULES, EVERY_FAILED = 20, 400
COMMANDS = {
    "start": ["jobs", "--help"],
    "jobs": ["jobs"],
    "why": ["why", "rule3", "sample=s00003"],
    "report": ["report"],
}


@dataclass(frozen=True)
class Reading:
    """Commands of ``snakemake-forge`` over one run with many attempts, written by Forge's own code without the jobs.

    The limits are for CPU time: each command is a single process that waits for nothing, and its wall time on a machine
    with other load says more about that.
    """

    attempts: int
    repeats: int = 5
    name: str = "reading"

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Read the records for the first time, then ask each question several times."""
        if executor.name != FORGE:
            return {}
        directory = workspace.root / "reading"
        if not directory.exists():
            directory.mkdir()
            write_run(directory, attempts(self.attempts))
        index = directory / ".snakemake" / "forge" / "index.db"
        index.unlink(missing_ok=True)
        metrics: Metrics = {"index_cpu_ms": [1000 * self._ask(["jobs"], directory, workspace).cpu]}
        for name, words in COMMANDS.items():
            used = [self._ask(words, directory, workspace) for _ in range(self.repeats)]
            metrics[f"{name}_ms"] = [1000 * usage.wall for usage in used]
            metrics[f"{name}_cpu_ms"] = [1000 * usage.cpu for usage in used]
        metrics["report_mb"] = [(directory / "forge-report.html").stat().st_size / 1e6]
        return metrics

    def _ask(self, words: list[str], directory: Path, workspace: Workspace) -> Usage:
        argv = [sys.executable, "-P", "-m", "snakemake_executor_plugin_forge.cli.main", *words]
        return workspace.command(argv, directory).finish(workspace.settings.timeout)


def attempts(count: int) -> list[Made]:
    """Attempts of several rules, of which some have failed."""
    return [
        Made(
            rule=f"rule{number % RULES}",
            wildcards={"sample": f"s{number:05d}"},
            start=number / 4,
            seconds=1 + number % 7,
            threads=1 + number % 2,
            memory_bytes=(50 + number % 100) * MIB,
            evidence={} if number % EVERY_FAILED else {"exit_code": 1},
            stderr="" if number % EVERY_FAILED else "Error: bad\n",
        )
        for number in range(count)
    ]
