"""The usage of one attempt: sampled while it runs, counted by the kernel until its end."""

from __future__ import annotations

import resource

from ..record.benchmark import Figures, improve
from ..sandbox.cgroups.base import Counters, Sample
from ..sandbox.result import Result
from ..spec.outcome import anon_peak
from ..spec.verdict import Usage

_RUSAGE_BLOCK = 512  # of ru_inblock and ru_oublock: task_io_get_inblock() in include/linux/task_io_accounting_ops.h
_MAXRSS_NOISE_KB = 4096  # resident pages are counted per CPU: lib/percpu_counter.c


def own_peak_kb(maxrss: int, started_by: int) -> int:
    """Return a process' own peak of resident memory in KiB, or 0 if it only inherited the peak of its parent.

    A process begins with the peak of the process that forked it, and keeps it in exec (setmax_mm_hiwater_rss() in
    fs/exec.c of Linux), so that only a higher peak says anything of the process itself.

    Args:
        maxrss: ru_maxrss of getrusage(2): of the process, or the highest of several.
        started_by: ru_maxrss of the process that forked it. This process must be a fork itself, as those of Forge
            are: a program inherits the peak of whoever started it once more, but its children do not.
    """
    return maxrss if maxrss > started_by + _MAXRSS_NOISE_KB else 0


class UsageTally:
    """The peaks of one attempt that only samples show, and what the kernel says of its first process at its end."""

    def __init__(self) -> None:
        self.rusage: resource.struct_rusage | None = None  # of the process and the children that it waited for
        self._anon_peak = 0
        self._unshared_peak = 0  # of that, without shared memory
        self._pids_peak = 0

    def add(self, sample: Sample) -> None:
        """Take a sample into account."""
        self._anon_peak = max(self._anon_peak, sample.memory_anon_bytes)
        self._unshared_peak = max(self._unshared_peak, sample.memory_anon_bytes - sample.memory_shared_bytes)
        self._pids_peak = max(self._pids_peak, sample.pids)

    def usage(self, counters: Counters, said: Result, scratch_peak_bytes: int, own_processes: int) -> Usage:
        """Return what the attempt has used.

        Args:
            counters: of its cgroup, when everything was dead.
            own_processes: how many processes of Forge are counted as the job's.
        """
        largest, read, written = self._by_process(said)
        in_cgroup = counters.io_bytes or (0, 0)
        memory, cpu, io = counters.pressure_seconds or (None, None, None)
        return Usage(
            # What was polled can have missed a peak that the kernel knows of the largest process.
            memory_peak_bytes=max(counters.memory_peak_bytes, largest if counters.polled else 0),
            memory_anon_peak_bytes=anon_peak(
                max(self._anon_peak, counters.memory_anon_bytes),
                counters.memory_peak_bytes,
                counters.memory_file_bytes,
                counters.memory_kernel_bytes,
                largest,
            ),
            cpu_seconds=round(counters.cpu_seconds, 6),
            io_read_bytes=max(read, in_cgroup[0]),
            io_write_bytes=max(written, in_cgroup[1]),
            pids_peak=max(0, max(self._pids_peak, counters.pids_peak) - own_processes),
            scratch_peak_bytes=scratch_peak_bytes,
            cpu_user_seconds=round(counters.cpu_user_seconds, 6),
            cpu_system_seconds=round(counters.cpu_system_seconds, 6),
            throttled_seconds=round(counters.throttled_seconds, 6),
            throttled_periods=counters.throttled_periods,
            memory_pressure_seconds=memory,
            cpu_pressure_seconds=cpu,
            io_pressure_seconds=io,
        )

    def _by_process(self, said: Result) -> tuple[int, int, int]:
        """Return the largest process' peak of resident memory, bytes read and written: getrusage(2) of the children."""
        if said.children is not None:
            largest, blocks_read, blocks_written = map(int, said.children)
        elif self.rusage is not None:
            usage = self.rusage
            largest = own_peak_kb(usage.ru_maxrss, started_by=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            blocks_read, blocks_written = usage.ru_inblock, usage.ru_oublock
        else:
            return 0, 0, 0
        return largest * 1024, blocks_read * _RUSAGE_BLOCK, blocks_written * _RUSAGE_BLOCK

    def improve_benchmark(self, path: str, said: Result) -> None:
        """Write the kernel's figures into the rule's benchmark file, where they are better than polled figures.

        Raises:
            OSError: if it cannot be changed.
        """
        if said.measured is None:
            return
        largest, cpu_seconds, blocks_read, blocks_written, own_bytes = said.measured
        improve(
            path,
            Figures(
                max_rss_bytes=int(max(largest * 1024, self._unshared_peak - own_bytes)),
                cpu_seconds=cpu_seconds,
                io_read_bytes=int(blocks_read) * _RUSAGE_BLOCK,
                io_write_bytes=int(blocks_written) * _RUSAGE_BLOCK,
            ),
        )
