"""The cost of checking an environment before a run: the first time, and when nothing has changed since."""

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from bench.activation import make_environment
from bench.settings import FORGE, Executor
from bench.timed import Metrics
from bench.workspace import Workspace
from snakemake_executor_plugin_forge.software.health import verify
from snakemake_executor_plugin_forge.spec.catalog import RuntimeKind

REST_SECONDS = 2.1
"""Age from which time stamps are trusted: younger files are read at every check."""


@dataclass(frozen=True)
class Verification:
    """A conda environment of 100 files of 2 to 4 kB, checked by the code that a run uses.

    Cold: nothing is remembered, and the page cache has no file of it. Warm: an earlier check found all sound.
    """

    repeats: int = 5
    name: str = "verification"

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Check several times each way."""
        if executor.name != FORGE:
            return {}
        prefix, memory = workspace.directory("shell") / "environment", workspace.root / "verified.json"
        make_environment(prefix)
        time.sleep(REST_SECONDS)
        cold = []
        for _ in range(self.repeats):
            memory.unlink(missing_ok=True)
            forget(prefix)
            cold.append(look(prefix, memory))
        warm = [look(prefix, memory) for _ in range(self.repeats)]
        return {"cold_ms": [1000 * statistics.median(cold)], "warm_ms": [1000 * statistics.median(warm)]}


def look(prefix: Path, memory: Path) -> float:
    """Return the seconds of a check that finds nothing wrong."""
    begin = time.perf_counter()
    health = verify(str(prefix), RuntimeKind.CONDA, str(memory))
    seconds = time.perf_counter() - begin
    if health.damage or not health.files:
        raise AssertionError(f"the environment is not as it was made: {health}")
    return seconds


def forget(directory: Path) -> None:
    """Drop the page cache of all files below: posix_fadvise(2)."""
    for path in directory.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
