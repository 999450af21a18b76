"""Control groups: a common face for v1 and v2. All access to cgroup files goes through here.

One group for the run, below the cgroup that Snakemake itself is in (so that no outer limit is escaped), and one for
each job below that. Sources: cgroups(7), Documentation/admin-guide/cgroup-v1/, cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from ..model import CpuMode, Limits

PERIOD_MICROSECONDS = 100_000
"""CFS bandwidth period: the kernel's default."""


@dataclass(frozen=True, slots=True)
class Counters:
    """The kernel's counters of one job's cgroup."""

    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    memory_anon_bytes: int = 0
    cpu_seconds: float = 0.0
    pids_peak: int = 0
    oom_kills: int = 0
    pids_hits: int = 0
    over: bool = False  # beyond a limit that nobody but Forge enforces: see soft.py


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

    def counters(self) -> Counters:
        """Read the counters now."""

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for memory."""

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

    def create_job(self, name: str, limits: Limits, cpu: CpuMode) -> JobCgroup:
        """Make the cgroup of a job with its limits.

        Raises:
            OSError: naming the file and the value that the kernel refused.

        """

    def job(self, name: str) -> Remains | None:
        """The cgroup of a job that another process made; None if it is gone."""

    def oom_kills(self) -> int:
        """How many processes of the whole run were killed because the *run's* limit was reached."""

    def remove(self) -> None:
        """Remove it with what is left in it."""


def read(path: str) -> str:
    """A cgroup file's content."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def write(path: str, value: str | int) -> None:
    """Write one value. os.write, because a buffered file hides the errno until garbage collection."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        raise OSError(error.errno, f"cannot write {value} to {path}: {error.strerror}") from error
    finally:
        os.close(fd)


def open_door(path: str) -> int:
    """See :meth:`JobCgroup.open_doors`."""
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def read_number(path: str) -> int:
    """A file with one number; 0 if it is missing or says "max"."""
    try:
        return int(read(path))
    except (OSError, ValueError):
        return 0


def read_table(path: str) -> dict[str, int]:
    """A flat-keyed file ("name number" per line); empty if it is missing."""
    try:
        lines = read(path).splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def walk_up(path: str) -> Iterable[str]:
    """All directories below ``path``, deepest first, then itself."""
    for directory, _, _ in os.walk(path, topdown=False):
        yield directory


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


def member_pids(path: str) -> list[int]:
    """The processes of a cgroup and of all below it."""
    found: list[int] = []
    try:
        childless = os.stat(path).st_nlink <= 2  # a directory has a link from each of its subdirectories
    except FileNotFoundError:
        return found
    for directory in (path,) if childless else walk_up(path):
        with suppress(OSError):
            found += [int(p) for p in read(f"{directory}/cgroup.procs").split()]
    return found
