"""Control groups version 2: one directory per job. Source: Documentation/admin-guide/cgroup-v2.rst of the kernel."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from ...kernel import procfs
from ...kernel.bpf import keep_settings
from ...spec.job import ORDINARY, CpuMode, Limits, Priority
from . import base
from .base import Counters, JobCgroup, RunCgroup, Sample
from .weights import Sessions, cpu_weight, write_io_weight

CONTROLLERS = ("memory", "cpu", "pids")


class V2Job(JobCgroup):
    """The cgroup of one job."""

    def __init__(self, path: str, sessions: Sessions | None = None) -> None:
        """Take the cgroup at ``path``; with ``sessions`` where its weight cannot express the job's nice value."""
        self._path = path
        self._sessions = sessions

    def open_procs(self, holder: int | None) -> tuple[int, ...]:
        del holder
        return (base.open_procs_file(f"{self._path}/cgroup.procs"),)

    def pids(self) -> list[int]:
        return base.member_pids(self._path)

    def sample(self) -> Sample:
        if self._sessions is not None:
            self._sessions.lower(self.pids())
        return base.sample(f"{self._path}/memory.stat", ("anon", "shmem"), self._path, self._oom_kills())

    def counters(self) -> Counters:
        """See :class:`.base.JobCgroup`. memory.peak exists since Linux 5.19, pids.peak since 6.1."""
        path = self._path
        stat = base.read_values(f"{path}/memory.stat", "anon", "shmem", "file", "kernel")
        anon, shared, file, kernel = stat or (0, 0, 0, 0)
        cpu_names = ("usage_usec", "user_usec", "system_usec", "throttled_usec", "nr_throttled")
        total, user, system, throttled, periods = base.read_values(f"{path}/cpu.stat", *cpu_names) or (0,) * 5
        peak = base.read_number(f"{path}/memory.peak") or base.read_number(f"{path}/memory.current")
        return Counters(
            memory_peak_bytes=peak,
            memory_anon_bytes=anon + shared,
            memory_file_bytes=file - shared,
            memory_kernel_bytes=kernel,
            cpu_seconds=total / 1e6,
            cpu_user_seconds=user / 1e6,
            cpu_system_seconds=system / 1e6,
            throttled_seconds=throttled / 1e6,
            throttled_periods=periods,
            pids_peak=base.read_number(f"{path}/pids.peak"),
            oom_kills=self._oom_kills(),
            pids_hits=base.read_value(f"{path}/pids.events", "max"),
            memory_exhausted=base.read_value(f"{path}/memory.events", "oom") > 0,
            io_bytes=_io_bytes(f"{path}/io.stat"),
            pressure_seconds=_pressure(path),
            complete=stat is not None,
        )

    def _oom_kills(self) -> int:
        return base.read_value(f"{self._path}/memory.events", "oom_kill")

    def kill(self, others: list[int]) -> None:
        """See :class:`.base.JobCgroup`. cgroup.kill exists since Linux 5.14; on v2, SIGKILL reaches the frozen."""
        try:
            procfs.write(f"{self._path}/cgroup.kill", 1)
        except OSError:
            base.kill_all(self.pids())
        base.kill_all(others)

    def missing(self) -> str | None:
        """See :class:`.base.JobCgroup`: somebody has removed the cgroup, or taken its memory controller away."""
        path = f"{self._path}/memory.max"
        return None if os.path.exists(path) else path

    def keep_settings(self) -> None:
        with suppress(OSError):  # in a container, without CAP_BPF: docs/explanation/security.md says so
            keep_settings(self._path)

    def remove(self) -> bool:
        return base.remove_tree(self._path)


class V2Run(RunCgroup):
    """The cgroup of the run; its children get the memory, cpu and pids controllers."""

    version = "cgroup-v2"

    def __init__(self, path: str, memory_bytes: int, pids: int | None, priority: Priority = ORDINARY) -> None:
        """Make the directory, hand the controllers down and set the limits of the run.

        Raises:
            OSError: where the kernel refuses, for example EBUSY for a cgroup that has processes of its own.
        """
        self.place = path
        self.missing: tuple[str, ...] = ()
        self.io_place: str | None = None
        os.mkdir(path)
        try:
            self.missing = hand_down(path)
            if "io" in base.read(f"{path}/cgroup.subtree_control").split():
                self.io_place = path
            procfs.write(f"{path}/memory.max", memory_bytes)
            if os.path.exists(f"{path}/memory.swap.max"):
                procfs.write(f"{path}/memory.swap.max", 0)
            procfs.write(f"{path}/pids.max", "max" if pids is None else pids)
            weight = cpu_weight(1, CpuMode.OFF, priority.nice)
            if weight is not None and "cpu" not in self.missing:
                procfs.write(f"{path}/cpu.weight", weight)
            write_io_weight(self.io_place, priority.io_weight)
        except OSError:
            base.remove_tree(path)
            raise

    def create_job(self, name: str, limits: Limits, cpu: CpuMode) -> V2Job:
        path = f"{self.place}/{name}"
        job = V2Job(path, Sessions(limits.nice) if limits.nice and "cpu" in self.missing else None)
        os.mkdir(path)
        try:
            if limits.memory_bytes is not None:
                procfs.write(f"{path}/memory.max", limits.memory_bytes)
            procfs.write(f"{path}/memory.oom.group", 1)
            if limits.pids is not None:
                procfs.write(f"{path}/pids.max", limits.pids)
            if "cpu" not in self.missing:
                self._divide_cpu(path, limits, cpu)
            write_io_weight(path if self.io_place is not None else None, limits.io_weight)
        except OSError:
            job.remove()
            raise
        return job

    @staticmethod
    def _divide_cpu(path: str, limits: Limits, cpu: CpuMode) -> None:
        if cpu is CpuMode.CAP:
            quota = limits.cpus * base.PERIOD_MICROSECONDS
            procfs.write(f"{path}/cpu.max", f"{quota} {base.PERIOD_MICROSECONDS}")
        weight = cpu_weight(limits.cpus, cpu, limits.nice)
        if weight is not None:
            procfs.write(f"{path}/cpu.weight", weight)

    def job(self, name: str) -> V2Job | None:
        path = f"{self.place}/{name}"
        return V2Job(path) if os.path.isdir(path) else None

    def memory_exhausted(self) -> bool:
        """See :class:`.base.RunCgroup`: memory.events.local counts only what the limit of this cgroup caused."""
        return base.read_value(f"{self.place}/memory.events.local", "oom") > 0

    def release(self) -> None:
        """See :class:`.base.RunCgroup`. Leaves cgroups of others: a job may be about to enter one."""
        with suppress(OSError):
            os.rmdir(self.place)

    def remove(self) -> None:
        base.remove_tree(self.place)


def _io_bytes(path: str) -> tuple[int, int] | None:
    """Bytes read and written on all devices ("8:0 rbytes=1 wbytes=2 …" per line); None without the controller."""
    try:
        words = [word.partition("=") for word in base.read(path).split()]
    except OSError:
        return None
    read, written = (sum(int(v) for k, _, v in words if k == name) for name in ("rbytes", "wbytes"))
    return read, written


def _pressure(path: str) -> tuple[float, float, float] | None:
    """Seconds for which some process waited for memory, CPU, I/O: the totals of psi.rst; None where PSI is off."""
    totals = []
    for name in ("memory", "cpu", "io"):
        try:
            some = base.read(f"{path}/{name}.pressure").splitlines()[0]
            totals.append(int(some.rpartition("total=")[2]) / 1e6)
        except (OSError, IndexError, ValueError):
            return None
    return totals[0], totals[1], totals[2]


def hand_down(path: str) -> tuple[str, ...]:
    """Give the children of a cgroup its controllers, and return which of CONTROLLERS it lacks.

    Raises:
        OSError: if it lacks the controller of memory or of processes, or the kernel refuses.
    """
    available = base.read(f"{path}/cgroup.controllers").split()
    missing = tuple(c for c in CONTROLLERS if c not in available)
    if needed := [c for c in missing if c != "cpu"]:
        raise OSError(errno.EOPNOTSUPP, f"the controllers {', '.join(needed)} are not delegated to {path}")
    # io counts bytes and divides by weight; without it Forge counts with getrusage(2).
    wanted = [c for c in (*CONTROLLERS, "io") if c in available]
    procfs.write(f"{path}/cgroup.subtree_control", " ".join(f"+{c}" for c in wanted))
    return missing


class DelegatedRun(V2Run):
    """The cgroup of a run below a delegated one, whose own processes moved into a leaf, :data:`LEAF`."""

    def release(self) -> None:
        super().release()
        _step_back(os.path.dirname(self.place))

    def remove(self) -> None:
        """See :class:`.base.RunCgroup`; the last of several runs moves the processes back."""
        super().remove()
        _step_back(os.path.dirname(self.place))


LEAF = "forge-rest"
_ROUNDS = 10


def open_delegated(
    own: str, name: str, memory_bytes: int, pids: int | None, priority: Priority = ORDINARY
) -> RunCgroup:
    """Make the cgroup of a run below a cgroup that was delegated to this user together with its processes.

    A cgroup that hands controllers down may hold no process itself (cgroup-v2.rst, "No Internal Process Constraint").
    So all its processes (of a container, of a batch slot) move into a leaf. They stay under its limits.

    Args:
        own: the cgroup of this process: the delegated one, or its leaf if another run did this before.
        name: of the cgroup of the run; the other arguments are as for :class:`V2Run`.

    Raises:
        OSError: if the kernel refuses; nothing has changed then.
    """
    parent = os.path.dirname(own) if os.path.basename(own) == LEAF else own
    if parent == own:
        _step_aside(own)
    try:
        hand_down(parent)
        return DelegatedRun(f"{parent}/{name}", memory_bytes, pids, priority)
    except OSError:
        _step_back(parent)
        raise


def _step_aside(parent: str) -> None:
    leaf = f"{parent}/{LEAF}"
    with suppress(FileExistsError):
        os.mkdir(leaf)
    try:
        _move_all(parent, leaf)
    except OSError:
        _step_back(parent)
        raise


def _step_back(parent: str) -> None:
    """Undo :func:`_step_aside`, if no other run is below ``parent``."""
    leaf = f"{parent}/{LEAF}"
    with suppress(OSError):
        if [entry.name for entry in os.scandir(parent) if entry.is_dir()] != [LEAF]:
            return
        enabled = base.read(f"{parent}/cgroup.subtree_control").split()
        if enabled:
            procfs.write(f"{parent}/cgroup.subtree_control", " ".join(f"-{c}" for c in enabled))
        _move_all(leaf, parent)
        os.rmdir(leaf)


def _move_all(source: str, target: str) -> None:
    for _ in range(_ROUNDS):  # again: processes may fork meanwhile
        pids = base.read(f"{source}/cgroup.procs").split()
        if "0" in pids:
            raise OSError(errno.EPERM, f"processes of another PID namespace are in {source}")
        if not pids:
            break
        for pid in pids:
            with suppress(ProcessLookupError):
                procfs.write(f"{target}/cgroup.procs", pid)
