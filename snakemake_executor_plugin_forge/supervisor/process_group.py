"""The processes of one attempt: which they are, what they say at their end, and how they are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

from ..kernel import process_tree
from ..kernel.descriptors import is_readable
from ..record.attempt_dir import JobDirectory
from ..sandbox.cgroups.base import JobCgroup
from ..sandbox.inside import Inside
from ..sandbox.result import MOST_BYTES, Result, read_result
from .usage import UsageTally

_FROZEN_SECONDS = 0.5  # what takes longer to die is frozen, or stuck in the kernel
_DEATH_SECONDS = 30.0
_RESULT_SECONDS = 5.0
_TRIES, _TRY_SECONDS = 20, 0.001
_PYTHONS_OWN = "resource_tracker"  # of multiprocessing and joblib: it ends by itself, and holds nothing


class Processes:
    """The first process of a job, and all that descend from it."""

    def __init__(
        self, inside: Inside, cgroup: JobCgroup | None, record: JobDirectory, used: UsageTally, *, polled: bool
    ) -> None:
        """Take over the processes, which wait for their order.

        Args:
            record: is told what happens to them.
            used: is told what they use.
            polled: whether nothing counts what they have used once they are gone.
        """
        self.inside = inside
        self.cgroup = cgroup
        self.record = record
        self.used = used
        self.over = False  # the job has done its work or died; processes that it left behind may live
        self.left_any = False  # whether anything was alive when the job had done its work
        self.leftover: tuple[str, ...] = ()  # what was alive when the job had done its work
        self.unkillable: tuple[str, ...] = ()
        self.status: int | None = None  # of the first process, as waitpid(2) says it; None: it was not reaped yet
        self._polled = polled
        self._all_dead = False
        self._result = bytearray()
        self._read: Result | None = None  # what the result says; None: more has come since it was read

    def members(self) -> list[int]:
        """Return all of them but the one that holds the PID namespace."""
        if self.cgroup is None:
            return []
        holder = self.inside.started.pid if self.inside.as_init else -1
        return [pid for pid in self.cgroup.pids() if pid != holder]

    def signal(self, number: int) -> None:
        """Send a signal to each of them."""
        for pid in {self.inside.started.pid, *self.members()} if self.status is None else self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, why: str) -> None:
        """Kill the first process of the PID namespace: the kernel kills all others with it, whatever they ignore."""
        self.record.event("kill", why=why)
        self.inside.started.kill()

    def read_result(self) -> bool:
        """Read what the first process says of its work; return whether more can follow."""
        chunk = os.read(self.inside.result_fd, 65536)
        self._result += chunk
        if chunk:
            self._read = None
        if len(self._result) > 2 * MOST_BYTES:
            del self._result[:-MOST_BYTES]
        # It waits to be killed. Without a result it has lost the pipe, as user code may close it, and ends by itself.
        if self.inside.as_init and not self.over and (not chunk or chunk.endswith(b"\n")):
            said = self._said()
            if said.ended or said.setup_error is not None:
                self._end_of_work()
        return bool(chunk)

    def result(self) -> Result:
        """Return what the first process has said of its end."""
        deadline = time.monotonic() + _RESULT_SECONDS  # a descendant that is stuck in the kernel may write for ever
        while is_readable(self.inside.result_fd) and time.monotonic() < deadline:
            if not self.read_result():
                break
        return self._said()

    def _said(self) -> Result:
        if self._read is None:
            self._read = read_result(bytes(self._result))
        return self._read

    def reap(self) -> None:
        """Take the exit status of the first process, which is dead or about to be."""
        if self.status is not None:
            return
        if not is_readable(self.inside.pidfd, seconds=_FROZEN_SECONDS):
            self._kill_harder()
            if not is_readable(self.inside.pidfd, seconds=_DEATH_SECONDS):  # stuck in the kernel (D state)
                self.over, self.status = True, signal.SIGKILL  # do without its status
                return
        self._end_of_work()
        _, self.status, self.used.rusage = os.wait4(self.inside.started.pid, 0)

    def survivors(self) -> list[int]:
        """Return those that live on after the end of the work: nothing can come of nothing, where the kernel counts."""
        return [] if self.over and not self.left_any and not self._polled else self.members()

    def left_nothing(self) -> bool:
        """Return whether only our own process is alive, which holds the sandbox and waits to be killed."""
        if not self.inside.as_init or self.cgroup is None or not self.over:
            return False
        return not self.survivors()

    def end(self) -> None:
        """Kill all that is left, and wait until it is dead."""
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
            self.unkillable = names([pid for pid in self.cgroup.pids() if not process_tree.is_dead(pid)])

    def _end_of_work(self) -> None:
        """Note that the job has done its work, and what it left behind."""
        if self.over:
            return
        self.over = True
        if self._polled and self.cgroup is not None:
            self.used.add(self.cgroup.sample())  # the last chance
        self.record.event("exited")
        members = self.members()
        self.left_any = bool(members)
        self.note_leftover(members)

    def note_leftover(self, pids: list[int]) -> None:
        """Note which of some processes are alive, and worth a word."""
        alive = [pid for pid in pids if not process_tree.is_ending(pid)]
        self.leftover = tuple(name for name in names(alive) if _PYTHONS_OWN not in name)

    def failed(self) -> bool:
        """Return whether the job has done its work without success."""
        return bool(self.status or self.result().failed)

    def _kill_harder(self) -> None:
        """Kill a process that did not die with its PID namespace: it is frozen, or stuck in the kernel."""
        self.record.event("kill", why="it did not die with its PID namespace")
        if self.cgroup is not None:
            self.cgroup.kill(_same_namespace(self.inside.started.pid))


def tries() -> Iterator[int]:
    """Return the patience for processes without arguments: for all together, as a process can overwrite its own."""
    return iter(range(_TRIES))


def names(pids: list[int], left: Iterator[int] | None = None) -> tuple[str, ...]:
    """Return what processes execute, each with its arguments.

    Args:
        left: of :func:`tries`, by several calls.
    """
    left = tries() if left is None else left
    return tuple(name for pid in pids if (name := _name(pid, left)))


def _name(pid: int, left: Iterator[int]) -> str:
    """Return what a process executes, with its arguments; "" if it has ended, or just ends."""
    while True:
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if text := file.read(200).replace(b"\0", b" ").decode("utf-8", "replace").strip():
                return text
        if process_tree.is_ending(pid):
            return ""
        if next(left, None) is None:
            break
        time.sleep(_TRY_SECONDS)  # it is just being executed, and has no arguments yet
    name = process_tree.command_name(pid)
    return f"{name} (process {pid})" if name else f"process {pid}"


def _same_namespace(pid: int) -> list[int]:
    """Return all processes in the PID namespace of ``pid``, whatever cgroup they are in: pid_namespaces(7)."""
    found: list[int] = []
    with suppress(OSError):
        namespace = os.readlink(f"/proc/{pid}/ns/pid")
        for name in os.listdir("/proc"):
            with suppress(OSError):
                if name.isdigit() and os.readlink(f"/proc/{name}/ns/pid") == namespace:
                    found.append(int(name))
    return found
