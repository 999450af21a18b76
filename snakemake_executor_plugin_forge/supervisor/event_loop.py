"""The loop of a supervisor while a job runs: poll(2) tells what happens, :mod:`.lifecycle` what to do about it."""

from __future__ import annotations

import math
import select
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import assert_never

from ..kernel.descriptors import is_readable
from ..sandbox.cgroups.base import Sample
from ..sandbox.fanotify import Reads
from . import lifecycle
from .lifecycle import DiskMeasured, Do, Event, Happened, Instruction, Kill, Left, Sampled, TakeSample, Terminate, Woke
from .prepared import PreparedAttempt
from .writers import look

_ASK_SECONDS = 0.05
_NOTHING_SEEN = Sample(memory_anon_bytes=0, memory_shared_bytes=0, pids=0, oom_kills=0, empty=False)


class EventLoop:
    """The watch over one job, from its start to the end of its work."""

    def __init__(self, prepared: PreparedAttempt, reads: Reads | None, begin: float) -> None:
        """Prepare the watch.

        Args:
            reads: the files that its job opens; None if nobody wants to know them.
            begin: when the job was started: time.monotonic().
        """
        self._control = prepared.tools.control
        self._standby = prepared.tools.standby
        self._processes = prepared.processes
        self._meter = prepared.meter
        self._files = prepared.files
        self._detached = prepared.detached
        self._reads = reads
        self._inside, self._listener = prepared.inside, prepared.listener
        self._poll = select.poll()
        limits, inside = prepared.spec.limits, prepared.inside
        self._terms = lifecycle.Terms(limits.wall_seconds, prepared.spec.grace_seconds)
        measure_at = self._meter.due if limits.disk_bytes is not None else math.inf
        self.state = lifecycle.JobState(begin, begin + lifecycle.FIRST_SAMPLE_SECONDS, measure_at)
        self._ask_at = 0.0  # whether somebody wants its end, in a long look
        self._sources: dict[int, Callable[[], bool]] = {self._control.fileno(): self._hear}  # first: it beats the end
        self._sources |= {stream.read_end: stream.pump for stream in prepared.streams}
        self._sources[inside.result_fd] = self._read_result
        if self._listener is not None:
            self._sources[inside.orders_fileno()] = self._meet_listener
        if reads is not None:
            self._sources[reads.fileno()] = reads.update
        if self._detached is not None:
            self._sources[self._detached.fileno()] = self._hear_signal
        self._sources[inside.pidfd] = self._reap

    def run(self) -> None:
        """Watch until the job has ended and, if it was told to end, its descendants had their grace.

        Raises:
            OSError: if the watch is impossible.
        """
        poll, orders = self._poll, self._control.fileno()
        if (order := self._control.early()) is not None:
            self._tell(order)
        if self._is_abandoned():
            del self._sources[orders]
        if self._listener is not None and not self._meet_listener():
            del self._sources[self._inside.orders_fileno()]
        for fd in self._sources:
            poll.register(fd, select.POLLIN)
        try:
            while not self.state.ended:
                for fd, _ in poll.poll(max(0.0, self._wakeup() - time.monotonic()) * 1000):
                    if not self._sources[fd]():  # nothing more comes, for now
                        poll.unregister(fd)
                if self._reads is not None:
                    self._reads.listen_again(poll)
                self._tell(Woke(len(self._processes.survivors()) if self.state.over else 0))
        finally:
            if self._listener is not None:
                self._listener.close()  # before the layers are used again

    def _wakeup(self) -> float:
        wakeup = lifecycle.next_wakeup(self.state, self._terms, time.monotonic())
        if self._reads is not None and self._reads.due is not None:
            return min(wakeup, self._reads.due)
        return wakeup

    def _tell(self, event: Event) -> None:
        """Carry out what follows from an event, and from the events that come of that."""
        events = deque([event])
        while events and not self.state.ended:
            self.state, instructions = lifecycle.decide(self.state, events.popleft(), self._terms, time.monotonic())
            for instruction in instructions:
                events.extend(self._carry_out(instruction))

    def _carry_out(self, instruction: Instruction) -> tuple[Event, ...]:
        processes = self._processes
        match instruction:
            case Terminate(why, grace_seconds):
                processes.record.event("terminating", why=why, grace_seconds=grace_seconds)
                if grace_seconds > 0:
                    processes.signal(signal.SIGTERM)
            case Kill(why):
                processes.kill(why)
            case Do.REAP:
                processes.reap()
                return (Happened.EXITED,)
            case Do.LOOK:
                return self._look()
            case TakeSample(usual_pause_seconds):
                return (self._sample(usual_pause_seconds),)
            case Do.MEASURE_DISK:
                cgroup = processes.cgroup
                excess = self._meter.step(cgroup.pids if cgroup is not None else list)
                return (DiskMeasured(excess, self._meter.due),)
            case Do.SAVE_MEMORY:
                self._standby.retire()  # to start the next job may take some ms more
                with suppress(OSError):  # there are no more descriptors
                    processes.record.begin_to_keep()
            case Do.DETACH:
                self._detach()
            case _:
                assert_never(instruction)
        return ()

    def _look(self) -> tuple[Left, ...]:
        processes = self._processes
        if not processes.left_any:  # the usual case: nothing can come of nothing
            return (Left(),)
        members = processes.members()
        left = look(members, self._files, failed=processes.failed(), is_urgent=self._is_urgent)
        if left is None:
            return ()
        now = processes.members()
        processes.note_leftover(now)
        return (left if set(now) <= set(members) else left._replace(may_write=True),)

    def _is_urgent(self) -> bool:
        """Return whether the job's time is over, or somebody may want its end."""
        now, wall_seconds = time.monotonic(), self._terms.wall_seconds
        if wall_seconds is not None and now - self.state.begin >= wall_seconds:
            return True
        if now < self._ask_at:
            return False
        self._ask_at = now + _ASK_SECONDS
        detached = self._detached
        heard = [] if detached is not None and detached.begun else [self._control.fileno()]
        heard += [] if detached is None else [detached.fileno()]
        return is_readable(*heard)

    def _sample(self, usual_pause_seconds: float) -> Sampled:
        cgroup = self._processes.cgroup
        if cgroup is None:
            return Sampled(_NOTHING_SEEN, usual_pause_seconds)
        sample = cgroup.sample()
        self._processes.used.add(sample)
        is_alive = self._processes.inside.alive() if sample.empty else True
        return Sampled(sample, cgroup.pause_seconds(usual_pause_seconds), cgroup.missing(), is_alive)

    # -- descriptors: each method says whether to listen on ------------------------------------------------------------

    def _reap(self) -> bool:
        self._processes.reap()
        self._see_whether_over()
        return False

    def _read_result(self) -> bool:
        more = self._processes.read_result()
        self._see_whether_over()
        return more

    def _see_whether_over(self) -> None:
        if self._processes.over and not self.state.over and not self.state.lingers:
            self._tell(Happened.EXITED)

    def _meet_listener(self) -> bool:
        assert self._listener is not None
        try:
            fd = self._inside.receive_listener()
        except BlockingIOError:
            return True
        if fd is not None:
            self._listener.begin(fd)
            self._sources[fd] = self._listener.answer
            self._poll.register(fd, select.POLLIN)
        return False

    def _hear(self) -> bool:
        order = self._control.order()
        if self._is_abandoned():
            return False
        if order is not None:
            self._tell(order)
        return True

    def _hear_signal(self) -> bool:
        assert self._detached is not None
        self._tell(self._detached.order())
        return True

    # -- without Snakemake ---------------------------------------------------------------------------------------------

    def _is_abandoned(self) -> bool:
        """Return whether the job continues without Snakemake from now on."""
        if self._detached is None or self._detached.begun or not self._control.abandoned():
            return False
        self._tell(Happened.ABANDONED)
        return True

    def _detach(self) -> None:
        assert self._detached is not None
        self._detached.begin()
        self._control.let_go()
        self._standby.retire()
        self._processes.record.event("alone")

    def is_detached(self) -> bool:
        """Return, after the end of the job, whether Snakemake is gone and the outputs must wait for a later run."""
        if self._detached is None:
            return False
        if not self._detached.begun:
            if is_readable(self._control.fileno()):
                self._control.order()  # to end the job it comes too late
            if self._control.abandoned():
                self._detach()
        return self._detached.begun
