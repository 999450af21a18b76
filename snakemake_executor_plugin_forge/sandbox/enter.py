"""The way into the sandbox, in two halves: what a supervisor does once, and what each job does for itself."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from ..model import LaunchSpec, Network
from ..plan import PRIVATE_DIRECTORIES
from . import mounts, privileges, syscalls
from .cgroup import JobCgroup
from .scratch import Scratch

ROOT_MECHANISMS = ("mount-ns", "pid-ns", "ipc-ns", "uts-ns", "no-new-privs", "capabilities")
USER_MECHANISMS = ("user-ns", *ROOT_MECHANISMS)


@dataclass(frozen=True, slots=True)
class Base:
    """What a supervisor has prepared for all of its jobs."""

    namespaces: str  # "root" or "user"
    own_pid_namespace: int  # a descriptor
    init_program: str
    last_capability: int
    private: tuple[str, ...]  # those of PRIVATE_DIRECTORIES that exist here and are not links


def prepare() -> Base:
    """Give this (single-threaded) process a mount namespace that its jobs will copy.

    As an ordinary user this is done in a user namespace in which only the user itself exists: user_namespaces(7).

    Raises:
        OSError: the call that the host refuses.

    """
    is_root = os.geteuid() == 0
    if is_root:
        syscalls.unshare(syscalls.CLONE_NEWNS)
    else:
        uid, gid = os.geteuid(), os.getegid()
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    device_dir = tempfile.mkdtemp(prefix="forge-dev-")
    try:
        mounts.prepare_base(device_dir)
    finally:
        os.rmdir(device_dir)
    program = shutil.which("cat")
    if program is None:
        raise OSError("cat, which holds a job's PID namespace, is not in PATH")
    return Base(
        namespaces="root" if is_root else "user",
        own_pid_namespace=os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC),
        init_program=program,
        last_capability=privileges.last_capability(),
        private=private_directories(),
    )


def private_directories() -> tuple[str, ...]:
    """Those of PRIVATE_DIRECTORIES that exist here and are not links to elsewhere."""
    return tuple(d for d in PRIVATE_DIRECTORIES if os.path.isdir(d) and not os.path.islink(d))


@dataclass(slots=True)
class Started:
    """The processes of a job that a supervisor has to look after."""

    init: subprocess.Popen[bytes]
    pid: int

    def end(self, timeout_seconds: float) -> None:
        """Kill the namespace's first process, and with it all others; wait until every one is dead, or for the time.

        Not by Popen.wait, which sleeps between looks.
        """
        self.init.kill()
        if self.init.poll() is None:  # else it was killed and waited for before
            pidfd = os.pidfd_open(self.init.pid)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if poll.poll(timeout_seconds * 1000):
                self.init.wait()
            os.close(pidfd)
        if self.init.stdin is not None:
            self.init.stdin.close()


def start(base: Base, job: Callable[[], NoReturn]) -> Started:
    """Fork ``job`` into a new PID namespace.

    Its first process, without which the kernel ends the whole namespace (pid_namespaces(7)), is ``cat`` on a pipe
    that only this supervisor holds: if the supervisor dies in whatever way, cat reads the end of the file, exits, and
    every process of the job is killed by the kernel. cat, and not a fork of this process, because a fork of a process
    with a workflow in memory costs several times as much. It ignores SIGCHLD, so that orphans that it inherits are
    reaped by the kernel.
    """
    syscalls.unshare(syscalls.CLONE_NEWPID)
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            init = subprocess.Popen(
                [base.init_program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # TERM waits until the job has its own signal handling: here it is still ignored, and would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        pid = os.fork()
        if pid == 0:
            job()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        syscalls.setns(base.own_pid_namespace, syscalls.CLONE_NEWPID)
    return Started(init, pid)


def enter(
    spec: LaunchSpec,
    base: Base,
    cgroup: JobCgroup | None,
    scratch: Scratch,
    keep: tuple[int, ...],
) -> None:
    """Lock this process, just forked by :func:`start`, into its sandbox. Streams are the caller's business.

    Args:
        scratch: the job's temporary directory.
        keep: descriptors that stay open.

    Raises:
        OSError: the call that was refused.

    """
    os.setsid()
    if cgroup is not None:
        cgroup.attach_self()
    privileges.close_descriptors(keep)
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
    if spec.network is Network.OFF:
        flags |= syscalls.CLONE_NEWNET
    syscalls.unshare(flags)
    if spec.network is Network.OFF:
        syscalls.raise_loopback()
    mounts.enter_view(scratch.private, spec.exposed, spec.limits.memory_bytes, new_proc=True)
    os.chdir(spec.workdir)
    privileges.limit_resources(spec.limits.disk_bytes)
    privileges.drop(base.last_capability)
    privileges.reset_signals()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
