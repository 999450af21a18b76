"""Control groups: the interface that v1, v2 and polling implement, and what they have in common.

A run has one cgroup, below the one that Snakemake is in (so that it escapes no outer limit), and each job has one below
that. Sources: cgroups(7), Documentation/admin-guide/cgroup-v1/, cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from ...kernel import procfs
from ...kernel.tree import walk
from ...spec.job import CpuMode, Limits

FILE_SYSTEM = "/sys/fs/cgroup"
"""Mount point of the cgroup file system: cgroups(7)."""

PERIOD_MICROSECONDS = 100_000
"""CFS bandwidth period: the kernel's default."""

_UNLIMITED = 1 << 60  # no host has so much of anything


@dataclass(frozen=True, slots=True)
class Sample:
    """Usage of a running job, as often as the supervisor asks: it costs as few reads as possible."""

    memory_anon_bytes: int  # anonymous and shared memory
    memory_shared_bytes: int  # the shared part of it
    pids: int  # its peak where the kernel keeps one, else the number now
    oom_kills: int
    empty: bool  # the cgroup has no process: someone moved them out, or removed it
    over: bool = False  # the job exceeds a limit that only Forge enforces: see sandbox/cgroups/polled.py


@dataclass(frozen=True, slots=True)
class Counters:
    """The kernel's counters of one job's cgroup, at the end of the job. None: this host has no such counter."""

    memory_peak_bytes: int = 0
    memory_anon_bytes: int = 0
    memory_file_bytes: int = 0  # page cache without shared memory
    memory_kernel_bytes: int = 0  # page tables, stacks and the like; v1: their peak
    cpu_seconds: float = 0.0
    cpu_user_seconds: float = 0.0
    cpu_system_seconds: float = 0.0
    throttled_seconds: float = 0.0
    throttled_periods: int = 0
    pids_peak: int = 0
    oom_kills: int = 0
    pids_hits: int = 0
    memory_exhausted: bool = False  # it reached its own memory limit, and the kernel could reclaim nothing
    io_bytes: tuple[int, int] | None = None  # read, written
    pressure_seconds: tuple[float, float, float] | None = None  # memory, CPU, I/O: some process waited for it
    complete: bool = True  # False: the cgroup is gone or cannot be read
    polled: bool = False  # no kernel counters: peaks are those of the samples


class Remains(Protocol):
    """The remains of a job whose supervisor died."""

    def pids(self) -> list[int]:
        """The processes in it and below it, in this process's PID namespace."""

    def remove(self) -> bool:
        """Remove it and what is below; False if processes are left. Without a cgroup there is nothing to remove."""
        return True


class JobCgroup(Remains, Protocol):
    """The cgroup of one job."""

    def open_procs(self, holder: int | None) -> tuple[int, ...]:
        """Open the files to which a process (of one thread, as every job is when it enters) writes ``0`` to move in.

        A process has to move in before exec, or the kernel charges its memory elsewhere.

        Args:
            holder: a process that holds the job's PID namespace and is no part of the job.
        """

    def sample(self) -> Sample:
        """Read the usage while the job runs."""

    def counters(self) -> Counters:
        """Read all counters; at the end, before the cgroup is removed."""

    def kill(self, others: list[int]) -> None:
        """Send SIGKILL to every process in it and below it, and thaw frozen ones, so that the signal reaches them.

        Args:
            others: processes of the job that are not in the cgroup any more.
        """

    def pause_seconds(self, usual: float) -> float:
        """Return the seconds between two samples: as many as usual, where the kernel watches the limits."""
        return usual

    def missing(self) -> str | None:
        """A file without which its limits do not hold, if it is gone."""
        return None

    def keep_settings(self) -> None:
        """Keep its processes from changing settings of the kernel, where that can be: see :mod:`...kernel.bpf`."""
        return


class RunCgroup(Protocol):
    """The cgroup of the run: a parent for the cgroups of its jobs."""

    version: str
    place: str
    missing: tuple[str, ...]  # what it cannot limit, of "cpu" and "run"
    io_place: str | None  # its directory where weights for I/O are written: see sandbox/cgroups/weights.py

    def create_job(self, name: str, limits: Limits, cpu: CpuMode) -> JobCgroup:
        """Make the cgroup of a job with its limits.

        Raises:
            OSError: naming the file and the value that the kernel refused.
        """

    def prepare(self) -> None:
        """Do ahead of the next job what can be done without knowing it, where that takes time."""
        return

    def job(self, name: str) -> Remains | None:
        """The cgroup of a job that another process made; None if it is gone."""

    def memory_exhausted(self) -> bool:
        """Whether the whole run ever reached its memory limit, if it has one, and the kernel could reclaim nothing."""
        return False

    def release(self) -> None:
        """Remove what this process has made ahead and, if it is empty then, the whole: it makes no more jobs."""
        return

    def remove(self) -> None:
        """Remove it with what is left in it."""
        return


@dataclass(frozen=True, slots=True)
class CgroupMount:
    """A mounted cgroup hierarchy, as this process sees it."""

    version: int
    controllers: frozenset[str]
    own: str  # the directory of this process's cgroup
    mount_point: str


def cgroup_mounts(mountinfo: str, own_cgroups: str) -> list[CgroupMount]:
    """The cgroup hierarchies in /proc/self/mountinfo and /proc/self/cgroup: proc(5), cgroups(7). Pure."""
    own: dict[str, str] = {}
    for line in own_cgroups.splitlines():
        _, controllers, own_path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), own_path)
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, mount_point = left.split(" ")[3:5]
        names = frozenset(options.split(",")) if kind == "cgroup" else frozenset([""])
        path = next((own[name] for name in names if name in own), None)
        if path is None:
            continue
        inside = path.removeprefix(root) if root != "/" and (path + "/").startswith(root + "/") else path
        directory = os.path.normpath(f"{mount_point}/{inside}")
        found.append(CgroupMount(2 if kind == "cgroup2" else 1, names, directory, mount_point))
    return found


def mounts_of(pid: int | str = "self") -> list[CgroupMount]:
    """The cgroup hierarchies that this process sees, with the cgroup of a process in each.

    Raises:
        OSError: if the process is dead.
    """
    texts = (procfs.read_whole(path) for path in ("/proc/self/mountinfo", f"/proc/{pid}/cgroup"))
    return cgroup_mounts(*(text.decode("utf-8", "surrogateescape") for text in texts))


def read(path: str) -> str:
    """Read a cgroup file."""
    return procfs.read(path).decode()


def open_procs_file(path: str) -> int:
    """Open a cgroup file for writing; the job's command does not inherit the descriptor."""
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def read_number(path: str) -> int:
    """Read a file with one number; 0 if the file is missing or says "max"."""
    try:
        return int(read(path))
    except (OSError, ValueError):
        return 0


def read_limit(path: str) -> int | None:
    """Read a file with a limit; None if the file is missing or says that there is none.

    v1 says so with the largest possible number of pages.
    """
    value = read_number(path)
    return value if 0 < value < _UNLIMITED else None


def read_values(path: str, *names: str) -> list[int] | None:
    """Read values of a flat-keyed file ("name number" per line), in the order of ``names``; None if that is impossible.

    A missing value is 0. Only the asked lines are parsed: memory.stat has 40.
    """
    try:
        text = "\n" + read(path)
    except OSError:
        return None
    values = []
    for name in names:
        start = text.find(f"\n{name} ")
        number = text[start + len(name) + 2 :].split("\n", 1)[0] if start >= 0 else ""
        values.append(int(number) if number.isdigit() else 0)
    return values


def read_value(path: str, name: str) -> int:
    """Read one value of a flat-keyed file; 0 if it or the file is missing."""
    values = read_values(path, name)
    return values[0] if values else 0


def sample(memory_stat: str, names: tuple[str, str], pids: str, oom_kills: int) -> Sample:
    """Read what both versions have in the same form.

    Args:
        memory_stat: the file; ``names`` are its lines for anonymous and for shared memory.
        pids: the directory of the pids controller. pids.peak exists since Linux 6.1, in v1 since 6.11.
        oom_kills: which each version counts elsewhere.
    """
    anon, shared = read_values(memory_stat, *names) or (0, 0)
    current = read_number(f"{pids}/pids.current")
    return Sample(
        memory_anon_bytes=anon + shared,
        memory_shared_bytes=shared,
        pids=read_number(f"{pids}/pids.peak") or current,
        oom_kills=oom_kills,
        empty=current == 0,
    )


def walk_up(path: str) -> Iterable[str]:
    """All directories below ``path``, deepest first, then itself. Makes directories readable that a job has closed."""
    found = (here.path for here in walk(path, leave=True, open_up=True, lasting=True, quiet=True) if here.left)
    with suppress(OSError):  # removed meanwhile, and the way back is lost
        yield from found


def remove_tree(path: str) -> bool:
    """Remove a cgroup and its children, which a job may have made; False if one is still in use."""
    with suppress(OSError):
        os.rmdir(path)
        return True
    for directory in walk_up(path):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def remove_patiently(remove: Callable[[], bool]) -> bool:
    """Retry for a second: a dead process leaves its cgroup a moment after it was reaped."""
    for pause_milliseconds in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500):
        if pause_milliseconds:
            select.poll().poll(pause_milliseconds)
        if remove():
            return True
    return False


def spare_name(pid: int) -> str:
    """The name of the cgroup that the supervisor ``pid`` has made ahead."""
    return f"spare-{pid}"


def find(names: Collection[str], top: str = FILE_SYSTEM) -> Iterator[str]:
    """All cgroups with one of these names, in each hierarchy, without cgroups below another of them."""
    if not names:
        return
    for here in walk(top, quiet=True):
        yield from (f"{here.path}/{name}" for name in sorted(here.directories) if name in names)
        here.directories[:] = [name for name in here.directories if name not in names]


def member_pids(path: str) -> list[int]:
    """The processes of a cgroup and of all below it."""
    found: list[int] = []
    try:
        childless = os.stat(path).st_nlink <= 2  # a directory has a link from each of its subdirectories
    except OSError:
        return found
    for directory in (path,) if childless else walk_up(path):
        with suppress(OSError):
            found += map(int, procfs.read_whole(f"{directory}/cgroup.procs").split())
    return found


def kill_all(pids: list[int]) -> None:
    """Send SIGKILL to each process."""
    for pid in pids:
        if pid > 0:  # 0 is a process of another PID namespace: cgroups(7); to kill(2) it is this process' own group
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
