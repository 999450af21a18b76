"""The memory case: the proportional set size (PSS) of the process tree while jobs sleep."""

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.process import BenchError, Command, descendants
from bench.settings import Executor
from bench.timed import Metrics
from bench.workspace import Workspace, check_steps

SETTLE_SECONDS = 1.0
SNAKEMAKE, JOB, FORK = "snakemake", "job", "fork"
FORGE_PREFIX = "forge-"


@dataclass(frozen=True)
class Memory:
    """The memory of the executor beside Snakemake, with one running job and with several.

    PSS divides every shared page among its users, so the sum over all processes is the memory in use.
    """

    jobs: int
    seconds: int
    name: str = "memory"

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Sample a run of one sleeping job and a run of several."""
        one = self._sample(executor, workspace, 1)
        many = self._sample(executor, workspace, self.jobs)
        metrics: Metrics = {"jobs": [float(self.jobs)]}
        for label, sample in (("one", one), ("many", many)):
            metrics[f"{label}_executor_mb"] = [executor_share(sample)]
            metrics[f"{label}_tree_mb"] = [sum(sample.values())]
            metrics.update({f"{label}_{role}_mb": [size] for role, size in sorted(sample.items())})
        metrics["base_mb"] = metrics["one_executor_mb"]
        growth = executor_share(many) - executor_share(one)
        metrics["per_job_mb"] = [growth / (self.jobs - 1)]
        tree_growth = sum(many.values()) - sum(one.values())
        metrics["per_job_tree_mb"] = [tree_growth / (self.jobs - 1)]
        return metrics

    def _sample(self, executor: Executor, workspace: Workspace, jobs: int) -> dict[str, float]:
        """Run ``jobs`` sleeping jobs at once and return the megabytes of each role in the tree."""
        directory = workspace.directory("sleep")
        config = [f"jobs={jobs}", f"seconds={self.seconds}"]
        command = workspace.start(executor, directory, jobs, config)
        try:
            self._await_sleepers(command, jobs, workspace.settings.timeout)
            time.sleep(SETTLE_SECONDS)
            sizes = tree_sizes(command.pid)
            if sleepers() != jobs:
                raise BenchError(f"not all of the {jobs} jobs slept while memory was read\n{command.tail()}")
        finally:
            command.finish(workspace.settings.timeout)
        check_steps(command, jobs + 1)
        return sizes

    def _await_sleepers(self, command: Command, jobs: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while sleepers() != jobs:
            if command.ended_within(0.1) or time.monotonic() > deadline:
                raise BenchError(f"{jobs} jobs never slept at the same time\n{command.tail()}")


def executor_share(sizes: dict[str, float]) -> float:
    """Add up the megabytes of all processes that are neither Snakemake itself nor part of a job."""
    return sum(size for role, size in sizes.items() if role not in (SNAKEMAKE, JOB))


def tree_sizes(snakemake: int) -> dict[str, float]:
    """Return the PSS in megabytes (10^6 bytes) of the benchmark's process tree by role.

    All descendants of the benchmark count, not only Snakemake's: a supervisor that has left its parent counts as
    well.
    """
    main_line = _cmdline(snakemake)
    sizes: Counter[str] = Counter()
    for pid in descendants(os.getpid()):
        try:
            role = SNAKEMAKE if pid == snakemake else _role(pid, main_line)
            sizes[role] += pss_bytes(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return {role: size / 1e6 for role, size in sizes.items()}


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except PermissionError as error:
        raise BenchError(f"cannot read the memory of process {pid} ({_comm(pid)}): {error}") from error
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"/proc/{pid}/smaps_rollup has no Pss line")


def _role(pid: int, main_line: bytes) -> str:
    """Tell what a process is: one that Forge named, another fork of Snakemake, or part of a job."""
    comm = _comm(pid)
    if comm.startswith(FORGE_PREFIX):
        return comm
    return FORK if _cmdline(pid) == main_line else JOB


def sleepers() -> int:
    """Count the processes below the benchmark that are a job's ``sleep``."""
    return sum(_comm(pid) == "sleep" for pid in descendants(os.getpid()))


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
