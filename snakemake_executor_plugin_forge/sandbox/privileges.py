"""Restrictions of a job's processes: capabilities, new privileges, file descriptors, signals, core dumps."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from ..kernel import procfs, syscalls
from ..kernel.inherited import DEFAULT_SIGNALS, set_mask, set_signal

# The needs of a root user's ordinary programs (tar restores owners, tools work in other users' directories): no
# mounting, devices, raw sockets, ptrace of others, kernel modules or reading of files by handle.
_KEPT_BY_ROOT = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7}
# Only the root process that holds a job's PID namespace has it. That process is outside the rest of the sandbox, and a
# process with fewer capabilities can neither trace it nor read its /proc entry: ptrace(2).
_CAP_SETPCAP = 8
# A process that maps root into a user namespace must have it: user_namespaces(7). For jobs that make sandboxes.
_CAP_SETFCAP = 31


def bound() -> frozenset[int]:
    """Limit, once per supervisor, the capabilities of every program that it or its jobs execute.

    The supervisor keeps its own capabilities, because it makes namespaces and mounts.

    Returns:
        The capabilities that a job keeps; an ordinary user's jobs keep none.
    """
    kept = frozenset(_KEPT_BY_ROOT.values()) if os.geteuid() == 0 else frozenset[int]()
    own = syscalls.effective_capabilities()
    if _CAP_SETPCAP in own:  # otherwise no_new_privs has to suffice: execve(2) adds none
        with open("/proc/sys/kernel/cap_last_cap", encoding="utf-8") as file:  # proc_sys_kernel(5)
            known = range(int(file.read()) + 1)
        for number in set(known) - (kept | {_CAP_SETPCAP, _CAP_SETFCAP} if kept else kept):
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
        with suppress(OSError):  # before Linux 4.3 there is no ambient set
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    return own & kept


def drop_steps(kept: frozenset[int], *, nested: bool = False) -> list[syscalls.Step]:
    """Drop, in a job, all other capabilities, and block new ones (no_new_privs of prctl(2)).

    Args:
        kept: see :func:`bound`.
        nested: the job makes user namespaces of its own.
    """
    own = syscalls.effective_capabilities()
    beside = own & {_CAP_SETFCAP} if kept and nested else frozenset[int]()
    dropped = {_CAP_SETPCAP, _CAP_SETFCAP} - beside if kept and _CAP_SETPCAP in own else set[int]()
    return [
        *(syscalls.prctl_step(syscalls.PR_CAPBSET_DROP, number) for number in dropped),
        syscalls.capset_step(kept | beside),
        syscalls.prctl_step(syscalls.PR_SET_NO_NEW_PRIVS, 1),
    ]


_stand_ins: set[int] = set()  # of this process and those that it forks


def replace_descriptors(keep: tuple[int, ...]) -> None:
    """Close every descriptor above 2 except ``keep``, and put /dev/null in the place of those that Python opened.

    Files and handlers of Python's logging that this process has inherited still write to those numbers. A file or
    socket that was opened later would get one of these, and then what they write. No executed program gets them.
    Descriptors that this program was started with are inheritable, and no such object has them. Nothing writes to files
    that were opened to be read; and of many, the lowest have to do, because jobs need numbers, too.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in sorted({int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, null, *keep}):
        with suppress(OSError):  # listdir itself had one, which is closed by now
            is_written = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if is_written and len(_stand_ins) < most and not os.get_inheritable(fd):
                _stand_ins.add(os.dup2(null, fd, inheritable=False))
    close_descriptors(keep)


def close_descriptors(keep: tuple[int, ...]) -> None:
    """Close every descriptor above 2 except ``keep`` and the places that :func:`replace_descriptors` holds."""
    previous = 2
    for fd in sorted(fd for fd in (*keep, *_stand_ins) if fd > 2):
        os.closerange(previous + 1, fd)
        previous = fd
    os.closerange(previous + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


_DEFAULT, _SIGINT, _SIGTERM = int(signal.SIG_DFL), int(signal.SIGINT), int(signal.SIGTERM)
_SET_MASK = int(signal.SIG_SETMASK)

# Python ignores SIGXFSZ for its own sake (EFBIG raises OSError), as it does SIGPIPE.
_LEFT_BY_DEFAULT = DEFAULT_SIGNALS - {signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ}


def changed_signals() -> tuple[int, ...]:
    """Return the signals whose action is not the default in this process, nor in one that it forks next.

    This leaves three calls of sigaction(2) to the fork, instead of sixty. The kernel says it (proc_pid_status(5)):
    Python does not know of handlers that libraries have set.
    """
    masks = {}
    with suppress(OSError, ValueError):
        for line in procfs.read("/proc/self/status").splitlines():
            name, _, text = line.partition(b":")
            if name in (b"SigIgn", b"SigCgt"):
                masks[name] = int(text, 16)
    other = sum(masks.values()) if len(masks) == 2 else -1  # a signal is in one of them at most
    return tuple(int(number) for number in _LEFT_BY_DEFAULT if other >> (number - 1) & 1)


def reset_signals(changed: Iterable[int]) -> None:
    """Reset every signal to its default, so that Snakemake's handlers do not leak into jobs.

    SIGPIPE, which Python ignores, stays: ``run:`` code expects Python's own setting, and subprocess and posix_spawn(3)
    restore the default for their children.

    Args:
        changed: see :func:`changed_signals`.
    """
    for number in changed:
        set_signal(number, _DEFAULT)
    set_signal(_SIGINT, signal.default_int_handler)
    set_mask(_SET_MASK, (_SIGTERM,))  # until the job can handle it: Execute


class Bounds(NamedTuple):  # a job's process unpickles a NamedTuple faster than other classes
    """Limits of a job's processes that need no cgroup: setrlimit(2), setpriority(2)."""

    file_bytes: int | None  # the largest file
    processes: int | None  # of this user in this user namespace: RLIMIT_NPROC
    nice: int = 0


def limit_resources(bounds: Bounds) -> None:
    """Forbid core dumps in the working directory, and apply ``bounds``.

    A nice value only rises: a higher value of Snakemake itself stays.
    """
    if bounds.nice:
        os.setpriority(os.PRIO_PROCESS, 0, max(bounds.nice, os.getpriority(os.PRIO_PROCESS, 0)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for kind, wanted in ((resource.RLIMIT_FSIZE, bounds.file_bytes), (resource.RLIMIT_NPROC, bounds.processes)):
        if wanted is not None:
            hard = resource.getrlimit(kind)[1]
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(kind, (limit, limit))


def counts_processes_by_namespace() -> bool:
    """Whether RLIMIT_NPROC counts this user's processes in its user namespace alone (Linux 5.14: set_rlimit_ucounts).

    It tries a limit, in a new user namespace, that only such a count stays below: this process, a child and its child.
    A count of all processes of the user would include Snakemake, this program and its parents.
    """
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0)
            os.waitpid(grandchild, 0)
            try:  # checks that the kernel enforces it at all
                resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
                if os.fork() == 0:
                    os._exit(0)
                os._exit(1)
            except BlockingIOError:
                os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
