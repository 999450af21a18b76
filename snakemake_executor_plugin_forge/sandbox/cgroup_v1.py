"""Control groups version 1: one directory per controller. Documentation/admin-guide/cgroup-v1/ of the kernel."""

from __future__ import annotations

import os
from contextlib import suppress

from ..model import CpuMode, Limits
from . import cgroup
from .cgroup import Counters

CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")
_MIN_SHARES = 2


class V1Job:
    """The four directories of one job."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths

    def open_doors(self, holder: int | None) -> tuple[int, ...]:
        """See :class:`.cgroup.JobCgroup`.

        ``tasks`` and not ``cgroup.procs``: for the calling thread alone the kernel (since 5.15) need not take
        cgroup_threadgroup_rwsem, which costs an RCU grace period, 5 to 14 ms (cgroup_procs_write_start).
        """
        del holder
        return tuple(cgroup.open_door(f"{path}/tasks") for path in dict.fromkeys(self._paths.values()))

    def pids(self) -> list[int]:
        """See :class:`.cgroup.JobCgroup`."""
        return cgroup.member_pids(self._paths["pids"])

    def counters(self) -> Counters:
        """See :class:`.cgroup.JobCgroup`. v1 has no peak of processes: the current number stands for it."""
        memory, pids = self._paths["memory"], self._paths["pids"]
        stat = cgroup.read_table(f"{memory}/memory.stat")
        return Counters(
            memory_bytes=cgroup.read_number(f"{memory}/memory.usage_in_bytes"),
            memory_peak_bytes=cgroup.read_number(f"{memory}/memory.max_usage_in_bytes"),
            memory_anon_bytes=stat.get("total_rss", 0) + stat.get("total_shmem", 0),
            cpu_seconds=cgroup.read_number(f"{self._paths['cpuacct']}/cpuacct.usage") / 1e9,
            pids_peak=cgroup.read_number(f"{pids}/pids.current"),
            oom_kills=self.oom_kills(),
            pids_hits=cgroup.read_table(f"{pids}/pids.events").get("max", 0),
        )

    def oom_kills(self) -> int:
        """See :class:`.cgroup.JobCgroup`."""
        return cgroup.read_table(f"{self._paths['memory']}/memory.oom_control").get("oom_kill", 0)

    def pause_seconds(self, usual: float) -> float:
        """See :class:`.cgroup.JobCgroup`: the kernel watches."""
        return usual

    def missing(self) -> str | None:
        """See :class:`.cgroup.JobCgroup`: removed from outside."""
        path = f"{self._paths['memory']}/memory.limit_in_bytes"
        return None if os.path.exists(path) else path

    def remove(self) -> bool:
        """See :class:`.cgroup.JobCgroup`."""
        removed = [cgroup.remove_tree(path) for path in dict.fromkeys(self._paths.values())]
        return all(removed)  # after every one was tried


class V1Run:
    """The four directories of the run."""

    version = "cgroup-v1"

    def __init__(self, paths: dict[str, str], memory_bytes: int, pids: int | None) -> None:
        """Make the directories and set the limits of the run.

        Args:
            paths: controller to the directory that shall be made.

        Raises:
            OSError: where the kernel refuses.

        """
        self._paths = paths
        self.place = paths["memory"]
        self.missing: tuple[str, ...] = ()
        self._has_swap = False
        made: list[str] = []
        try:
            for path in dict.fromkeys(paths.values()):
                os.mkdir(path)
                made.append(path)
            self._has_swap = os.path.exists(f"{paths['memory']}/memory.memsw.limit_in_bytes")
            self._limit_memory(paths["memory"], memory_bytes)
            cgroup.write(f"{paths['pids']}/pids.max", "max" if pids is None else pids)
        except OSError:
            for path in made:
                cgroup.remove_tree(path)
            raise

    def _limit_memory(self, path: str, memory_bytes: int) -> None:
        cgroup.write(f"{path}/memory.limit_in_bytes", memory_bytes)
        if self._has_swap:  # memory and swap together: so none of it is swap. After limit_in_bytes, never before.
            cgroup.write(f"{path}/memory.memsw.limit_in_bytes", memory_bytes)

    def create_job(self, name: str, limits: Limits, cpu: CpuMode) -> V1Job:
        """See :class:`.cgroup.RunCgroup`."""
        paths = {controller: f"{path}/{name}" for controller, path in self._paths.items()}
        job = V1Job(paths)
        try:
            for path in dict.fromkeys(paths.values()):
                os.mkdir(path)
            if limits.memory_bytes is not None:
                self._limit_memory(paths["memory"], limits.memory_bytes)
            if limits.pids is not None:
                cgroup.write(f"{paths['pids']}/pids.max", limits.pids)
            if cpu is CpuMode.CAP:
                cgroup.write(f"{paths['cpu']}/cpu.cfs_quota_us", limits.cpus * cgroup.PERIOD_MICROSECONDS)
            if cpu is not CpuMode.OFF:
                cgroup.write(f"{paths['cpu']}/cpu.shares", max(_MIN_SHARES, 1024 * limits.cpus))
        except OSError:
            job.remove()
            raise
        return job

    def job(self, name: str) -> V1Job | None:
        """See :class:`.cgroup.RunCgroup`."""
        paths = {controller: f"{path}/{name}" for controller, path in self._paths.items()}
        return V1Job(paths) if any(os.path.isdir(path) for path in paths.values()) else None

    def oom_kills(self) -> int:
        """See :class:`.cgroup.RunCgroup`. v1 counts a kill where the victim is; the run's own hits are failcnt."""
        return cgroup.read_number(f"{self._paths['memory']}/memory.failcnt")

    def remove(self) -> None:
        """See :class:`.cgroup.RunCgroup`."""
        for path in dict.fromkeys(self._paths.values()):
            with suppress(OSError):
                cgroup.remove_tree(path)
