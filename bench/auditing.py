"""The cost of --forge-audit for a job: the same jobs with and without it, by the seconds in their records."""

import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.settings import FORGE, Executor
from bench.timed import Metrics
from bench.workspace import Workspace
from snakemake_executor_plugin_forge.sandbox.fanotify import refusal

FILES, SIZE = 5_000, 100_000


@dataclass(frozen=True)
class Auditing:
    """Pairs of runs of a job that computes, and of one that opens thousands of files it does not declare."""

    pairs: int = 3
    name: str = "audit"
    _order: list[bool] = field(default_factory=lambda: [False, True])

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Run each job without and with the audit, in an order that turns with every pair."""
        if executor.name != FORGE or refusal():
            return {}
        metrics: Metrics = {}
        for workflow in ("heavy", "reads"):
            for _ in range(self.pairs):
                took = {how: self._seconds(executor, workspace, workflow, audited=how) for how in self._order}
                self._order.reverse()
                metrics.setdefault(f"{workflow}_plain_s", []).append(took[False])
                metrics.setdefault(f"{workflow}_ratio", []).append(took[True] / took[False])
        return metrics

    def _seconds(self, executor: Executor, workspace: Workspace, workflow: str, *, audited: bool) -> float:
        directory = workspace.directory(workflow)
        if workflow == "heavy":
            os.link(workspace.heavy_data(), directory / "data.txt")
        else:
            shutil.copytree(many_files(workspace.root), directory / "files", copy_function=os.link)
        if audited:
            executor = replace(executor, args=(*executor.args, "--forge-audit"))
        workspace.snakemake(executor, directory, jobs=1, steps=2)
        (verdict,) = directory.glob(".snakemake/forge/runs/*/*/verdict.json")
        found = json.loads(verdict.read_text())
        listed = len(found["undeclared_reads"] or ())
        if workflow == "reads" and audited != bool(listed):
            raise AssertionError(f"audited: {audited}, and listed: {listed} files")
        return float(found["seconds"])


def many_files(root: Path) -> Path:
    """Return a directory with the files, written on the first call."""
    path = root / "files"
    if not path.exists():
        path.mkdir()
        for number in range(FILES):
            (path / f"{number}.txt").write_bytes(bytes(SIZE))
    return path
