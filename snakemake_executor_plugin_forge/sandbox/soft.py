"""Limits without a cgroup: what a job uses is looked up in /proc, and a job that is beyond its limit is killed.

The same face as :mod:`.cgroup`. This is the rung of the ladder for an ordinary user on a host that delegates no cgroup,
and for read-only cgroup file systems. It is called *soft* everywhere, because it is weaker:

* memory is polled; a job can be beyond its limit between two looks. The time between them depends on how soon it could
  get there;
* processes are limited by the kernel where it counts RLIMIT_NPROC for each user namespace (Linux 5.14 and newer), and
  polled elsewhere;
* CPU time is not limited, nor is the sum of what all jobs use. A nice value holds: see sessions.py.

A supervisor has one job at a time: the job is what is below the supervisor. Sources: proc_pid_statm(5),
proc_pid_smaps(5), proc_pid_stat(5), getrlimit(2).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass

from ..model import CpuMode, Limits
from . import pseudofile, sweep
from .cgroup import Counters, Sample, kill_all
from .sessions import Sessions

PLACE = "polled through /proc"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.02, 1.0
_SLOWEST_GROWTH = 256 * 2**20  # bytes a second: what any job is expected to be able to
_SHM = "/dev/shm"  # noqa: S108
_LOOK_SECONDS = 0.01 / 2**30  # for each resident byte, of walking page tables: measured
_LOOK_SHARE = 0.01  # of the time, at most, as long as the limit is not near


@dataclass(slots=True)
class SoftRun:
    """Makes the watchers of jobs; has no limit for all of them together."""

    memory_bytes: int  # no job may use more, whatever it declares
    namespaced: bool  # /dev/shm is the job's own
    version: str = "soft"
    place: str = PLACE
    missing: tuple[str, ...] = ("cpu", "run")
    io_place: str | None = None

    def create_job(self, name: str, limits: Limits, cpu: CpuMode) -> SoftJob:
        """See :class:`.cgroup.RunCgroup`."""
        del name, cpu
        memory = self.memory_bytes if limits.memory_bytes is None else min(limits.memory_bytes, self.memory_bytes)
        has_own = limits.memory_bytes is not None
        return SoftJob(os.getpid(), memory, limits.pids, self.namespaced, own_limit=has_own, nice=limits.nice)

    def prepare(self) -> None:
        """See :class:`.cgroup.RunCgroup`: nothing to be made."""

    def job(self, name: str) -> Orphans:
        """See :class:`.cgroup.RunCgroup`: after the death of its supervisor."""
        del name
        return Orphans(os.getppid())

    def memory_exhausted(self) -> bool:
        """See :class:`.cgroup.RunCgroup`: nothing limits the sum."""
        return False

    def release(self) -> None:
        """See :class:`.cgroup.RunCgroup`: nothing was made."""

    def remove(self) -> None:
        """Nothing is left behind in /proc."""


class SoftJob:
    """What is below one supervisor."""

    def __init__(
        self, supervisor: int, memory_bytes: int, pids: int | None, namespaced: bool, *, own_limit: bool, nice: int
    ) -> None:
        self._supervisor = supervisor
        self._memory_bytes = memory_bytes
        self._own_limit = own_limit  # else it is the run's
        self._pids = pids
        self._namespaced = namespaced
        self._holder: int | None = None
        self._sessions = Sessions(nice)
        self._last = Counters(polled=True)
        self._memory_now = 0
        self._looked_closely_at = float("-inf")
        self._besides = 0  # of what is resident, what was no memory of the job's at that time
        self._looked_at = time.monotonic()
        self._growth = float(_SLOWEST_GROWTH)

    def open_doors(self, holder: int | None) -> tuple[int, ...]:
        """See :class:`.cgroup.JobCgroup`: there is nothing to enter."""
        self._holder = holder
        return ()

    def pids(self) -> list[int]:
        """See :class:`.cgroup.JobCgroup`. Takes note of the end of processes that the supervisor inherited."""
        return [pid for pid in sweep.descendants(self._supervisor) if pid != self._holder and not sweep.is_dead(pid)]

    def sample(self) -> Sample:
        """See :class:`.cgroup.JobCgroup`: look, and compare with the limits."""
        last = self._last
        everything = sweep.descendants(self._supervisor)
        job = [pid for pid in everything if pid != self._holder]
        self._sessions.lower(job)
        threads = sum(map(_threads, job))
        memory = self._memory(job)
        now = time.monotonic()
        if memory > self._memory_now and now > self._looked_at:
            self._growth = max(self._growth, (memory - self._memory_now) / (now - self._looked_at))
        self._memory_now, self._looked_at = memory, now
        too_large = memory > self._memory_bytes
        too_many = self._pids is not None and threads >= self._pids
        times = [_cpu_seconds(pid) for pid in everything]
        user, system = sum((t[0] for t in times), 0.0), sum((t[1] for t in times), 0.0)
        if user + system < last.cpu_seconds:  # one has ended that nobody waited for
            user, system = last.cpu_user_seconds, last.cpu_system_seconds
        self._last = Counters(
            memory_peak_bytes=max(last.memory_peak_bytes, memory),
            memory_anon_bytes=memory,
            cpu_seconds=user + system,
            cpu_user_seconds=user,
            cpu_system_seconds=system,
            pids_peak=max(last.pids_peak, threads),
            oom_kills=last.oom_kills or int(too_large),
            memory_exhausted=last.memory_exhausted or (too_large and self._own_limit),
            pids_hits=last.pids_hits + int(too_many),
            polled=True,
        )
        return Sample(
            memory_anon_bytes=memory,
            memory_shared_bytes=0,
            pids=threads,
            oom_kills=self._last.oom_kills,
            empty=False,
            over=too_large or (self._pids is not None and threads > self._pids),
        )

    def counters(self) -> Counters:
        """See :class:`.cgroup.JobCgroup`: peaks are those of all looks, and stay when the job is gone."""
        return self._last

    def kill(self, others: list[int]) -> None:
        """See :class:`.cgroup.JobCgroup`."""
        kill_all([*self.pids(), *others])

    def _memory(self, job: list[int]) -> int:
        """Bytes that cannot be given up: anonymous memory, and shared memory once, mapped or not.

        What is resident is looked at first: it is more, as every process counts what it shares, and program files, and
        quickly read. How much more is found out by walking page tables: always where the limit seems to be exceeded,
        and else as often as the price allows, which for a small job is at every look.
        """
        shm = self._shm_bytes(job) if self._namespaced else 0
        own = self._with_memory_of_their_own(job)
        resident = sum(map(_resident_bytes, own)) + shm
        now = time.monotonic()
        enough = resident * _LOOK_SECONDS / _LOOK_SHARE
        if resident <= self._memory_bytes and now - self._looked_closely_at < enough:
            return max(0, resident - self._besides)
        anonymous, mapped = 0, 0
        for pid in own:
            private, shared = _proportional_bytes(pid)
            anonymous, mapped = anonymous + private, mapped + shared
        memory = anonymous + max(mapped, shm)
        self._looked_closely_at, self._besides = now, max(0, resident - memory)
        return memory

    def _with_memory_of_their_own(self, job: list[int]) -> list[int]:
        """Without a child of the holder that is being started: it has its parent's memory until it is another program.

        That is Forge's (vfork(2), in posix_spawn), and does not let itself be looked at more closely.
        """
        if self._holder is None:
            return job
        holders = _statm(self._holder)
        return [pid for pid in job if (own := _statm(pid)) and own != holders]

    def _shm_bytes(self, job: list[int]) -> int:
        """What is in the job's /dev/shm, seen through the root directory of any of its processes."""
        for pid in reversed(job):  # the first ones are Forge's own, and do not let themselves be looked at
            with suppress(OSError):
                root = f"/proc/{pid}/root{_SHM}"
                if os.stat(root).st_dev != os.stat(_SHM).st_dev:
                    room = os.statvfs(root)
                    return (room.f_blocks - room.f_bfree) * room.f_frsize
        return 0

    def pause_seconds(self, usual: float) -> float:
        """See :class:`.cgroup.JobCgroup`.

        Half the time in which it would reach its limit if it grew as fast as it ever has.
        """
        headroom = max(0, self._memory_bytes - self._memory_now)
        soonest = headroom / self._growth / 2
        return max(_MIN_PAUSE_SECONDS, min(usual, soonest, _MAX_PAUSE_SECONDS))

    def missing(self) -> str | None:
        """See :class:`.cgroup.JobCgroup`."""
        return None

    def remove(self) -> bool:
        """See :class:`.cgroup.JobCgroup`."""
        return True


class Orphans:
    """What dead supervisors have left behind: enough of the face of a job to bury it."""

    def __init__(self, pool: int) -> None:
        self._pool = pool

    def pids(self) -> list[int]:
        """Living ones."""
        return sweep.orphans(self._pool)

    def remove(self) -> bool:
        """Nothing is left in /proc."""
        return True


def _statm(pid: int) -> bytes:
    """Sizes in pages; nothing if it has ended."""
    try:
        return pseudofile.read(f"/proc/{pid}/statm")
    except OSError:
        return b""


def _resident_bytes(pid: int) -> int:
    sizes = _statm(pid).split()
    return int(sizes[1]) * _PAGE if sizes else 0


def _proportional_bytes(pid: int) -> tuple[int, int]:
    """Anonymous and shared memory; shared pages are divided by those who share them. Else what is resident."""
    try:
        text = pseudofile.read(f"/proc/{pid}/smaps_rollup")
    except OSError:
        return _resident_bytes(pid), 0
    table = {line.split(b":")[0]: line for line in text.splitlines()[1:]}

    def size(name: bytes) -> int:
        return int(table[name].split()[1]) * 1024

    try:
        return size(b"Pss_Anon"), size(b"Pss_Shmem")
    except KeyError:  # Linux before 5.9
        return (size(b"Pss") if b"Pss" in table else _resident_bytes(pid)), 0


def _threads(pid: int) -> int:
    try:
        return int(sweep.stat(pid)[17])
    except (OSError, IndexError):
        return 0


def _cpu_seconds(pid: int) -> tuple[float, float]:
    """As a user and in the kernel: its own, and that of its children that it has waited for."""
    try:
        user, system, children_user, children_system = map(int, sweep.stat(pid)[11:15])
    except (OSError, ValueError):
        return 0.0, 0.0
    return (user + children_user) / _TICK, (system + children_system) / _TICK
