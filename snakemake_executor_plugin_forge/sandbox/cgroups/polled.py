"""Limits without a cgroup: Forge polls /proc for a job's usage, and kills a job that exceeds its limit.

This is the last rung of the ladder: for an ordinary user on a host that delegates no cgroup, and for read-only cgroup
file systems. Records and messages call these limits *soft*, because they are weaker:

* Forge polls memory, so a job can exceed its limit between two samples. The pause between them depends on how soon the
  job could reach its limit.
* The kernel limits processes where it counts RLIMIT_NPROC for each user namespace (Linux 5.14 and newer); Forge polls
  their number elsewhere.
* Nothing limits CPU time, nor what all jobs use together. A nice value holds: see sandbox/cgroups/weights.py.

A supervisor has one job at a time: all processes below it are the job's. Sources: proc_pid_statm(5), proc_pid_smaps(5),
proc_pid_stat(5), getrlimit(2).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from ...kernel import process_tree, procfs, shared_memory
from ...spec.host import POLLED
from ...spec.job import CpuMode, Limits
from .base import Counters, JobCgroup, Remains, RunCgroup, Sample, kill_all
from .weights import Sessions

PLACE = "polled through /proc"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.02, 1.0
_SLOWEST_GROWTH = 256 * 2**20  # bytes a second that any job may reach
_WALK_SECONDS = 0.01 / 2**30  # for each resident byte whose page tables the kernel walks: measured
_WALK_SHARE = 0.01  # of the time, at most, while the limit is not near


@dataclass(slots=True)
class PolledRun(RunCgroup):
    """Polls each job by itself, and has no limit for all of them together."""

    memory_bytes: int  # no job may use more, whatever it declares
    namespaced: bool  # /dev/shm is the job's own
    version: str = POLLED
    place: str = PLACE
    missing: tuple[str, ...] = ("cpu", "run")
    io_place: str | None = None

    def create_job(self, name: str, limits: Limits, cpu: CpuMode) -> PolledJob:
        del name, cpu
        memory = self.memory_bytes if limits.memory_bytes is None else min(limits.memory_bytes, self.memory_bytes)
        has_own = limits.memory_bytes is not None
        return PolledJob(os.getpid(), memory, limits.pids, self.namespaced, own_limit=has_own, nice=limits.nice)

    def job(self, name: str) -> Orphans:
        del name
        return Orphans(os.getppid())


class PolledJob(JobCgroup):
    """The processes below one supervisor."""

    def __init__(
        self, supervisor: int, memory_bytes: int, pids: int | None, namespaced: bool, *, own_limit: bool, nice: int
    ) -> None:
        self._supervisor = supervisor
        self._memory_bytes = memory_bytes
        self._own_limit = own_limit  # else it is the run's
        self._pids = pids
        self._namespaced = namespaced
        self._holder: int | None = None
        self._first: frozenset[int] | None = None  # the child that somebody else reaps; None: others reap orphans, too
        self._reaped = (0.0, 0.0)  # seconds of CPU time of orphans, as users and in the kernel
        self._sessions = Sessions(nice)
        self._last = Counters(polled=True)
        self._memory_now = 0
        self._walked_at = float("-inf")
        self._walk_seconds = 0.0  # of CPU time that the last walk took
        self._besides = 0  # resident bytes that were no memory of the job's at that time, less what was not resident
        self._sampled_at = time.monotonic()
        self._growth = float(_SLOWEST_GROWTH)

    def open_procs(self, holder: int | None) -> tuple[int, ...]:
        self._holder = holder
        if not self._namespaced and self._supervisor == os.getpid():
            self._first = frozenset(process_tree.children(self._supervisor))  # which has no children of its own yet
        return ()

    def pids(self) -> list[int]:
        """See :class:`.base.JobCgroup`. Takes note of the end of processes that the supervisor inherited."""
        return [
            pid
            for pid in process_tree.descendants(self._supervisor)
            if pid != self._holder and not process_tree.is_dead(pid)
        ]

    def sample(self) -> Sample:
        """See :class:`.base.JobCgroup`. Compares the usage with the limits, too."""
        last = self._last
        self._reap()
        everything = process_tree.descendants(self._supervisor)
        job = [pid for pid in everything if pid != self._holder]
        self._sessions.lower(job)
        threads = sum(map(_threads, job))
        memory = self._memory(job)
        now = time.monotonic()
        if memory > self._memory_now and now > self._sampled_at:
            self._growth = max(self._growth, (memory - self._memory_now) / (now - self._sampled_at))
        self._memory_now, self._sampled_at = memory, now
        too_large = memory > self._memory_bytes
        too_many = self._pids is not None and threads >= self._pids
        times = [_cpu_seconds(pid) for pid in everything]
        user, system = (sum((t[i] for t in times), self._reaped[i]) for i in (0, 1))
        if user + system < last.cpu_seconds:  # a process has ended that nobody waited for
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

    def _reap(self) -> None:
        """Reap the orphans that this supervisor has inherited: zombies count as processes, for the job and the user."""
        if self._first is not None:
            user, system = process_tree.reap_orphans(self._first)
            self._reaped = self._reaped[0] + user, self._reaped[1] + system

    def counters(self) -> Counters:
        """See :class:`.base.JobCgroup`: the peaks of all samples, which stay when the job is gone."""
        return self._last

    def kill(self, others: list[int]) -> None:
        kill_all([*self.pids(), *others])

    def _memory(self, job: list[int]) -> int:
        """Bytes that the kernel cannot reclaim: anonymous memory, and shared memory once, mapped or not.

        Resident memory is quick to read, and never less of what is mapped: every process counts what it shares, and
        program files. How much it differs from the job's memory takes a walk through page tables and descriptors. Forge
        makes one whenever one of both is over the limit, and otherwise as often as its cost allows, which for a small
        job is at every sample.
        """
        own = self._with_memory_of_their_own(job)
        resident = sum(map(_resident_bytes, own))
        now = time.monotonic()
        enough = max(resident * _WALK_SECONDS, self._walk_seconds) / _WALK_SHARE
        estimate = max(0, resident - self._besides)
        if max(resident, estimate) <= self._memory_bytes and now - self._walked_at < enough:
            return estimate
        begin = time.thread_time()
        anonymous, mapped = 0, 0
        for pid in own:
            private, shared = _proportional_bytes(pid)
            anonymous, mapped = anonymous + private, mapped + shared
        memory = anonymous + max(mapped, self._shared_bytes(own))
        self._walk_seconds = time.thread_time() - begin
        self._walked_at, self._besides = now, resident - memory
        return memory

    def _shared_bytes(self, own: list[int]) -> int:
        """Bytes of shared memory, whether a process has them mapped or not."""
        if not self._namespaced:  # /dev/shm and segments are the host's
            return shared_memory.memfd_bytes(own)
        segments = shared_memory.segment_bytes(own[-1]) if own else 0
        return shared_memory.memfd_bytes(own) + shared_memory.tmpfs_bytes(own) + segments

    def _with_memory_of_their_own(self, job: list[int]) -> list[int]:
        """Leave out a child that the holder is starting: it has the holder's memory until it executes its program.

        That memory is Forge's (vfork(2), in posix_spawn), and the kernel shows no details of it.
        """
        if self._holder is None:
            return job
        holders = _statm(self._holder)
        return [pid for pid in job if (own := _statm(pid)) and own != holders]

    def pause_seconds(self, usual: float) -> float:
        """See :class:`.base.JobCgroup`: half the time to its limit, if it grew as fast as it ever has."""
        headroom = max(0, self._memory_bytes - self._memory_now)
        soonest = headroom / self._growth / 2
        return max(_MIN_PAUSE_SECONDS, min(usual, soonest, _MAX_PAUSE_SECONDS))


class Orphans(Remains):
    """The processes that dead supervisors have left behind."""

    def __init__(self, pool: int) -> None:
        self._pool = pool

    def pids(self) -> list[int]:
        """Living ones."""
        return process_tree.orphans(self._pool)


def _statm(pid: int) -> bytes:
    """Sizes in pages, from proc_pid_statm(5); empty if the process has ended."""
    try:
        return procfs.read(f"/proc/{pid}/statm")
    except OSError:
        return b""


def _resident_bytes(pid: int) -> int:
    sizes = _statm(pid).split()
    return int(sizes[1]) * _PAGE if sizes else 0


def _proportional_bytes(pid: int) -> tuple[int, int]:
    """Anonymous and shared memory, with shared pages divided among their users; resident memory if that is hidden."""
    try:
        text = procfs.read(f"/proc/{pid}/smaps_rollup")
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
        return int(process_tree.stat(pid)[17])
    except (OSError, IndexError):
        return 0


def _cpu_seconds(pid: int) -> tuple[float, float]:
    """CPU time as a user and in the kernel, of a process and of the children that it has waited for."""
    try:
        user, system, children_user, children_system = map(int, process_tree.stat(pid)[11:15])
    except (OSError, ValueError):
        return 0.0, 0.0
    return (user + children_user) / _TICK, (system + children_system) / _TICK
