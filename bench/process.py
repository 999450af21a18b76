"""Running a command and accounting for the whole process tree it leaves behind.

The benchmark makes itself a child subreaper: processes whose parent ended become its own children, so their
CPU time can be collected, and no process that an executor forgot outlives its run unnoticed.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 3.0


class BenchError(Exception):
    """Something that makes a measurement meaningless; the message is for the user."""


@dataclass(frozen=True)
class Usage:
    """The cost of one run: the wall time of the command and the CPU time of its whole tree.

    ``left_running`` counts the processes that still ran some seconds after the command had ended.
    """

    wall: float
    user: float
    system: float
    left_running: int

    @property
    def cpu(self) -> float:
        """User and system time together."""
        return self.user + self.system


def become_subreaper() -> None:
    """Make orphaned descendants children of this process instead of init's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise BenchError(f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")


def parents() -> dict[int, int]:
    """Return the parent of every process, from /proc/PID/stat; processes that end meanwhile are left out."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue
        # The command in parentheses may contain blanks and parentheses.
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state != "Z":
            found[int(entry.name)] = int(parent)
    return found


def descendants(root: int) -> list[int]:
    """All living processes below ``root``, parents before their children."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    ordered = [root]
    for pid in ordered:
        ordered.extend(children.get(pid, []))
    return ordered[1:]


class Command:
    """A started command with its output in a file; ``finish`` must be called once."""

    def __init__(self, argv: Sequence[str], directory: Path, env: Mapping[str, str], log: Path) -> None:
        """Start ``argv``; standard output and error both go to ``log``."""
        self.argv = list(argv)
        self.log = log
        with log.open("wb") as stream:
            self._started = time.perf_counter()
            self._process = subprocess.Popen(
                self.argv, cwd=directory, env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)

    def ended_within(self, seconds: float) -> bool:
        """Wait until the command has ended, at most ``seconds``; say whether it has."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def finish(self, timeout: float) -> Usage:
        """Wait for the end, collect the tree and return its usage; raise if the command failed."""
        try:
            ended = self.ended_within(timeout)
            wall = time.perf_counter() - self._started
        except BaseException:
            self._abort()
            raise
        if not ended:
            self._abort()
            raise BenchError(f"{self._line()} did not end within {timeout:.0f} s\n{self.tail()}")
        user, system, left = self._collect()
        if self._process.returncode != 0:
            raise BenchError(f"{self._line()} ended with {self._process.returncode}\n{self.tail()}")
        return Usage(wall, user, system, left)

    def tail(self, lines: int = 30) -> str:
        """Return the end of the command's output, for error messages."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _line(self) -> str:
        return "`" + " ".join(self.argv) + "`"

    def _collect(self) -> tuple[float, float, int]:
        """Reap the ended command and what it left: user time, system time, processes still running."""
        os.close(self._pidfd)
        _, status, usage = os.wait4(self.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        user, system, left = _reap_orphans()
        return usage.ru_utime + user, usage.ru_stime + system, left

    def _abort(self) -> None:
        """Kill the command and everything below it, after a timeout or an interrupt."""
        for pid in [*descendants(self.pid), self.pid]:
            _kill(pid)
        self._collect()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _reap_orphans() -> tuple[float, float, int]:
    """Collect processes that were left to this one; after a grace period kill those that still run.

    Returns the user and system time of all of them, and how many had to be killed.
    """
    user = system = 0.0
    killed: set[int] = set()
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        try:
            pid, _, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return user, system, len(killed)
        if pid:
            user += usage.ru_utime
            system += usage.ru_stime
            continue
        if time.monotonic() > deadline:
            left = descendants(os.getpid())
            killed.update(left)
            for child in left:
                _kill(child)
        time.sleep(0.01)
