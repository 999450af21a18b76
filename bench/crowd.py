"""Many jobs that sleep at the same time: the seconds until all of them run, and the memory of each."""

import time
from dataclasses import dataclass
from pathlib import Path

from bench.memory import SETTLE_SECONDS, sleepers
from bench.process import BenchError, Command, descendants
from bench.settings import Executor
from bench.timed import Metrics
from bench.workspace import Workspace, check_steps

LOOK_SECONDS = 0.2
FORGES = "forge-"


@dataclass(frozen=True)
class Crowd:
    """`-j N` with N sleeping jobs, and the same with one."""

    jobs: int
    seconds: int
    name: str = "crowd"

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Run one and then all of them."""
        _, one = self._run(executor, workspace, 1)
        started, many = self._run(executor, workspace, self.jobs)
        return {
            "jobs": [float(self.jobs)],
            "all_run_s": [started],
            "private_mb": [many],
            "private_per_job_mb": [(many - one) / (self.jobs - 1)],
        }

    def _run(self, executor: Executor, workspace: Workspace, jobs: int) -> tuple[float, float]:
        """Return the seconds until all jobs sleep, and the private megabytes of the executor's processes then."""
        directory = workspace.directory("sleep")
        begin = time.monotonic()
        command = workspace.start(executor, directory, jobs, [f"jobs={jobs}", f"seconds={self.seconds}"])
        try:
            self._wait(command, jobs)
            started = time.monotonic() - begin
            time.sleep(SETTLE_SECONDS)
            private = sum(map(private_bytes, descendants(command.pid))) / 1e6
        finally:
            command.finish(workspace.settings.timeout)
        check_steps(command, jobs + 1)
        return started, private

    def _wait(self, command: Command, jobs: int) -> None:
        while (found := sleepers()) < jobs:
            if command.ended_within(LOOK_SECONDS):
                raise BenchError(f"only {found} of {jobs} jobs slept at the same time\n{command.tail()}")


def private_bytes(pid: int) -> int:
    """Return the memory that one of Forge's processes does not share (proc_pid_smaps(5)); 0 for other processes."""
    try:
        if not Path(f"/proc/{pid}/comm").read_text().startswith(FORGES):
            return 0
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Private_"))
