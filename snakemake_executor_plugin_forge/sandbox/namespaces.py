"""PID namespaces of jobs and the process that holds each: made, entered and ended. Source: pid_namespaces(7).

The ids of a new namespace begin at 1. Files named by ``$$`` and seeds made of getpid() would be equal in all jobs, so
the ids of a job begin elsewhere: see :func:`first_id`.
"""

from __future__ import annotations

import functools
import math
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from ..kernel import process_tree, procfs, syscalls
from ..kernel.descriptors import closing, is_readable
from ..kernel.shortage import retold, told
from .base import Base

_PID_LIMIT = 1 << 22
"""The highest limit of ids in a PID namespace, its own since Linux 6.14: proc_sys_kernel(5), pid_max."""

_RESERVED_PIDS = 300
"""The low ids that the kernel leaves out when it begins with them again: linux/pid_namespace.h."""

_OOM_SCORE = 500
"""Makes a job count as if it used half of all memory more than it does."""


@dataclass(slots=True)
class Holder:
    """A process (cat) that is the first of a PID namespace, and ends when the write end of its pipe is closed."""

    pid: int
    pipe: int
    dead: bool = False

    def end(self, timeout_seconds: float) -> bool:
        """Wait, after a kill, until all processes of its namespace are dead; return False if that takes too long."""
        if self.dead:
            return True
        with closing(os.pidfd_open(self.pid)) as pidfd:
            if is_readable(pidfd, seconds=timeout_seconds):
                os.waitpid(self.pid, 0)
                os.close(self.pipe)
                self.dead = True
        return self.dead


@dataclass(slots=True)
class Started:
    """The processes of a job that a supervisor has to end."""

    pid: int
    init: Holder | None  # None: the job's process is the first of its namespace itself

    @property
    def holder(self) -> int | None:
        """The process of Forge that holds the namespace or started the command, and is no part of the job."""
        return self.pid if self.init is None else self.init.pid

    def kill(self) -> None:
        """Kill the first process of the namespace: the kernel kills all others with it, whatever they ignore."""
        if self.init is not None and self.init.dead:
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid if self.init is None else self.init.pid, signal.SIGKILL)

    def end(self, timeout_seconds: float) -> bool:
        """Kill, and wait until all in the namespace are dead, but do not reap ``pid``; False if that takes too long."""
        self.kill()
        # Without a holder, pid ends after all others: whoever reaps it has waited for them.
        return self.init is None or self.init.end(timeout_seconds)


class Unheld(Started):
    """The processes of a job without a namespace: all that are below this supervisor, to be killed one by one."""

    def __init__(self, pid: int, *, starts_command: bool) -> None:
        super().__init__(pid, None)
        self._holder = pid if starts_command else None

    @property
    def holder(self) -> int | None:
        return self._holder

    def kill(self) -> None:
        process_tree.kill_below(os.getpid())

    def end(self, timeout_seconds: float) -> bool:
        return process_tree.end_below(os.getpid(), self.pid, timeout_seconds)


def start(base: Base, job: Callable[[], NoReturn], *, as_init: bool) -> Started:
    """Fork ``job`` into a new PID namespace, where the host has them.

    The kernel ends the whole namespace with its first process (pid_namespaces(7)), which must end with this
    supervisor, in whatever way that dies. It is one of two:

    * ``as_init``: the job's own process, which starts a command, reaps what that leaves behind and is killed by the
      kernel when its parent dies (PR_SET_PDEATHSIG). This is the cheapest.
    * ``cat`` on a pipe that only this supervisor holds, for jobs that run a rule's Python code: as process 1 that code
      would have no default signal handling. A fork of this process, with a workflow in memory, would cost several
      times as much as cat. cat ignores SIGCHLD, so that the kernel reaps the orphans that it inherits.
    """
    # TERM waits until the job has its own signal handling: here it is still ignored, and would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        if base.namespaces == "none":
            return _start_unheld(job, starts_command=as_init)
        if as_init:
            return Started(fork_init(job), None)
        if not base.returns:
            return _start_in_user_namespace(base, job)
        holder, namespace = hold_namespace(base)
        try:
            return Started(fork_into(base, namespace, holder.pid, job, 0), holder)
        finally:
            os.close(namespace)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def fork_init(job: Callable[[], NoReturn], flags: int = 0) -> int:
    """Fork ``job`` as the first process of a new PID namespace, which ends with its parent. SIGTERM must be blocked.

    Args:
        job: what the process does.
        flags: more flags of clone(2).

    Returns:
        The number of the process.

    Raises:
        OSError: if the kernel refuses that.
    """
    score = _low_score()
    pid = syscalls.fork(syscalls.CLONE_NEWPID | flags)
    if pid == 0:
        _offer_to_the_oom_killer(score)
        syscalls.set_process_name("forge-init")
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # its /proc entry and its memory are not the job's business
        job()
    return pid


def hold_namespace(base: Base) -> tuple[Holder, int]:
    """Make a PID namespace, as root.

    Returns:
        The process that holds it, and a descriptor of it.

    Raises:
        OSError: if the kernel refuses that.
    """
    syscalls.unshare(syscalls.CLONE_NEWPID)
    try:
        holder = _hold_namespace(base)
        return holder, os.open(f"/proc/{holder.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        syscalls.setns(base.own_pid_namespace, syscalls.CLONE_NEWPID)


def fork_into(base: Base, namespace: int, holder: int, job: Callable[[], NoReturn], flags: int) -> int:
    """Fork ``job`` into a PID namespace that a holder keeps. SIGTERM must be blocked.

    Args:
        base: what its supervisor has prepared.
        namespace: a descriptor.
        holder: the number of the process that keeps it.
        job: what the process does.
        flags: of clone(2).

    Returns:
        The number of the process.

    Raises:
        OSError: if the kernel refuses that.
    """
    score = _low_score()
    syscalls.setns(namespace, syscalls.CLONE_NEWPID)
    try:
        pid = _fork_numbered(base, holder, flags)
        if pid == 0:
            _offer_to_the_oom_killer(score)
            job()
    finally:
        syscalls.setns(base.own_pid_namespace, syscalls.CLONE_NEWPID)
    return pid


def first_id(unique: int, limit: int) -> int:
    """Return the id after which a job's ids begin. Pure.

    The host hands out ids one after the other, so the ``unique`` numbers of jobs at the same time lie close together.
    Multiples of the golden section lie apart (Knuth, The Art of Computer Programming, 6.4), and so there is room for
    the ids of a job's children.

    Args:
        unique: an id of the host that no other job has.
        limit: all ids are smaller.
    """
    room = limit - _RESERVED_PIDS - 1
    return _RESERVED_PIDS + unique * _step(room) % room


@functools.cache
def _step(room: int) -> int:
    step = int(room * (math.sqrt(5) - 1) / 2)
    while math.gcd(step, room) > 1:  # else different numbers give the same id
        step += 1
    return step


def prepare_ids(base: Base) -> None:
    """Work out, before a fork, what :func:`spread_ids` needs after it."""
    for limit in _limits(base):
        first_id(1, limit)


def _limits(base: Base) -> tuple[int, ...]:
    """Return the limits to try: the host's holds in all of its PID namespaces before Linux 6.14."""
    return tuple(dict.fromkeys((_PID_LIMIT, base.pid_max)))


def _fork_numbered(base: Base, holder: int, flags: int) -> int:
    """Fork into a new PID namespace, with an id of the job's own where the host permits that: clone3(2), set_tid."""
    for limit in _limits(base):
        with suppress(OSError):
            return syscalls.fork(flags, first_id(holder, limit))
    return syscalls.fork(flags)


def spread_ids(base: Base) -> None:
    """Give the children of this process, the first of a job in its PID namespace, ids of the job's own.

    It writes ns_last_pid (pid_namespaces(7)), which needs CAP_SYS_ADMIN, and the host's /proc, which names the id that
    this process has on the host. A container's /proc/sys is read-only: there the ids begin at 1.
    """
    own = os.getpid()
    with suppress(OSError, ValueError):
        unique = int(os.readlink("/proc/self"))
        for last in [own] if own > _RESERVED_PIDS else [first_id(unique, limit) for limit in _limits(base)]:
            with suppress(OSError):
                procfs.write("/proc/sys/kernel/ns_last_pid", last)
                return


@functools.cache  # a fork has the same one, until it changes its own
def _low_score() -> bool:
    """Whether this process, and what it forks, is not yet offered to the OOM killer."""
    with suppress(OSError, ValueError):
        return int(procfs.read("/proc/self/oom_score_adj")) < _OOM_SCORE
    return False


def _offer_to_the_oom_killer(low_score: bool) -> None:
    """Have the kernel kill a job before Snakemake or a service, where the host or a cgroup around the run is full.

    Source: proc_pid_oom_score_adj(5). Within the job's own limit it makes no difference, as all of its processes have
    the same score. Once this process is not dumpable, the file belongs to root.

    Args:
        low_score: see :func:`_low_score`.
    """
    if low_score:
        with suppress(OSError):
            procfs.write("/proc/self/oom_score_adj", _OOM_SCORE)


def _start_in_user_namespace(base: Base, job: Callable[[], NoReturn]) -> Started:
    """Start a job in a PID namespace without privileges outside this user namespace.

    Such a process cannot return to its own PID namespace (setns(2)). So a helper makes the new one, starts cat and the
    job there as children of this process (CLONE_PARENT), and ends.
    """
    hold_read, hold_write = os.pipe2(os.O_CLOEXEC)
    answers, answer = os.pipe2(os.O_CLOEXEC)
    try:
        helper = os.fork()
        if helper == 0:
            text = b"0 it was killed"
            try:
                syscalls.unshare(syscalls.CLONE_NEWPID)
                init = syscalls.fork(syscalls.CLONE_PARENT)
                if init == 0:
                    _become_holder(base, hold_read)
                pid = _fork_numbered(base, init, syscalls.CLONE_PARENT)
                if pid == 0:
                    _offer_to_the_oom_killer(_low_score())
                    job()
                text = b"%d %d" % (init, pid)
            except OSError as error:
                text = told(error)
            finally:
                os.write(answer, text)
                os._exit(0)
        os.waitpid(helper, 0)
        os.set_blocking(answers, False)
        words = os.read(answers, 4096).split()
        if len(words) != 2 or not all(map(bytes.isdigit, words)):
            refusal = retold(b" ".join(words))
            why = f"a job could not be started in a PID namespace: {refusal.strerror or refusal}"
            raise OSError(refusal.errno, why) if refusal.errno else OSError(why)
    except OSError:
        os.close(hold_write)
        raise
    finally:
        for fd in (hold_read, answers, answer):
            os.close(fd)
    return Started(int(words[1]), Holder(int(words[0]), hold_write))


def _become_holder(base: Base, hold_read: int) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.dup2(hold_read, 0)
    os.dup2(base.null, 1)
    os.dup2(base.null, 2)
    os.execve(base.init_program, [base.init_program], {})  # noqa: S606 - jobs can read its environment


def _start_unheld(job: Callable[[], NoReturn], *, starts_command: bool) -> Started:
    """Start a job whose own process dies with this one; the supervisor that reaps this one finds the rest."""
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)
        _offer_to_the_oom_killer(_low_score())
        job()
    return Unheld(pid, starts_command=starts_command)


def _hold_namespace(base: Base) -> Holder:
    hold_read, hold_write = os.pipe2(os.O_CLOEXEC)
    streams = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate((hold_read, base.null, base.null))]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        pid = os.posix_spawn(base.init_program, [base.init_program], {}, file_actions=streams)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(hold_read)
    return Holder(pid, hold_write)
