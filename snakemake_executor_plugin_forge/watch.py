"""While a job runs: orders from above, its clock, its disk, its streams and its cgroup, in one loop of poll(2)."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from .alone import Solitude
from .errors import SandboxError
from .model import LaunchSpec
from .processes import Processes
from .reads import Reads
from .record.streams import Stream
from .sandbox.disk import Meter
from .sandbox.inside import Standby

_FIRST_SAMPLE_SECONDS = 0.02
_LAST_SAMPLE_SECONDS = 2.0
_LONG_SECONDS = 0.5


class Control(Protocol):
    """How a supervisor learns that its attempt shall end."""

    def fileno(self) -> int:
        """Becomes readable when there is something to be learned."""

    def order(self) -> tuple[str, bool] | None:
        """Reason and whether there is time for grace; None if it was nothing."""

    def early(self) -> tuple[str, bool] | None:
        """The same, of what came together with the order to start it: :meth:`fileno` is not readable for that."""

    def abandoned(self) -> bool:
        """Whether Snakemake is gone, as far as was learned by now, and has not ordered the end of the attempt."""

    def let_go(self) -> None:
        """Nobody is told of the verdict, and nothing more comes from here."""


class Watch:
    """Over one job, from its start to the end of its work."""

    def __init__(
        self,
        spec: LaunchSpec,
        control: Control,
        standby: Standby,
        processes: Processes,
        meter: Meter,
        alone: Solitude | None,
    ) -> None:
        """Nothing is watched yet.

        Args:
            spec: of the attempt.
            control: where orders come from.
            standby: what has made its process.
            processes: of the job.
            meter: of its disk.
            alone: if the job goes on without Snakemake.

        """
        self._spec = spec
        self._control = control
        self._standby = standby
        self._processes = processes
        self._inside = processes.inside
        self._cgroup = processes.cgroup
        self._record = processes.record
        self._course = processes.course
        self._meter = meter
        self._alone = alone
        self._begin = 0.0
        self._kill_at: float | None = None  # end of the grace
        self._reads: Reads | None = None
        self._was_inside = False  # of its cgroup
        self._is_long = False

    def run(self, begin: float, streams: Sequence[Stream], reads: Reads | None) -> None:
        """Until the job's process has ended and, if it is being ended, its descendants had their grace.

        Args:
            begin: when it was started: time.monotonic().
            streams: what it writes to its standard output and error.
            reads: if it is audited.

        Raises:
            OSError, SandboxError: if that is impossible.

        """
        self._begin, self._reads = begin, reads
        pidfd = self._inside.pidfd
        sources = self._sources(streams)
        poll = select.poll()
        for fd in (*sources, pidfd):
            poll.register(fd, select.POLLIN)
        self._end_by(self._control.early())
        orders = self._control.fileno()
        if self._go_on_alone():
            poll.unregister(orders)
        interval = _FIRST_SAMPLE_SECONDS
        sample_at = begin + interval
        while not self._processes.over or self._in_grace():
            ready = poll.poll(max(0.0, self._next_wakeup(sample_at) - time.monotonic()) * 1000)
            for fd, _ in ready:
                if fd == pidfd:
                    self._processes.reap()
                    poll.unregister(fd)
                elif not sources[fd]():
                    poll.unregister(fd)
            if reads is not None:
                reads.listen_again(poll)
            if time.monotonic() >= sample_at:
                self._sample()
                interval = min(interval * 2, _LAST_SAMPLE_SECONDS)
                sample_at = time.monotonic() + self._pause(interval)
            self._check_disk()
            self._check_clock()

    def look_up(self) -> None:
        """Whether somebody is still there for whom to publish."""
        if self._alone is None or self._alone.begun:
            return
        if select.select([self._control.fileno()], [], [], 0)[0]:
            self._control.order()  # to end it comes too late
        self._go_on_alone()

    def _sources(self, streams: Sequence[Stream]) -> dict[int, Callable[[], bool]]:
        """What to listen to, and what to do then; False of that is: no more for now."""
        sources: dict[int, Callable[[], bool]] = {s.read_end: s.pump for s in streams}
        sources[self._inside.result_fd] = self._processes.read_result
        sources[self._control.fileno()] = self._obey
        if self._reads is not None:
            sources[self._reads.fileno()] = self._reads.read
        if self._alone is not None:
            sources[self._alone.fileno()] = self._obey_alone
        return sources

    # -- when to look again ----------------------------------------------------------------------------------------

    def _pause(self, interval: float) -> float:
        """How long until the next sample; in a job that takes its time, memory is given back, and its spec is kept."""
        if interval > _LONG_SECONDS and not self._is_long:
            self._is_long = True
            self._standby.retire()  # to start the next one may take some ms more
            with suppress(OSError):  # no more descriptors: it goes on without
                self._record.begin_to_keep()
        return self._cgroup.pause_seconds(interval) if self._cgroup is not None else interval

    def _next_wakeup(self, sample_at: float) -> float:
        times = [sample_at]
        if self._reads is not None and self._reads.due is not None:
            times.append(self._reads.due)
        if self._spec.limits.disk_bytes is not None:
            times.append(self._meter.due)
        if self._kill_at is not None:
            times.append(self._kill_at)
            if self._processes.over:
                times.append(time.monotonic() + 0.02)  # the job's process is gone: are its descendants?
        elif self._spec.limits.wall_seconds is not None:
            times.append(self._begin + self._spec.limits.wall_seconds)
        return min(times)

    def _in_grace(self) -> bool:
        """Whether descendants still have time to end by themselves after the job's own process ended."""
        return self._kill_at is not None and time.monotonic() < self._kill_at and bool(self._processes.members())

    # -- its limits ------------------------------------------------------------------------------------------------

    def _check_clock(self) -> None:
        elapsed = time.monotonic() - self._begin
        wall, over = self._spec.limits.wall_seconds, self._processes.over
        if self._kill_at is None and not over and wall is not None and elapsed >= wall:
            self._course.timed_out = True
            self._terminate("timeout", self._spec.grace_seconds)
        if self._kill_at is not None and time.monotonic() >= self._kill_at and not over:
            self._processes.kill("end of the grace")
            self._processes.reap()

    def _check_disk(self) -> None:
        """Measure the scratch, where it is limited and the time has come; end a job that has too much in it."""
        if self._spec.limits.disk_bytes is None or self._course.excess or time.monotonic() < self._meter.due:
            return
        self._course.excess = self._meter.step(self._cgroup.pids if self._cgroup is not None else list)
        if self._course.excess is not None and not self._processes.over:
            self._processes.kill("too much disk")

    def _sample(self) -> None:
        if self._cgroup is None:
            return
        sample = self._cgroup.sample()
        self._processes.used.add(sample)
        if self._processes.over:
            return
        if sample.oom_kills or sample.over:
            self._processes.kill("a process was killed for memory" if sample.oom_kills else "too many processes")
        elif (gone := self._cgroup.missing()) is not None:
            raise SandboxError(f"{gone} is gone: somebody removed or changed the job's cgroup, so nothing limited it")
        elif not sample.empty:
            self._was_inside = True
        elif self._was_inside and self._inside.alive():
            self._course.error = (
                "its cgroup was emptied or removed from outside while it ran, so that its limits held no more; "
                "the job was killed"
            )
            self._processes.kill("not in its cgroup any more")

    # -- orders ----------------------------------------------------------------------------------------------------

    def _obey(self) -> bool:
        """Whether there can be more of it."""
        order = self._control.order()
        if self._go_on_alone():
            return False
        self._end_by(order)
        return True

    def _obey_alone(self) -> bool:
        assert self._alone is not None
        self._end_by(self._alone.order())
        return True

    def _go_on_alone(self) -> bool:
        """Whether it does, because Snakemake is gone and the job was to go on then."""
        alone = self._alone
        if alone is None or alone.begun or not self._control.abandoned():
            return False
        alone.begin()
        self._control.let_go()
        self._standby.retire()
        self._record.event("alone")
        return True

    def _end_by(self, order: tuple[str, bool] | None) -> None:
        if order is not None:
            reason, grace = order
            self._course.cancelled = self._course.cancelled or reason
            self._terminate("cancelled", self._spec.grace_seconds if grace else 0.0)

    def _terminate(self, why: str, grace_seconds: float) -> None:
        """TERM to every process of the job; the KILL follows after the grace."""
        kill_at = time.monotonic() + grace_seconds
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        self._course.terminated = True
        self._record.event("terminating", why=why, grace_seconds=grace_seconds)
        if grace_seconds > 0:
            self._processes.signal(signal.SIGTERM)
