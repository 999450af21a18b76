"""The processes of one attempt: who they are, what they say at their end, and that they are dead before its verdict."""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass

from .measurements import Measurements
from .model import Excess
from .record.jobdir import JobDirectory
from .sandbox import sweep
from .sandbox.cgroup import JobCgroup
from .sandbox.inside import Inside

_FROZEN_SECONDS = 0.5  # what takes longer to die is frozen, or stuck in the kernel
_DEATH_SECONDS = 30.0
_RESULT_BYTES = 1 << 20


@dataclass(slots=True)
class Course:
    """How it went with one attempt's processes, and what was done to them."""

    status: int | None = None  # of waitpid, of the first one
    leftover: tuple[str, ...] = ()  # that lived when the job had done its work
    unkillable: tuple[str, ...] = ()
    timed_out: bool = False
    cancelled: str | None = None
    terminated: bool = False  # told to end, for whatever reason
    excess: Excess | None = None
    error: str | None = None  # why nobody could watch over them any more


class Processes:
    """The job's first process, and all that came from it."""

    def __init__(
        self,
        inside: Inside,
        cgroup: JobCgroup | None,
        record: JobDirectory,
        used: Measurements,
        course: Course,
        *,
        polled: bool,
    ) -> None:
        """They wait for their order.

        Args:
            inside: the first one.
            cgroup: that they are in.
            record: for what happens to them.
            used: for what they used.
            course: for how they ended.
            polled: nothing counts that when they are gone.

        """
        self.over = False  # the job has done its work or died; processes that it left behind may live
        self.inside = inside
        self.cgroup = cgroup
        self.record = record
        self.used = used
        self.course = course
        self._polled = polled
        self._all_dead = False
        self._result = b""

    def members(self) -> list[int]:
        """All but for the one that holds the PID namespace."""
        if self.cgroup is None:
            return []
        holder = self.inside.started.pid if self.inside.as_init else -1
        return [pid for pid in self.cgroup.pids() if pid != holder]

    def signal(self, number: int) -> None:
        """To every one."""
        for pid in {self.inside.started.pid, *self.members()}:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, why: str) -> None:
        """End the PID namespace, and with it every process in it, whatever it ignores."""
        self.record.event("kill", why=why)
        self.inside.started.kill()

    def read_result(self) -> bool:
        """Of what the first one says of its work; whether there can be more of it."""
        chunk = os.read(self.inside.result_fd, 65536)
        if len(self._result) < _RESULT_BYTES:
            self._result += chunk
        if not chunk and self.inside.as_init:  # its process waits to be killed
            self._end_of_work()
        return bool(chunk)

    def result(self) -> dict[str, object]:
        """What it has said, to the end; it ran user code, so anything may be in it."""
        while select.select([self.inside.result_fd], [], [], 0)[0] and self.read_result():
            pass
        try:
            result = json.loads(self._result)
        except ValueError:
            return {}
        return result if isinstance(result, dict) else {}

    def reap(self) -> None:
        """Take the exit status of the first one, which is dead or about to be."""
        if self.course.status is not None:
            return
        ready = select.select([self.inside.pidfd], [], [], _FROZEN_SECONDS)[0]
        if not ready:
            self._kill_harder()
            ready = select.select([self.inside.pidfd], [], [], _DEATH_SECONDS)[0]
        if not ready:  # stuck in the kernel (D state): go on
            self.over, self.course.status = True, signal.SIGKILL
            return
        self._end_of_work()
        _, self.course.status, self.used.rusage = os.wait4(self.inside.started.pid, 0)

    def left_nothing(self) -> bool:
        """Whether nothing of the job is alive but our own process, which holds its sandbox and waits to be killed."""
        return self.inside.as_init and self.cgroup is not None and self.over and not self.members()

    def end(self) -> None:
        """Kill what is left, and wait until it is dead."""
        if self._all_dead:
            return
        self._all_dead = True
        started = self.inside.started
        started.kill()
        self.reap()  # before the rest: the first process of a namespace does not die before all others are reaped
        if not started.end(_FROZEN_SECONDS):
            self._kill_harder()
            started.end(_DEATH_SECONDS)
        if self.cgroup is not None:
            self.course.unkillable = _names([pid for pid in self.cgroup.pids() if not sweep.is_dead(pid)])

    def _end_of_work(self) -> None:
        """The job has done its work: note what it left behind."""
        if self.over:
            return
        self.over = True
        if self._polled and self.cgroup is not None:
            self.used.add(self.cgroup.sample())  # the last chance
        self.record.event("exited")
        self.course.leftover = _names(self.members())

    def _kill_harder(self) -> None:
        """What did not die with its PID namespace: someone has frozen it, or it is stuck in the kernel."""
        self.record.event("kill", why="it did not die with its PID namespace")
        if self.cgroup is not None:
            self.cgroup.kill(_same_namespace(self.inside.started.pid))


def _names(pids: list[int]) -> tuple[str, ...]:
    names = []
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read(200).replace(b"\0", b" ").decode("utf-8", "replace").strip()
            if not text:  # it is just being executed
                name = sweep.command_name(pid)
                text = f"{name} (process {pid})" if name else f"process {pid}"
            names.append(text)
    return tuple(names)


def _same_namespace(pid: int) -> list[int]:
    """All processes in the PID namespace of ``pid``, wherever someone may have moved them: pid_namespaces(7)."""
    found: list[int] = []
    with suppress(OSError):
        namespace = os.readlink(f"/proc/{pid}/ns/pid")
        for name in os.listdir("/proc"):
            with suppress(OSError):
                if name.isdigit() and os.readlink(f"/proc/{name}/ns/pid") == namespace:
                    found.append(int(name))
    return found
