"""The way into the sandbox, in two halves: what a supervisor does once, and what each job does for itself."""

from __future__ import annotations

import functools
import os
import select
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from ..model import Network
from ..plan import PRIVATE_DIRECTORIES
from . import mounts, privileges, sockets, syscalls
from .scratch import Scratch
from .syscalls import Step

if TYPE_CHECKING:
    import subprocess

_OOM_SCORE = 500
"""As if a job used half of the memory more than it does."""

ROOT_MECHANISMS = ("mount-ns", "pid-ns", "ipc-ns", "uts-ns", "no-new-privs", "capabilities")
USER_MECHANISMS = ("user-ns", *ROOT_MECHANISMS)


@dataclass(frozen=True, slots=True)
class Base:
    """What a supervisor has prepared for all of its jobs."""

    namespaces: str  # "root" or "user"
    own_pid_namespace: int  # a descriptor
    null: int  # a descriptor of /dev/null
    init_program: str
    capabilities: frozenset[int]  # what a job keeps
    private: tuple[str, ...]  # those of PRIVATE_DIRECTORIES that exist here and are not links
    gpus: tuple[str, ...] = ()  # device nodes that its jobs may be given


def prepare(gpus: tuple[str, ...] = ()) -> Base:
    """Give this (single-threaded) process a mount namespace that its jobs will copy.

    As an ordinary user this is done in a user namespace in which only the user itself exists: user_namespaces(7).

    Args:
        gpus: device nodes that its jobs may be given.

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
    device_dir = _empty_directory()
    try:
        mounts.prepare_base(device_dir, gpus)
    finally:
        os.rmdir(device_dir)
    sockets.forget()
    syscalls.join_new_session_keyring()  # whatever becomes of that of a job, it is not the user's
    program = shutil.which("cat")
    if program is None:
        raise OSError("cat, which holds a job's PID namespace, is not in PATH")
    return Base(
        namespaces="root" if is_root else "user",
        own_pid_namespace=os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC),
        null=os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC),
        init_program=program,
        capabilities=privileges.bound(),
        private=private_directories(),
        gpus=gpus,
    )


def _empty_directory() -> str:
    """As tempfile.mkdtemp, which makes every fork slower once it is imported."""
    error = OSError("there is no temporary directory")
    for parent in (os.environ.get("TMPDIR"), *PRIVATE_DIRECTORIES, os.getcwd()):
        path = f"{parent}/forge-dev-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            os.mkdir(path, 0o700)
        except OSError as refusal:
            error = refusal
        else:
            return path
    raise error


def private_directories() -> tuple[str, ...]:
    """Those of PRIVATE_DIRECTORIES that exist here and are not links to elsewhere."""
    return tuple(d for d in PRIVATE_DIRECTORIES if os.path.isdir(d) and not os.path.islink(d))


@dataclass(slots=True)
class Started:
    """The processes of a job that a supervisor has to look after."""

    pid: int
    init: subprocess.Popen[bytes] | None  # None: the job's process is the first of its namespace itself

    def kill(self) -> None:
        """Kill the namespace's first process, and with it all others, whatever they ignore: pid_namespaces(7)."""
        if self.init is not None:
            self.init.kill()
        else:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def end(self, timeout_seconds: float) -> None:
        """Kill, and wait until every process of the namespace is dead, or for the time. Leaves ``pid`` to be reaped.

        Not by Popen.wait, which sleeps between looks.
        """
        self.kill()
        if self.init is None:
            return  # who reaps pid waits for it, and it ends after all others
        if self.init.poll() is None:  # else it was killed and waited for before
            pidfd = os.pidfd_open(self.init.pid)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if poll.poll(timeout_seconds * 1000):
                self.init.wait()
            os.close(pidfd)
        if self.init.stdin is not None:
            self.init.stdin.close()


def start(base: Base, job: Callable[[], NoReturn], *, as_init: bool) -> Started:
    """Fork ``job`` into a new PID namespace.

    The kernel ends the whole namespace with its first process (pid_namespaces(7)), which must end with this
    supervisor, in whatever way that dies. There are two ways:

    * ``as_init``: it is the job's own process, which starts a command, reaps what that leaves behind and is killed
      by the kernel when its parent dies (PR_SET_PDEATHSIG). The cheapest.
    * It is ``cat`` on a pipe that only this supervisor holds, and then reads the end of the file: for jobs that run
      a rule's Python code, which would find itself without default signal handling as process 1. cat, and not a fork
      of this process, because a fork of a process with a workflow in memory costs several times as much. It ignores
      SIGCHLD, so that orphans that it inherits are reaped by the kernel.
    """
    syscalls.unshare(syscalls.CLONE_NEWPID)
    try:
        init = None if as_init else _hold_namespace(base.init_program)
        # TERM waits until the job has its own signal handling: here it is still ignored, and would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        pid = os.fork()
        if pid == 0:
            _offer_to_the_oom_killer()
            if as_init:
                syscalls.set_process_name("forge-init")
                syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
                syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # its /proc entry and its memory are not the job's business
            job()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        syscalls.setns(base.own_pid_namespace, syscalls.CLONE_NEWPID)
    return Started(pid, init)


def _offer_to_the_oom_killer() -> None:
    """Where the host, or a cgroup around the run, is out of memory: a job first, and not Snakemake or a service.

    proc_pid_oom_score_adj(5). Within the job's own limit it makes no difference, as all of its processes have it. Here
    and not later, because the file belongs to root once this process is not dumpable.
    """
    with suppress(OSError, ValueError):
        with open("/proc/self/oom_score_adj", encoding="ascii") as file:
            own = int(file.read())
        if own < _OOM_SCORE:
            _write("/proc/self/oom_score_adj", str(_OOM_SCORE))


def _hold_namespace(program: str) -> subprocess.Popen[bytes]:
    import subprocess  # not where it is not needed: threading, which it imports, makes every fork slower

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        return subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def entry_steps(
    network: Network, scratch: Scratch, exposed: tuple[str, ...], workdir: str, gpus: tuple[str, ...], base: Base
) -> tuple[Step, ...]:
    """What locks a job's process into its sandbox, worked out ahead of it, in the supervisor.

    Args:
        gpus: device nodes for this job alone, of those of ``base``.

    Raises:
        OSError: if a mount point cannot be made.

    """
    existing = tuple(path for path in exposed if os.path.exists(path))
    mounts.make_mount_points(scratch.private, existing)
    private = tuple(scratch.private.items())
    own_gpus = gpus if base.gpus else None
    return _entry_steps(network, private, scratch.places, existing, workdir, own_gpus, base.capabilities)


@functools.lru_cache(maxsize=64)  # most jobs of a run are entered in the same way
def _entry_steps(
    network: Network,
    private: tuple[tuple[str, str], ...],
    places: str,
    exposed: tuple[str, ...],
    workdir: str,
    gpus: tuple[str, ...] | None,
    capabilities: frozenset[int],
) -> tuple[Step, ...]:
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
    if network is Network.OFF:
        flags |= syscalls.CLONE_NEWNET
    return (
        syscalls.unshare_step(flags),
        *([(syscalls.raise_loopback, (), "loopback")] if network is Network.OFF else []),
        *mounts.view_steps(dict(private), places, exposed),
        *(mounts.gpu_steps(gpus) if gpus is not None else []),
        syscalls.chdir_step(workdir),
        (syscalls.join_new_session_keyring, (), "keyring"),
        *privileges.drop_steps(capabilities),
    )


def enter(steps: tuple[Step, ...], keep: tuple[int, ...]) -> None:
    """Lock this process, just forked by :func:`start`, into its sandbox. Streams are the caller's business.

    Args:
        steps: see :func:`entry_steps`.
        keep: descriptors that stay open.

    Raises:
        OSError: the call that was refused.

    """
    os.setsid()
    privileges.close_descriptors(keep)
    syscalls.run(steps)
    privileges.reset_signals()


def limit(disk_bytes: int | None, doors: list[int]) -> None:
    """Put this process, which is in its sandbox, under the limits of its job.

    Args:
        disk_bytes: no file may be larger.
        doors: of its cgroup.

    Raises:
        OSError: the call that was refused.

    """
    privileges.limit_resources(disk_bytes)
    for door in doors:
        os.write(door, b"0")
        os.close(door)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
