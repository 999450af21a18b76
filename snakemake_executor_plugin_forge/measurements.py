"""What one attempt has used: looked at while it runs, counted by the kernel until its end."""

from __future__ import annotations

import resource
from collections.abc import Mapping

from .judge import anon_peak
from .model import Usage
from .record.benchmark import Figures, improve
from .sandbox.cgroup import Counters, Sample

_RUSAGE_BLOCK = 512  # of ru_inblock and ru_oublock: task_io_get_inblock() in include/linux/task_io_accounting_ops.h


_MAXRSS_NOISE_KB = 4096  # resident pages are counted per CPU: lib/percpu_counter.c


def own_peak_kb(maxrss: int, started_by: int) -> int:
    """A process' peak of resident memory in KiB, or 0 if it is that of the process which started it.

    A process begins with the peak of the one that forked it, and keeps it in exec (setmax_mm_hiwater_rss() in
    fs/exec.c of Linux), so that only a higher one says anything of the process itself.

    Args:
        maxrss: of the process, or the highest of several: ru_maxrss of getrusage(2).
        started_by: that of the process which forked it. This one must be a fork itself, as a job's processes of Forge
            are: to a program, the peak of whoever started it is handed on once more, but not to its children.

    """
    return maxrss if maxrss > started_by + _MAXRSS_NOISE_KB else 0


class Measurements:
    """Of one attempt."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.rusage: resource.struct_rusage | None = None  # of its process and the children that it waited for
        self.said: Mapping[str, object] = {}  # by its process, at its end
        self._anon_peak = 0
        self._unshared_peak = 0  # of that, without shared memory
        self._pids_peak = 0

    def add(self, sample: Sample) -> None:
        """While it runs."""
        self._anon_peak = max(self._anon_peak, sample.memory_anon_bytes)
        self._unshared_peak = max(self._unshared_peak, sample.memory_anon_bytes - sample.memory_shared_bytes)
        self._pids_peak = max(self._pids_peak, sample.pids)

    def usage(self, scratch_peak_bytes: int, own_processes: int) -> Usage:
        """All of it.

        Args:
            own_processes: how many of Forge's are counted as the job's.

        """
        counters = self.counters
        largest, read, written = self._by_process()
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

    def _by_process(self) -> tuple[int, int, int]:
        """Peak of resident memory of the largest process, bytes read and written: getrusage(2) of all waited for."""
        children = self.said.get("children")
        if isinstance(children, list) and len(children) == 3:
            largest, blocks_read, blocks_written = (number_or_none(value) or 0 for value in children)
        elif self.rusage is not None:
            usage = self.rusage
            largest = own_peak_kb(usage.ru_maxrss, started_by=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            blocks_read, blocks_written = usage.ru_inblock, usage.ru_oublock
        else:
            return 0, 0, 0
        return largest * 1024, blocks_read * _RUSAGE_BLOCK, blocks_written * _RUSAGE_BLOCK

    def improve_benchmark(self, path: str) -> None:
        """Write the kernel's figures into the rule's benchmark file, where they are better than what was polled.

        Raises:
            OSError: if it cannot be changed.

        """
        used = self.said.get("measured")
        if not isinstance(used, list) or len(used) != 5 or not all(isinstance(value, int | float) for value in used):
            return
        largest, cpu_seconds, blocks_read, blocks_written, own_bytes = used
        improve(
            path,
            Figures(
                max_rss_bytes=int(max(largest * 1024, self._unshared_peak - own_bytes)),
                cpu_seconds=cpu_seconds,
                io_read_bytes=blocks_read * _RUSAGE_BLOCK,
                io_write_bytes=blocks_written * _RUSAGE_BLOCK,
            ),
        )


def number_or_none(value: object) -> int | None:
    """A whole number of a result, in which user code may have written anything."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
