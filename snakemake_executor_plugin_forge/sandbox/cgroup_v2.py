"""Control groups version 2: one directory per job. Documentation/admin-guide/cgroup-v2.rst of the kernel."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from ..model import ORDINARY, CpuMode, Limits, Priority
from . import cgroup, pseudofile
from .cgroup import Counters, RunCgroup, Sample
from .sessions import Sessions
from .weights import cpu_weight, write_io_weight

CONTROLLERS = ("memory", "cpu", "pids")


class V2Job:
    """The cgroup of one job."""

    def __init__(self, path: str, sessions: Sessions | None = None) -> None:
        """Args as below.

        Args:
            sessions: where its nice value is not in the weight of this cgroup.

        """
        self._path = path
        self._sessions = sessions

    def open_doors(self, holder: int | None) -> tuple[int, ...]:
        """See :class:`.cgroup.JobCgroup`."""
        del holder
        return (cgroup.open_door(f"{self._path}/cgroup.procs"),)

    def pids(self) -> list[int]:
        """See :class:`.cgroup.JobCgroup`."""
        return cgroup.member_pids(self._path)

    def sample(self) -> Sample:
        """See :class:`.cgroup.JobCgroup`."""
        if self._sessions is not None:
            self._sessions.lower(self.pids())
        return cgroup.look(f"{self._path}/memory.stat", ("anon", "shmem"), self._path, self._oom_kills())

    def counters(self) -> Counters:
        """See :class:`.cgroup.JobCgroup`. memory.peak is there since Linux 5.19, pids.peak since 6.1."""
        path = self._path
        stat = cgroup.read_values(f"{path}/memory.stat", "anon", "shmem", "file", "kernel")
        anon, shared, file, kernel = stat or (0, 0, 0, 0)
        cpu_names = ("usage_usec", "user_usec", "system_usec", "throttled_usec", "nr_throttled")
        total, user, system, throttled, periods = cgroup.read_values(f"{path}/cpu.stat", *cpu_names) or (0,) * 5
        peak = cgroup.read_number(f"{path}/memory.peak") or cgroup.read_number(f"{path}/memory.current")
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
            pids_peak=cgroup.read_number(f"{path}/pids.peak"),
            oom_kills=self._oom_kills(),
            pids_hits=cgroup.read_value(f"{path}/pids.events", "max"),
            memory_exhausted=cgroup.read_value(f"{path}/memory.events", "oom") > 0,
            io_bytes=_io_bytes(f"{path}/io.stat"),
            pressure_seconds=_pressure(path),
            complete=stat is not None,
        )

    def _oom_kills(self) -> int:
        return cgroup.read_value(f"{self._path}/memory.events", "oom_kill")

    def kill(self, others: list[int]) -> None:
        """See :class:`.cgroup.JobCgroup`. cgroup.kill is there since Linux 5.14; SIGKILL reaches frozen ones on v2."""
        try:
            pseudofile.write(f"{self._path}/cgroup.kill", 1)
        except OSError:
            cgroup.kill_all(self.pids())
        cgroup.kill_all(others)

    def pause_seconds(self, usual: float) -> float:
        """See :class:`.cgroup.JobCgroup`: the kernel watches."""
        return usual

    def missing(self) -> str | None:
        """See :class:`.cgroup.JobCgroup`: removed from outside, or its memory controller taken away."""
        path = f"{self._path}/memory.max"
        return None if os.path.exists(path) else path

    def remove(self) -> bool:
        """See :class:`.cgroup.JobCgroup`."""
        return cgroup.remove_tree(self._path)


class V2Run:
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
            if "io" in cgroup.read(f"{path}/cgroup.subtree_control").split():
                self.io_place = path
            pseudofile.write(f"{path}/memory.max", memory_bytes)
            if os.path.exists(f"{path}/memory.swap.max"):
                pseudofile.write(f"{path}/memory.swap.max", 0)
            pseudofile.write(f"{path}/pids.max", "max" if pids is None else pids)
            weight = cpu_weight(1, CpuMode.OFF, priority.nice)
            if weight is not None and "cpu" not in self.missing:
                pseudofile.write(f"{path}/cpu.weight", weight)
            write_io_weight(self.io_place, priority.io_weight)
        except OSError:
            cgroup.remove_tree(path)
            raise

    def create_job(self, name: str, limits: Limits, cpu: CpuMode) -> V2Job:
        """See :class:`.cgroup.RunCgroup`."""
        path = f"{self.place}/{name}"
        job = V2Job(path, Sessions(limits.nice) if limits.nice and "cpu" in self.missing else None)
        os.mkdir(path)
        try:
            if limits.memory_bytes is not None:
                pseudofile.write(f"{path}/memory.max", limits.memory_bytes)
            pseudofile.write(f"{path}/memory.oom.group", 1)
            if limits.pids is not None:
                pseudofile.write(f"{path}/pids.max", limits.pids)
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
            quota = limits.cpus * cgroup.PERIOD_MICROSECONDS
            pseudofile.write(f"{path}/cpu.max", f"{quota} {cgroup.PERIOD_MICROSECONDS}")
        weight = cpu_weight(limits.cpus, cpu, limits.nice)
        if weight is not None:
            pseudofile.write(f"{path}/cpu.weight", weight)

    def prepare(self) -> None:
        """See :class:`.cgroup.RunCgroup`: one directory is made quickly, and v2 does not let it be renamed."""

    def job(self, name: str) -> V2Job | None:
        """See :class:`.cgroup.RunCgroup`."""
        path = f"{self.place}/{name}"
        return V2Job(path) if os.path.isdir(path) else None

    def memory_exhausted(self) -> bool:
        """See :class:`.cgroup.RunCgroup`: memory.events.local counts what this very cgroup's limit caused."""
        return cgroup.read_value(f"{self.place}/memory.events.local", "oom") > 0

    def release(self) -> None:
        """See :class:`.cgroup.RunCgroup`. Not what others have made: a job may be about to enter it."""
        with suppress(OSError):
            os.rmdir(self.place)

    def remove(self) -> None:
        """See :class:`.cgroup.RunCgroup`."""
        cgroup.remove_tree(self.place)


def _io_bytes(path: str) -> tuple[int, int] | None:
    """Bytes read and written, summed over all devices ("8:0 rbytes=1 wbytes=2 …" per line); None without controller."""
    try:
        words = [word.partition("=") for word in cgroup.read(path).split()]
    except OSError:
        return None
    read, written = (sum(int(v) for k, _, v in words if k == name) for name in ("rbytes", "wbytes"))
    return read, written


def _pressure(path: str) -> tuple[float, float, float] | None:
    """Seconds for which some process waited for memory, CPU, I/O: the totals of psi.rst; None where that is off."""
    totals = []
    for name in ("memory", "cpu", "io"):
        try:
            some = cgroup.read(f"{path}/{name}.pressure").splitlines()[0]
            totals.append(int(some.rpartition("total=")[2]) / 1e6)
        except (OSError, IndexError, ValueError):
            return None
    return totals[0], totals[1], totals[2]


def hand_down(path: str) -> tuple[str, ...]:
    """Give the children of a cgroup its controllers, and return those of CONTROLLERS that it does not have.

    Raises:
        OSError: if it has not even those of memory and processes, or the kernel refuses.

    """
    available = cgroup.read(f"{path}/cgroup.controllers").split()
    missing = tuple(c for c in CONTROLLERS if c not in available)
    if needed := [c for c in missing if c != "cpu"]:
        raise OSError(errno.EOPNOTSUPP, f"the controllers {', '.join(needed)} are not delegated to {path}")
    # io counts, and divides by weight; without it getrusage(2) counts.
    wanted = [c for c in (*CONTROLLERS, "io") if c in available]
    pseudofile.write(f"{path}/cgroup.subtree_control", " ".join(f"+{c}" for c in wanted))
    return missing


class DelegatedRun(V2Run):
    """The cgroup of a run below a delegated one whose processes stepped aside into a leaf, :data:`LEAF`."""

    def release(self) -> None:
        """See :class:`.cgroup.RunCgroup`."""
        super().release()
        _step_back(os.path.dirname(self.place))

    def remove(self) -> None:
        """See :class:`.cgroup.RunCgroup`; the last one of several runs lets the processes step back."""
        super().remove()
        _step_back(os.path.dirname(self.place))


LEAF = "forge-rest"
_ROUNDS = 10


def open_delegated(
    own: str, name: str, memory_bytes: int, pids: int | None, priority: Priority = ORDINARY
) -> RunCgroup:
    """Make the cgroup of a run below a cgroup that was delegated to this user together with its processes.

    A cgroup that hands controllers down may hold no process itself (cgroup-v2.rst, "No Internal Process Constraint").
    So all that are in it (those of a container, of a batch slot) step aside into a leaf. They stay under its limits.

    Args:
        own: the cgroup that this process is in: the delegated one, or its leaf if another run did this before.

    Raises:
        OSError: where the kernel refuses; nothing has changed then.

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
        enabled = cgroup.read(f"{parent}/cgroup.subtree_control").split()
        if enabled:
            pseudofile.write(f"{parent}/cgroup.subtree_control", " ".join(f"-{c}" for c in enabled))
        _move_all(leaf, parent)
        os.rmdir(leaf)


def _move_all(source: str, target: str) -> None:
    for _ in range(_ROUNDS):  # again for those that were forked meanwhile
        pids = cgroup.read(f"{source}/cgroup.procs").split()
        if "0" in pids:
            raise OSError(errno.EPERM, f"processes of another PID namespace are in {source}")
        if not pids:
            break
        for pid in pids:
            with suppress(ProcessLookupError):
                pseudofile.write(f"{target}/cgroup.procs", pid)
