"""The runs of this host that are alive, of all working directories: found by their nurseries, and no list is kept.

The process of that name has the run's working directory and is a child of the Snakemake that ``run.json`` there names.
/proc shows an ordinary user the directories of their own processes only: everybody sees their own runs, root sees all.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from ..kernel import process_tree
from ..record.identity import user_name
from ..record.index import Row, open_index
from ..record.reader import living_run, state_directory
from ..sandbox.cgroups.run_usage import RunUsage, run_directories, run_usage
from ..spec.errors import UsageError
from ..spec.paths import run_name
from ..spec.progress import Progress
from .forecast import progress_of_newest_run
from .live import look_at_processes

NURSERY = "forge-nursery"  # the name that workers/nursery.py gives it


@dataclass(frozen=True, slots=True)
class HostRun:
    """A run that is alive, at one moment."""

    directory: str
    user: str  # whose processes they are
    record: Row  # its run.json
    usage: RunUsage  # of its jobs together, without Snakemake and Forge; what is used is None where it cannot be seen
    progress: Progress | None  # None: not known

    @property
    def name(self) -> str:
        """The run."""
        return str(self.record["run"])

    @property
    def seconds(self) -> float:
        """Seconds since its start."""
        with suppress(ValueError, OverflowError):
            return max(0.001, time.time() - datetime.fromisoformat(str(self.record["started"])).timestamp())
        return 0.001


def runs_of_host() -> list[HostRun]:
    """Sample all runs that this process may see, the oldest first."""
    return sorted(_found(), key=lambda run: run.name)


def _found() -> Iterator[HostRun]:
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if process_tree.command_name(pid) != NURSERY:
            continue
        with suppress(OSError, UsageError, ValueError):  # over by now, another user's, or only of that name
            snakemake = int(process_tree.stat(pid)[1])
            directory = os.readlink(f"/proc/{pid}/cwd")
            record = living_run(state_directory(directory), snakemake)
            if record is not None:
                user = user_name(os.stat(f"/proc/{pid}").st_uid)
                yield HostRun(directory, user, record, _usage(pid, record), _progress(directory, record))


def _usage(nursery: int, record: Row) -> RunUsage:
    directories = run_directories(nursery, run_name(record["run"]), str(record.get("cgroup") or ""))
    if directories:
        return run_usage(directories)
    live = look_at_processes(nursery)  # limits are polled: there is none of the run
    count = len(process_tree.descendants(nursery))
    return RunUsage(memory_bytes=live.memory_bytes, cpu_seconds=live.cpu_seconds, processes=count)


def _progress(directory: str, record: Row) -> Progress | None:
    with suppress(sqlite3.Error, OSError, UsageError), open_index(directory) as index:
        runs = index.runs()
        if runs and runs[-1][0] == record["run"]:
            return progress_of_newest_run(index, {})
    return None
