"""Control groups version 1: one directory per controller. Documentation/admin-guide/cgroup-v1/ of the kernel."""

from __future__ import annotations

import os
from contextlib import suppress

from ..model import ORDINARY, CpuMode, Limits, Priority
from . import cgroup, pseudofile
from .cgroup import Counters, Sample
from .weights import cpu_shares, write_io_weight

CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")
IO_CONTROLLER = "blkio"
"""Only where somebody has asked for weights: one more directory for each job."""

_HUGE_PAGE = 2 * 1024 * 1024


class V1Job:
    """The directories of one job."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths

    def open_doors(self, holder: int | None) -> tuple[int, ...]:
        """See :class:`.cgroup.JobCgroup`.

        ``tasks`` and not ``cgroup.procs``: for the calling thread alone the kernel (since 5.15) need not take
        cgroup_threadgroup_rwsem, which costs an RCU grace period, 5 to 14 ms (cgroup_procs_write_start).
        """
        del holder
        return tuple(cgroup.open_door(f"{path}/tasks") for path in _directories(self._paths))

    def pids(self) -> list[int]:
        """See :class:`.cgroup.JobCgroup`."""
        return cgroup.member_pids(self._paths["pids"])

    def sample(self) -> Sample:
        """See :class:`.cgroup.JobCgroup`."""
        memory = self._paths["memory"]
        stat, names = f"{memory}/memory.stat", ("total_rss", "total_shmem")
        return cgroup.look(stat, names, self._paths["pids"], self._oom_kills())

    def counters(self) -> Counters:
        """See :class:`.cgroup.JobCgroup`.

        The split of the CPU time is estimated from clock ticks by the kernel; here it is scaled to the sum, which is
        exact. Peaks of processes are kept since Linux 6.11 only.
        """
        memory, pids, cpuacct = self._paths["memory"], self._paths["pids"], self._paths["cpuacct"]
        stat = cgroup.read_values(f"{memory}/memory.stat", "total_rss", "total_shmem", "total_cache")
        anon, shared, cache = stat or (0, 0, 0)
        throttled = cgroup.read_values(f"{self._paths['cpu']}/cpu.stat", "nr_throttled", "throttled_time") or (0, 0)
        total = cgroup.read_number(f"{cpuacct}/cpuacct.usage")
        user, system = (cgroup.read_number(f"{cpuacct}/cpuacct.usage_{kind}") for kind in ("user", "sys"))
        user = total if user + system == 0 else total * user // (user + system)
        return Counters(
            memory_peak_bytes=cgroup.read_number(f"{memory}/memory.max_usage_in_bytes"),
            memory_anon_bytes=anon + shared,
            memory_file_bytes=cache - shared,
            memory_kernel_bytes=cgroup.read_number(f"{memory}/memory.kmem.max_usage_in_bytes"),
            cpu_seconds=total / 1e9,
            cpu_user_seconds=user / 1e9,
            cpu_system_seconds=(total - user) / 1e9,
            throttled_seconds=throttled[1] / 1e9,
            throttled_periods=throttled[0],
            pids_peak=cgroup.read_number(f"{pids}/pids.peak"),
            oom_kills=self._oom_kills(),
            pids_hits=cgroup.read_value(f"{pids}/pids.events", "max"),
            memory_exhausted=_memory_exhausted(memory),
            complete=stat is not None,
        )

    def _oom_kills(self) -> int:
        return cgroup.read_value(f"{self._paths['memory']}/memory.oom_control", "oom_kill")

    def kill(self, others: list[int]) -> None:
        """See :class:`.cgroup.JobCgroup`. A signal waits while its receiver is frozen: freezer-subsystem.rst."""
        pids = [*self.pids(), *others]
        cgroup.kill_all(pids)
        _thaw(pids)

    def pause_seconds(self, usual: float) -> float:
        """See :class:`.cgroup.JobCgroup`: the kernel watches."""
        return usual

    def missing(self) -> str | None:
        """See :class:`.cgroup.JobCgroup`: removed from outside."""
        path = f"{self._paths['memory']}/memory.limit_in_bytes"
        return None if os.path.exists(path) else path

    def remove(self) -> bool:
        """See :class:`.cgroup.JobCgroup`."""
        removed = [cgroup.remove_tree(path) for path in _directories(self._paths)]
        return all(removed)  # after every one was tried


class V1Run:
    """The directories of the run."""

    version = "cgroup-v1"

    def __init__(
        self, paths: dict[str, str], memory_bytes: int, pids: int | None, priority: Priority = ORDINARY
    ) -> None:
        """Make the directories and set the limits of the run.

        Args:
            paths: controller to the directory that shall be made.

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
        self._has_swap = False
        self._spare: str | None = None
        try:
            for path in _directories(paths):
                if path not in made:
                    os.mkdir(path)
                    made.append(path)
            self._has_swap = os.path.exists(f"{paths['memory']}/memory.memsw.limit_in_bytes")
            self._limit_memory(paths["memory"], memory_bytes)
            pseudofile.write(f"{paths['pids']}/pids.max", "max" if pids is None else pids)
            shares = cpu_shares(1, CpuMode.OFF, priority.nice)
            if shares is not None:
                pseudofile.write(f"{paths['cpu']}/cpu.shares", shares)
            write_io_weight(self.io_place, priority.io_weight)
        except OSError:
            for path in made:
                cgroup.remove_tree(path)
            raise

    def _limit_memory(self, path: str, memory_bytes: int) -> None:
        pseudofile.write(f"{path}/memory.limit_in_bytes", memory_bytes)
        if self._has_swap:  # memory and swap together: so none of it is swap. After limit_in_bytes, never before.
            pseudofile.write(f"{path}/memory.memsw.limit_in_bytes", memory_bytes)

    def create_job(self, name: str, limits: Limits, cpu: CpuMode) -> V1Job:
        """See :class:`.cgroup.RunCgroup`."""
        paths = self._paths_of(name)
        job = V1Job(paths)
        spare, self._spare = self._spare, None
        try:
            if spare is None:
                self._make(paths)
            else:  # v1 alone lets cgroups be renamed
                for old, new in zip(_directories(self._paths_of(spare)), _directories(paths), strict=True):
                    os.rename(old, new)
            if limits.memory_bytes is not None:
                self._limit_memory(paths["memory"], limits.memory_bytes)
            if limits.pids is not None:
                pseudofile.write(f"{paths['pids']}/pids.max", limits.pids)
            if cpu is CpuMode.CAP:
                pseudofile.write(f"{paths['cpu']}/cpu.cfs_quota_us", limits.cpus * cgroup.PERIOD_MICROSECONDS)
            shares = cpu_shares(limits.cpus, cpu, limits.nice)
            if shares is not None:
                pseudofile.write(f"{paths['cpu']}/cpu.shares", shares)
            write_io_weight(paths.get(IO_CONTROLLER), limits.io_weight)
        except OSError:
            job.remove()
            raise
        return job

    def _paths_of(self, name: str) -> dict[str, str]:
        return {controller: f"{path}/{name}" for controller, path in self._paths.items()}

    @staticmethod
    def _make(paths: dict[str, str]) -> None:
        for path in _directories(paths):
            os.mkdir(path)

    def prepare(self) -> None:
        """See :class:`.cgroup.RunCgroup`: four directories take 0.5 ms or more."""
        name = cgroup.spare_name(os.getpid())
        with suppress(OSError):  # it will come again when there is a job that it can be told of
            if self._spare is None:
                self._make(self._paths_of(name))
                self._spare = name

    def job(self, name: str) -> V1Job | None:
        """See :class:`.cgroup.RunCgroup`."""
        paths = self._paths_of(name)
        return V1Job(paths) if any(os.path.isdir(path) for path in paths.values()) else None

    def memory_exhausted(self) -> bool:
        """See :class:`.cgroup.RunCgroup`."""
        return _memory_exhausted(self._paths["memory"])

    def release(self) -> None:
        """See :class:`.cgroup.RunCgroup`. Not what others have made: a job may be about to enter it."""
        spare, self._spare = self._spare, None
        paths = _directories(self._paths_of(spare)) if spare is not None else []
        for path in (*paths, *_directories(self._paths)):
            with suppress(OSError):
                os.rmdir(path)

    def remove(self) -> None:
        """See :class:`.cgroup.RunCgroup`."""
        for path in _directories(self._paths):
            with suppress(OSError):
                cgroup.remove_tree(path)


def _directories(paths: dict[str, str]) -> list[str]:
    """Each once: controllers that are mounted together share one."""
    return list(dict.fromkeys(paths.values()))


def _with_io(paths: dict[str, str], made: list[str]) -> dict[str, str]:
    """Make that of blkio; without, if that is refused: no reason to be without limits."""
    try:
        os.mkdir(paths[IO_CONTROLLER])
    except OSError:
        return {controller: path for controller, path in paths.items() if controller != IO_CONTROLLER}
    made.append(paths[IO_CONTROLLER])
    return paths


def _memory_exhausted(path: str) -> bool:
    """Whether the peak is at the limit, which page cache alone can do as well: v1 has no better counter.

    Not failcnt: it stays 0 on Linux 6.18. The kernel gives up when not even a small page fits; a huge page may.
    """
    peak = cgroup.read_number(f"{path}/memory.max_usage_in_bytes")
    return peak > 0 and peak + _HUGE_PAGE >= cgroup.read_number(f"{path}/memory.limit_in_bytes")


def _thaw(pids: list[int]) -> None:
    """Move processes out of frozen cgroups, into the freezer cgroup that this process is in.

    One by one, and not by thawing their cgroup, in which there may be others that somebody froze for a reason.
    """
    own = _freezer_of("self")
    elsewhere = [pid for pid in pids if own is not None and _freezer_of(str(pid)) not in (None, own)]
    for pid in elsewhere:
        with suppress(OSError):
            pseudofile.write(f"{_freezer_directory(own or '')}/cgroup.procs", pid)


def _freezer_of(pid: str) -> str | None:
    """The path of a process in the freezer hierarchy: proc_pid_cgroup(5)."""
    try:
        lines = [line.split(":", 2) for line in cgroup.read(f"/proc/{pid}/cgroup").splitlines()]
    except OSError:
        return None
    return next((path for _, names, path in lines if "freezer" in names.split(",")), None)


def _freezer_directory(path: str) -> str:
    """Where a path of the freezer hierarchy is mounted: proc_pid_mountinfo(5).

    Raises:
        OSError: if it is not.

    """
    for line in cgroup.read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup ") and "freezer" in right.rsplit(" ", 1)[1].split(","):
            root, place = left.split(" ")[3:5]
            return f"{place}/{path.removeprefix(root)}"
    raise OSError("the freezer hierarchy is not mounted")
