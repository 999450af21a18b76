"""Control groups version 1: a directory per controller. Source: Documentation/admin-guide/cgroup-v1/ of the kernel."""

from __future__ import annotations

import os
from contextlib import suppress

from ...kernel import procfs
from ...spec.job import ORDINARY, CpuMode, Limits, Priority
from . import base
from .base import Counters, JobCgroup, RunCgroup, Sample
from .weights import cpu_shares, write_io_weight

CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")
IO_CONTROLLER = "blkio"
"""Used only where somebody has asked for weights: it takes one more directory for each job."""

_HUGE_PAGE = 2 * 1024 * 1024
_SOCKETS_SHARE = 4  # of the memory limit is the most that data in sockets of TCP and UDP takes beside it


class V1Job(JobCgroup):
    """The directories of one job."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths

    def open_procs(self, holder: int | None) -> tuple[int, ...]:
        """See :class:`.base.JobCgroup`.

        Opens ``tasks`` and not ``cgroup.procs``: to move one thread, the kernel (since 5.15) need not take
        cgroup_threadgroup_rwsem, which costs an RCU grace period, 5 to 14 ms (cgroup_procs_write_start).
        """
        del holder
        return tuple(base.open_procs_file(f"{path}/tasks") for path in _directories(self._paths))

    def pids(self) -> list[int]:
        return base.member_pids(self._paths["pids"])

    def sample(self) -> Sample:
        memory = self._paths["memory"]
        stat, names = f"{memory}/memory.stat", ("total_rss", "total_shmem")
        return base.sample(stat, names, self._paths["pids"], self._oom_kills())

    def counters(self) -> Counters:
        """See :class:`.base.JobCgroup`.

        The kernel estimates the split of the CPU time from clock ticks; Forge scales it to the sum, which is exact. The
        kernel has peaks of processes since Linux 6.11.
        """
        memory, pids, cpuacct = self._paths["memory"], self._paths["pids"], self._paths["cpuacct"]
        stat = base.read_values(f"{memory}/memory.stat", "total_rss", "total_shmem", "total_cache")
        anon, shared, cache = stat or (0, 0, 0)
        throttled = base.read_values(f"{self._paths['cpu']}/cpu.stat", "nr_throttled", "throttled_time") or (0, 0)
        total = base.read_number(f"{cpuacct}/cpuacct.usage")
        user, system = (base.read_number(f"{cpuacct}/cpuacct.usage_{kind}") for kind in ("user", "sys"))
        user = total if user + system == 0 else total * user // (user + system)
        return Counters(
            memory_peak_bytes=base.read_number(f"{memory}/memory.max_usage_in_bytes"),
            memory_anon_bytes=anon + shared,
            memory_file_bytes=cache - shared,
            memory_kernel_bytes=base.read_number(f"{memory}/memory.kmem.max_usage_in_bytes"),
            cpu_seconds=total / 1e9,
            cpu_user_seconds=user / 1e9,
            cpu_system_seconds=(total - user) / 1e9,
            throttled_seconds=throttled[1] / 1e9,
            throttled_periods=throttled[0],
            pids_peak=base.read_number(f"{pids}/pids.peak"),
            oom_kills=self._oom_kills(),
            pids_hits=base.read_value(f"{pids}/pids.events", "max"),
            memory_exhausted=_memory_exhausted(memory),
            complete=stat is not None,
        )

    def _oom_kills(self) -> int:
        return base.read_value(f"{self._paths['memory']}/memory.oom_control", "oom_kill")

    def kill(self, others: list[int]) -> None:
        """See :class:`.base.JobCgroup`. A frozen process receives no signal: freezer-subsystem.rst."""
        pids = [*self.pids(), *others]
        base.kill_all(pids)
        _thaw(pids)

    def missing(self) -> str | None:
        path = f"{self._paths['memory']}/memory.limit_in_bytes"
        return None if os.path.exists(path) else path

    def remove(self) -> bool:
        removed = [base.remove_tree(path) for path in _directories(self._paths)]
        return all(removed)  # after every one was tried


class V1Run(RunCgroup):
    """The directories of the run."""

    version = "cgroup-v1"

    def __init__(
        self, paths: dict[str, str], memory_bytes: int, pids: int | None, priority: Priority = ORDINARY
    ) -> None:
        """Make the directory in ``paths`` of each controller and set the limits of the run.

        Raises:
            OSError: where the kernel refuses.
        """
        made: list[str] = []
        if IO_CONTROLLER in paths:
            paths = _with_io(paths, made)
        self._paths = paths
        self.place = paths["memory"]
        self.missing: tuple[str, ...] = ()
        self.io_place = paths.get(IO_CONTROLLER)
        self._has_swap = self._has_sockets = False
        self._spare: str | None = None
        try:
            for path in _directories(paths):
                if path not in made:
                    os.mkdir(path)
                    made.append(path)
            self._has_swap = os.path.exists(f"{paths['memory']}/memory.memsw.limit_in_bytes")
            self._has_sockets = os.path.exists(f"{paths['memory']}/memory.kmem.tcp.limit_in_bytes")
            self._limit_memory(paths["memory"], memory_bytes)
            procfs.write(f"{paths['pids']}/pids.max", "max" if pids is None else pids)
            shares = cpu_shares(1, CpuMode.OFF, priority.nice)
            if shares is not None:
                procfs.write(f"{paths['cpu']}/cpu.shares", shares)
            write_io_weight(self.io_place, priority.io_weight)
        except OSError:
            for path in made:
                base.remove_tree(path)
            raise

    def _limit_memory(self, path: str, memory_bytes: int) -> None:
        procfs.write(f"{path}/memory.limit_in_bytes", memory_bytes)
        if self._has_swap:  # limits memory plus swap, so that none is swap; taken only after limit_in_bytes
            procfs.write(f"{path}/memory.memsw.limit_in_bytes", memory_bytes)
        if self._has_sockets:  # v1 counts them apart from all else. At the limit sockets become slow, nothing is killed
            procfs.write(f"{path}/memory.kmem.tcp.limit_in_bytes", memory_bytes // _SOCKETS_SHARE)

    def create_job(self, name: str, limits: Limits, cpu: CpuMode) -> V1Job:
        paths = self._paths_of(name)
        job = V1Job(paths)
        spare, self._spare = self._spare, None
        try:
            if spare is None:
                _make(paths)
            else:  # only v1 can rename cgroups
                for old, new in zip(_directories(self._paths_of(spare)), _directories(paths), strict=True):
                    os.rename(old, new)
            if limits.memory_bytes is not None:
                self._limit_memory(paths["memory"], limits.memory_bytes)
            if limits.pids is not None:
                procfs.write(f"{paths['pids']}/pids.max", limits.pids)
            if cpu is CpuMode.CAP:
                procfs.write(f"{paths['cpu']}/cpu.cfs_quota_us", limits.cpus * base.PERIOD_MICROSECONDS)
            shares = cpu_shares(limits.cpus, cpu, limits.nice)
            if shares is not None:
                procfs.write(f"{paths['cpu']}/cpu.shares", shares)
            write_io_weight(paths.get(IO_CONTROLLER), limits.io_weight)
        except OSError:
            job.remove()
            raise
        return job

    def _paths_of(self, name: str) -> dict[str, str]:
        return {controller: f"{path}/{name}" for controller, path in self._paths.items()}

    def prepare(self) -> None:
        """See :class:`.base.RunCgroup`: making four directories takes 0.5 ms or more."""
        name = base.spare_name(os.getpid())
        with suppress(OSError):  # create_job() meets the error again, and can report it
            if self._spare is None:
                _make(self._paths_of(name))
                self._spare = name

    def job(self, name: str) -> V1Job | None:
        paths = self._paths_of(name)
        return V1Job(paths) if any(os.path.isdir(path) for path in paths.values()) else None

    def memory_exhausted(self) -> bool:
        return _memory_exhausted(self._paths["memory"])

    def release(self) -> None:
        """See :class:`.base.RunCgroup`. Leaves cgroups of others: a job may be about to enter one."""
        spare, self._spare = self._spare, None
        paths = _directories(self._paths_of(spare)) if spare is not None else []
        for path in (*paths, *_directories(self._paths)):
            with suppress(OSError):
                os.rmdir(path)

    def remove(self) -> None:
        for path in _directories(self._paths):
            with suppress(OSError):
                base.remove_tree(path)


def _make(paths: dict[str, str]) -> None:
    for path in _directories(paths):
        os.mkdir(path)


def _directories(paths: dict[str, str]) -> list[str]:
    """The directories without repetition: controllers that are mounted together share one."""
    return list(dict.fromkeys(paths.values()))


def _with_io(paths: dict[str, str], made: list[str]) -> dict[str, str]:
    """Make the directory of blkio. If the kernel refuses, leave it out: that is no reason to be without limits."""
    try:
        os.mkdir(paths[IO_CONTROLLER])
    except OSError:
        return {controller: path for controller, path in paths.items() if controller != IO_CONTROLLER}
    made.append(paths[IO_CONTROLLER])
    return paths


def _memory_exhausted(path: str) -> bool:
    """Whether the peak is at the limit. Page cache alone can reach it too: v1 has no better counter.

    failcnt stays 0 on Linux 6.18. The kernel kills when not even a small page fits, which can be a huge page too early.
    """
    peak = base.read_number(f"{path}/memory.max_usage_in_bytes")
    return peak > 0 and peak + _HUGE_PAGE >= base.read_number(f"{path}/memory.limit_in_bytes")


def _thaw(pids: list[int]) -> None:
    """Move processes out of frozen cgroups, into the freezer cgroup of this process.

    Thawing their cgroup would also wake processes that somebody froze for a reason.
    """
    own = _freezer_of("self")
    for pid in pids:
        if own is not None and _freezer_of(pid) not in (None, own):
            directory = next((mount.own for mount in base.mounts_of() if "freezer" in mount.controllers), None)
            with suppress(OSError):
                procfs.write(f"{directory}/cgroup.procs", pid)


def _freezer_of(pid: int | str) -> str | None:
    """The path of a process in the freezer hierarchy, from proc_pid_cgroup(5); None if it has none or has ended."""
    try:
        lines = [line.split(":", 2) for line in base.read(f"/proc/{pid}/cgroup").splitlines()]
    except OSError:
        return None
    return next((path for _, names, path in lines if "freezer" in names.split(",")), None)
