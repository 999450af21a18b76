"""What a job may not do: capabilities, new privileges, file descriptors, signals, core dumps."""

from __future__ import annotations

import os
import resource
import signal
from typing import NamedTuple

from . import syscalls

# What a root user's ordinary programs need (tar restores owners, tools work in other users' directories) and no
# more: neither mounting nor devices, raw sockets, ptrace of others, kernel modules nor reading files by handle.
_KEPT_BY_ROOT = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7}
# Of root's programs only the one that holds a job's PID namespace has it. It is outside the sandbox but for that
# namespace, and who has less than a process may neither trace it nor look through its /proc entry: ptrace(2).
_CAP_SETPCAP = 8
# Who makes a user namespace with root in it must have it: user_namespaces(7). For jobs that make sandboxes themselves.
_CAP_SETFCAP = 31


def bound() -> frozenset[int]:
    """In a supervisor, once: set the bound of what any program may have that it or its jobs execute.

    The supervisor itself keeps what it has: it makes namespaces and mounts.

    Returns:
        The capabilities that a job keeps; an ordinary user's jobs keep none.

    """
    kept = frozenset(_KEPT_BY_ROOT.values()) if os.geteuid() == 0 else frozenset[int]()
    own = syscalls.effective_capabilities()
    if _CAP_SETPCAP in own:  # else no_new_privs alone has to do: programs cannot gain any by being executed
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:  # proc_sys_kernel(5)
            last = int(file.read())
        syscalls.bound_capabilities(kept | {_CAP_SETPCAP, _CAP_SETFCAP} if kept else kept, last)
    return own & kept


def drop_steps(kept: frozenset[int], *, nested: bool = False) -> list[syscalls.Step]:
    """In a job: give up all other capabilities, and the way to new ones (no_new_privs of prctl(2)).

    Args:
        kept: see :func:`bound`.
        nested: the job makes user namespaces of its own.

    """
    if not kept:
        return [syscalls.capset_step(kept), syscalls.prctl_step(syscalls.PR_SET_NO_NEW_PRIVS, 1)]
    beside = syscalls.effective_capabilities() & {_CAP_SETFCAP} if nested else frozenset[int]()
    return [
        *(syscalls.prctl_step(syscalls.PR_CAPBSET_DROP, number) for number in {_CAP_SETPCAP, _CAP_SETFCAP} - beside),
        syscalls.capset_step(kept | beside),
        syscalls.prctl_step(syscalls.PR_SET_NO_NEW_PRIVS, 1),
    ]


def close_descriptors(keep: tuple[int, ...]) -> None:
    """Close every descriptor above 2 but ``keep``."""
    previous = 2
    for fd in sorted(fd for fd in keep if fd > 2):
        os.closerange(previous + 1, fd)
        previous = fd
    os.closerange(previous + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def reset_signals() -> None:
    """Every signal back to its default: what Snakemake has set must not leak into jobs.

    SIGPIPE too: Python ignores it, its children shall not. ``run:`` code expects Python's own way, which
    subprocess restores for its children by itself.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})  # until the job can deal with it: Execute


class Bounds(NamedTuple):  # which the process of a job unpickles faster than other classes
    """What holds for a job's processes by themselves, wherever they are: setrlimit(2), setpriority(2)."""

    file_bytes: int | None  # no file may be larger
    processes: int | None  # of this user in this user namespace: RLIMIT_NPROC
    nice: int = 0


def limit_resources(bounds: Bounds) -> None:
    """No core dumps in the working directory, and what is asked for.

    A nice value only ever rises: where Snakemake was started with a higher one, that stays.
    """
    file_bytes, processes = bounds.file_bytes, bounds.processes
    if bounds.nice:
        os.setpriority(os.PRIO_PROCESS, 0, max(bounds.nice, os.getpriority(os.PRIO_PROCESS, 0)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if file_bytes is not None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        limit = file_bytes if hard == resource.RLIM_INFINITY else min(file_bytes, hard)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if processes is not None:
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        limit = processes if hard == resource.RLIM_INFINITY else min(processes, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


def counts_processes_by_namespace() -> bool:
    """Whether RLIMIT_NPROC counts this user's processes in its user namespace alone (Linux 5.14: set_rlimit_ucounts).

    Tried in a new user namespace with a limit that only such a count stays below: this process, a child and its
    child. A count of all processes of the user has Snakemake, this program and its parents in it as well.
    """
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0)
            os.waitpid(grandchild, 0)
            try:  # and is it enforced at all?
                resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
                if os.fork() == 0:
                    os._exit(0)
                os._exit(1)
            except BlockingIOError:
                os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
