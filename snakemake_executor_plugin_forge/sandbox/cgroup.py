"""Control groups: a common face for v1 and v2. Written with :mod:`.pseudofile`.

One group for the run, below the cgroup that Snakemake itself is in (so that no outer limit is escaped), and one for
each job below that. Sources: cgroups(7), Documentation/admin-guide/cgroup-v1/, cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from ..model import CpuMode, Limits
from . import pseudofile

FILE_SYSTEM = "/sys/fs/cgroup"
"""Where it is mounted: cgroups(7)."""

PERIOD_MICROSECONDS = 100_000
"""CFS bandwidth period: the kernel's default."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is looked at again and again while a job runs: as few reads as possible."""

    memory_anon_bytes: int  # and shared memory
    memory_shared_bytes: int  # of that
    pids: int  # its peak where the kernel keeps one, else the number now
    oom_kills: int
    empty: bool  # no process is in it: someone moved them out, or removed it
    over: bool = False  # beyond a limit that nobody but Forge enforces: see soft.py


@dataclass(frozen=True, slots=True)
class Counters:
    """The kernel's counters of one job's cgroup, for the end of the job. None: this host has no such counter."""

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
    memory_exhausted: bool = False  # its own memory limit was reached, and nothing could be given up
    io_bytes: tuple[int, int] | None = None  # read, written
    pressure_seconds: tuple[float, float, float] | None = None  # memory, CPU, I/O: some process waited for it
    complete: bool = True  # False: the cgroup is gone or cannot be read
    polled: bool = False  # nothing counts: the peaks are those of the times when somebody looked


class Remains(Protocol):
    """What is left of a job whose supervisor died."""

    def pids(self) -> list[int]:
        """The processes in it and below it, in this process's PID namespace."""

    def remove(self) -> bool:
        """Remove it and what is below; False if processes are left."""


class JobCgroup(Protocol):
    """The cgroup of one job."""

    def open_doors(self, holder: int | None) -> tuple[int, ...]:
        """Descriptors to which a process (of one thread, as every job is when it enters) writes ``0`` to move in.

        To be done before exec, or memory is charged elsewhere.

        Args:
            holder: a process that holds the job's PID namespace and is no part of the job.
        """

    def pids(self) -> list[int]:
        """The processes in it and below it, in this process's PID namespace."""

    def sample(self) -> Sample:
        """Look while it runs."""

    def counters(self) -> Counters:
        """Read all counters; at the end, before it is removed."""

    def kill(self, others: list[int]) -> None:
        """SIGKILL to every process in it and below it, and thaw those that are frozen, so that it reaches them.

        Args:
            others: processes of the job that are not in it any more.

        """

    def pause_seconds(self, usual: float) -> float:
        """How long it may go unobserved."""

    def missing(self) -> str | None:
        """A file without which its limits do not hold, if it is gone."""

    def remove(self) -> bool:
        """Remove it and what is below; False if processes are left."""


class RunCgroup(Protocol):
    """The cgroup of the run: a parent for those of the jobs."""

    version: str
    place: str
    missing: tuple[str, ...]  # what it cannot limit, of "cpu" and "run"
    io_place: str | None  # its directory where weights for I/O are written: see weights.py

    def create_job(self, name: str, limits: Limits, cpu: CpuMode) -> JobCgroup:
        """Make the cgroup of a job with its limits.

        Raises:
            OSError: naming the file and the value that the kernel refused.

        """

    def prepare(self) -> None:
        """Do ahead of the next job what can be done without knowing it."""

    def job(self, name: str) -> Remains | None:
        """The cgroup of a job that another process made; None if it is gone."""

    def memory_exhausted(self) -> bool:
        """Whether the memory limit of the whole run was reached at some time, and nothing could be given up."""

    def release(self) -> None:
        """This process makes no more jobs: remove what it has made ahead and, if nobody else is in it, the whole."""

    def remove(self) -> None:
        """Remove it with what is left in it."""


def read(path: str) -> str:
    """A cgroup file's content."""
    return pseudofile.read(path).decode()


def open_door(path: str) -> int:
    """See :meth:`JobCgroup.open_doors`."""
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def read_number(path: str) -> int:
    """A file with one number; 0 if it is missing or says "max"."""
    try:
        return int(read(path))
    except (OSError, ValueError):
        return 0


def read_values(path: str, *names: str) -> list[int] | None:
    """Some of a flat-keyed file ("name number" per line), in the order of ``names``; None if it cannot be read.

    A value that is missing is 0. Not all of the file is parsed: memory.stat has 40 lines.
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
    """One value of a flat-keyed file; 0 if it or the file is missing."""
    values = read_values(path, name)
    return values[0] if values else 0


def look(memory_stat: str, names: tuple[str, str], pids: str, oom_kills: int) -> Sample:
    """What both versions read in the same way.

    Args:
        memory_stat: the file, of which ``names`` are the lines for anonymous and for shared memory.
        pids: the directory of the pids controller. pids.peak is there since Linux 6.1, in v1 since 6.11.
        oom_kills: what the version counts elsewhere.

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
    """All directories below ``path``, deepest first, then itself; opens up those that someone has closed."""
    try:
        with os.scandir(path) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except PermissionError:
        try:
            os.chmod(path, 0o700)
            with os.scandir(path) as entries:
                below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            below = []
    except OSError:
        return
    for directory in below:
        yield from walk_up(directory)
    yield path


def remove_tree(path: str) -> bool:
    """Remove a cgroup and its children (a job may have made some); False if one is still in use."""
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
    """Try again and again for a second: a dead process leaves its cgroup a moment after it was reaped."""
    for pause_milliseconds in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500):
        if pause_milliseconds:
            select.poll().poll(pause_milliseconds)
        if remove():
            return True
    return False


def spare_name(pid: int) -> str:
    """Of the cgroup that the supervisor ``pid`` has made ahead."""
    return f"spare-{pid}"


def find(names: Collection[str], top: str = FILE_SYSTEM) -> Iterator[str]:
    """All cgroups with one of these names, in each hierarchy; not those below another of them."""
    if not names:
        return
    for parent, directories, _ in os.walk(top):
        yield from (f"{parent}/{name}" for name in sorted(directories) if name in names)
        directories[:] = [name for name in directories if name not in names]


def member_pids(path: str) -> list[int]:
    """The processes of a cgroup and of all below it."""
    found: list[int] = []
    try:
        childless = os.stat(path).st_nlink <= 2  # a directory has a link from each of its subdirectories
    except OSError:
        return found
    for directory in (path,) if childless else walk_up(path):
        with suppress(OSError):
            found += [int(p) for p in _read_whole(f"{directory}/cgroup.procs").split()]
    return found


def _read_whole(path: str) -> str:
    """Of a file that may be longer than one read gives."""
    with open(path, encoding="ascii") as file:
        return file.read()


def kill_all(pids: list[int]) -> None:
    """SIGKILL to each."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
