"""Nice values where the kernel schedules sessions, and not processes: autogroups of sched(7).

Where no cgroup divides CPU time, a kernel with ``kernel.sched_autogroup_enabled`` divides it among sessions, and the
nice value of a process counts among those of its own session only. Each job is one session or more.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from . import pseudofile, sweep

_SESSION = 3  # in what sweep.stat gives: proc_pid_stat(5)


class Sessions:
    """Those of a job, which get its nice value when they are seen."""

    def __init__(self, nice: int) -> None:
        """Args as below.

        Args:
            nice: 0: there is nothing to be done.

        """
        self._nice = nice if nice and os.path.exists("/proc/self/autogroup") else 0
        self._seen: set[int] = set()

    def lower(self, pids: Iterable[int]) -> None:
        """Give those sessions that are new the nice value.

        The kernel lets ordinary users do that every 100 ms only: those that are left over get it at the next look.
        """
        if not self._nice:
            return
        for pid in pids:
            try:
                session = int(sweep.stat(pid)[_SESSION])
                if session in self._seen:
                    continue
                pseudofile.write(f"/proc/{pid}/autogroup", self._nice)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                continue  # it is dead, or Forge's own process, which cannot be touched
            except (IndexError, ValueError):
                continue
            self._seen.add(session)
