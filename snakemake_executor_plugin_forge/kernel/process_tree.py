"""The descendants of a process, found through /proc and killed without help of a cgroup or a namespace.

A process whose parent ends becomes the child of the nearest ancestor that is a subreaper (PR_SET_CHILD_SUBREAPER of
prctl(2)), so descendants of a job cannot leave the tree of its supervisor. Processes that another service (systemd,
cron, a container engine) starts for the job are outside the tree.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import suppress

from . import syscalls
from .descriptors import closing, is_readable
from .procfs import read

_PAUSE_MILLISECONDS = 5
_EXITING = 0x4


def become_subreaper() -> None:
    """Make this process the parent of its descendants whose own parent ends.

    Raises:
        OSError: on Linux before 3.4.
    """
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)


def descendants(root: int) -> list[int]:
    """All processes below ``root``, parents first; zombies too. A process that is just starting can be missing."""
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = list(children(waiting.pop()))
        found += below
        waiting += below
    return found


def children(pid: int) -> Iterator[int]:
    """The present children of a process, zombies too.

    They are in the ``children`` files of its threads: proc_pid_task_children(5), there if CONFIG_PROC_CHILDREN is.
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended
        return
    for thread in threads:
        with suppress(FileNotFoundError, ProcessLookupError):
            yield from map(int, read(f"/proc/{pid}/task/{thread}/children").split())


def stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on (state, ppid, pgrp, session, ...): proc_pid_stat(5).

    Raises:
        OSError: if there is no such process any more.
    """
    return read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def is_dead(pid: int) -> bool:
    """Whether a process has ended; it may be a zombie."""
    try:
        return stat(pid)[0] in (b"Z", b"X")
    except OSError:
        return True


def is_ending(pid: int) -> bool:
    """Whether a process executes nothing any more: PF_EXITING of include/linux/sched.h is among its flags."""
    try:
        state, *_, flags = stat(pid)[:7]
    except OSError:
        return True
    return state in (b"Z", b"X") or bool(int(flags) & _EXITING)


def command_name(pid: int) -> str:
    """The name of a process' program, at most 15 bytes: proc_pid_comm(5). Empty if it has ended."""
    try:
        return read(f"/proc/{pid}/comm").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def wait_for_child(pid: int, seconds: float) -> bool:
    """Wait until a child has ended, and take its status unless somebody else has; False if it does not end in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with closing(pidfd):
        if not is_readable(pidfd, seconds=max(0.0, seconds)):
            return False
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    return True


def kill_below(root: int) -> None:
    """Kill all descendants of this very process (``root``) once; a process forked meanwhile can escape.

    By process groups first: the kernel kills each as a whole, faster than it can multiply (kill(2)). A group has
    members of one session only, and a job's sessions are its own.
    """
    own = os.getpgid(root)
    found = descendants(root)
    groups = set()
    for pid in found:
        with suppress(OSError):
            groups.add(int(stat(pid)[2]))
    for group in groups - {own}:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for pid in found:
        _kill(pid, root)


def _kill(pid: int, root: int) -> None:
    """Kill a process by pidfd, and only if it is still below ``root``, because its number may be in use again."""
    with suppress(OSError), closing(os.pidfd_open(pid)) as pidfd:  # it may have ended
        if _is_below(pid, root):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _is_below(pid: int, root: int) -> bool:
    while pid > 1:
        pid = int(stat(pid)[1])
        if pid == root:
            return True
    return False


def end_below(root: int, keep: int, timeout_seconds: float) -> bool:
    """Kill all descendants of this very process (``root``), and wait until they are dead; False after the time.

    Walking the whole tree proves nothing, because orphans move up meanwhile. But a living descendant has a living
    ancestor among the direct children, and only this process, their parent, removes those from its list: so no
    descendant lives when that list is empty.

    Args:
        keep: a direct child that somebody else reaps.
    """
    deadline = time.monotonic() + timeout_seconds
    while not is_dead(keep) or any(pid != keep for pid in children(root)):
        if time.monotonic() > deadline:
            return False
        kill_below(root)
        reap_orphans({keep})
        select.poll().poll(_PAUSE_MILLISECONDS)
    return True


def reap_orphans(keep: Collection[int]) -> tuple[float, float]:
    """Reap inherited children that have ended, except ``keep``.

    Returns:
        Seconds of CPU time that they have used, as users and in the kernel.
    """
    user, system = 0.0, 0.0
    for pid in list(children(os.getpid())):
        if pid not in keep:
            with suppress(ChildProcessError):
                _, _, used = os.wait4(pid, os.WNOHANG)  # of one that lives, it is nothing
                user, system = user + used.ru_utime, system + used.ru_stime
    return user, system


def orphans(pool: int) -> list[int]:
    """Living processes that dead supervisors of the subreaper ``pool`` have left to it, with their descendants.

    Every job is in a session of its own (setsid(2)), and cannot enter the session of the pool, which holds all of
    Forge's own processes.
    """
    own = os.getsid(pool)
    found: list[int] = []
    for pid in children(pool):
        with suppress(OSError):
            if int(stat(pid)[3]) != own:
                found += [pid, *descendants(pid)]
    return [pid for pid in found if not is_dead(pid)]


def own_threads() -> int:
    """Count all threads of this user on this host: RLIMIT_NPROC counts them where no namespace divides them."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                total += int(stat(int(pid))[17])
    return total
