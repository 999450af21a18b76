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
from typing import NoReturn

from ..model import Network
from ..plan import PRIVATE_DIRECTORIES
from . import mounts, privileges, sockets, sweep, syscalls
from .scratch import Scratch
from .syscalls import Step

_OOM_SCORE = 500
"""As if a job used half of the memory more than it does."""

ROOT_MECHANISMS = ("mount-ns", "pid-ns", "ipc-ns", "uts-ns", "no-new-privs", "capabilities")
USER_MECHANISMS = ("user-ns", *ROOT_MECHANISMS)
NO_MECHANISMS = ("subreaper", "no-new-privs", "capabilities")
MECHANISMS = {"root": ROOT_MECHANISMS, "user": USER_MECHANISMS, "none": NO_MECHANISMS}
"""What a job has, by the kind of its namespaces: see :attr:`.model.Host.namespaces`."""


@dataclass(frozen=True, slots=True)
class Base:
    """What a supervisor has prepared for all of its jobs."""

    namespaces: str  # "root", "user" or "none"
    own_pid_namespace: int  # a descriptor
    null: int  # a descriptor of /dev/null
    init_program: str
    capabilities: frozenset[int]  # what a job keeps
    private: tuple[str, ...]  # those of PRIVATE_DIRECTORIES that exist here and are not links
    gpus: tuple[str, ...] = ()  # device nodes that its jobs may be given


def prepare(namespaces: str, gpus: tuple[str, ...] = ()) -> Base:
    """Give this (single-threaded) process a mount namespace that its jobs will copy.

    As an ordinary user this is done in a user namespace in which only the user itself exists: user_namespaces(7).
    Where there are no namespaces, it becomes the parent of all that its jobs leave behind: see :mod:`.sweep`.

    Args:
        namespaces: "root", "user" or "none".
        gpus: device nodes that its jobs may be given.

    Raises:
        OSError: the call that the host refuses.

    """
    if namespaces == "none":
        sweep.become_subreaper()
        return _base(namespaces, (), gpus)
    if namespaces == "root":
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
    return _base(namespaces, private_directories(), gpus)


def _base(namespaces: str, private: tuple[str, ...], gpus: tuple[str, ...]) -> Base:
    sockets.forget()
    syscalls.join_new_session_keyring()  # whatever becomes of that of a job, it is not the user's
    program = shutil.which("cat")
    if program is None:
        raise OSError("cat, which holds a job's PID namespace, is not in PATH")
    return Base(
        namespaces=namespaces,
        own_pid_namespace=os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC),
        null=os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC),
        init_program=program,
        capabilities=privileges.bound(),
        private=private,
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
class Holder:
    """A process (cat) that is the first one of a PID namespace, and ends with the write end of its pipe."""

    pid: int
    pipe: int
    dead: bool = False

    def end(self, timeout_seconds: float) -> bool:
        """Wait until it and all others in its namespace are dead; False after the time. It was killed before."""
        if self.dead:
            return True
        pidfd = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if poll.poll(timeout_seconds * 1000):
            os.waitpid(self.pid, 0)
            os.close(self.pipe)
            self.dead = True
        os.close(pidfd)
        return self.dead


@dataclass(slots=True)
class Started:
    """The processes of a job that a supervisor has to look after."""

    pid: int
    init: Holder | None  # None: the job's process is the first of its namespace itself

    @property
    def holder(self) -> int | None:
        """The process of ours that holds the namespace or started the command, and is no part of the job."""
        return self.pid if self.init is None else self.init.pid

    def kill(self) -> None:
        """Kill the namespace's first process, and with it all others, whatever they ignore: pid_namespaces(7)."""
        if self.init is not None and self.init.dead:
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid if self.init is None else self.init.pid, signal.SIGKILL)

    def end(self, timeout_seconds: float) -> bool:
        """Kill, and wait until every process of the namespace is dead; False after the time. ``pid`` is not reaped."""
        self.kill()
        # Without a holder, who reaps pid waits for it, and it ends after all others.
        return self.init is None or self.init.end(timeout_seconds)


class Unheld(Started):
    """The same without a namespace: the job is all that is below this supervisor, and is killed one by one."""

    def __init__(self, pid: int, *, starts_command: bool) -> None:
        super().__init__(pid, None)
        self._holder = pid if starts_command else None

    @property
    def holder(self) -> int | None:
        return self._holder

    def kill(self) -> None:
        sweep.kill_below(os.getpid())

    def end(self, timeout_seconds: float) -> bool:
        return sweep.end_below(os.getpid(), self.pid, timeout_seconds)


def start(base: Base, job: Callable[[], NoReturn], *, as_init: bool) -> Started:
    """Fork ``job`` into a new PID namespace, where there are such.

    The kernel ends the whole namespace with its first process (pid_namespaces(7)), which must end with this
    supervisor, in whatever way that dies. There are two ways:

    * ``as_init``: it is the job's own process, which starts a command, reaps what that leaves behind and is killed
      by the kernel when its parent dies (PR_SET_PDEATHSIG). The cheapest.
    * It is ``cat`` on a pipe that only this supervisor holds, and then reads the end of the file: for jobs that run
      a rule's Python code, which would find itself without default signal handling as process 1. cat, and not a fork
      of this process, because a fork of a process with a workflow in memory costs several times as much. It ignores
      SIGCHLD, so that orphans that it inherits are reaped by the kernel.
    """
    if base.namespaces == "none":
        return _start_unheld(job, starts_command=as_init)
    # TERM waits until the job has its own signal handling: here it is still ignored, and would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        if as_init:
            return Started(_fork_init(job), None)
        return _start_in_user_namespace(base, job) if base.namespaces == "user" else _start_as_root(base, job)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _fork_init(job: Callable[[], NoReturn]) -> int:
    pid = syscalls.fork(syscalls.CLONE_NEWPID)
    if pid == 0:
        _offer_to_the_oom_killer()
        syscalls.set_process_name("forge-init")
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # its /proc entry and its memory are not the job's business
        job()
    return pid


def _start_as_root(base: Base, job: Callable[[], NoReturn]) -> Started:
    syscalls.unshare(syscalls.CLONE_NEWPID)
    try:
        init = _hold_namespace(base)
        pid = os.fork()
        if pid == 0:
            _offer_to_the_oom_killer()
            job()
    finally:
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


def _start_in_user_namespace(base: Base, job: Callable[[], NoReturn]) -> Started:
    """Who has no privileges outside its user namespace cannot go back to its own PID namespace (setns(2)).

    So a helper goes there, starts cat and the job as children of this process (CLONE_PARENT), and ends.
    """
    hold_read, hold_write = os.pipe2(os.O_CLOEXEC)
    answers, answer = os.pipe2(os.O_CLOEXEC)
    try:
        helper = os.fork()
        if helper == 0:
            text = b"it was killed"
            try:
                syscalls.unshare(syscalls.CLONE_NEWPID)
                init = syscalls.fork(syscalls.CLONE_PARENT)
                if init == 0:
                    _become_holder(base, hold_read)
                pid = syscalls.fork(syscalls.CLONE_PARENT)
                if pid == 0:
                    _offer_to_the_oom_killer()
                    job()
                text = b"%d %d" % (init, pid)
            except OSError as error:
                text = str(error).encode()
            finally:
                os.write(answer, text)
                os._exit(0)
        os.waitpid(helper, 0)
        os.set_blocking(answers, False)
        words = os.read(answers, 4096).split()
        if len(words) != 2 or not all(map(bytes.isdigit, words)):
            raise OSError(f"a job could not be started in a PID namespace: {b' '.join(words).decode()}")
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
    os.execv(base.init_program, [base.init_program])  # noqa: S606


def _start_unheld(job: Callable[[], NoReturn], *, starts_command: bool) -> Started:
    """At least the job's own process dies with this one; a supervisor that buries it finds the rest."""
    supervisor = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        pid = os.fork()
        if pid == 0:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(1)
            _offer_to_the_oom_killer()
            job()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return Unheld(pid, starts_command=starts_command)


def _hold_namespace(base: Base) -> Holder:
    hold_read, hold_write = os.pipe2(os.O_CLOEXEC)
    streams = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate((hold_read, base.null, base.null))]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        pid = os.posix_spawn(base.init_program, [base.init_program], os.environ, file_actions=streams)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(hold_read)
    return Holder(pid, hold_write)


def entry_steps(
    network: Network, scratch: Scratch, exposed: tuple[str, ...], workdir: str, gpus: tuple[str, ...], base: Base
) -> tuple[Step, ...]:
    """What locks a job's process into its sandbox, worked out ahead of it, in the supervisor.

    Args:
        gpus: device nodes for this job alone, of those of ``base``.

    Raises:
        OSError: if a mount point cannot be made.

    """
    if base.namespaces == "none":
        return (syscalls.chdir_step(workdir), *privileges.drop_steps(base.capabilities))
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


def limit(disk_bytes: int | None, processes: int | None, doors: list[int]) -> None:
    """Put this process, which is in its sandbox, under the limits of its job.

    Args:
        disk_bytes: no file may be larger.
        processes: of this user in this user namespace: RLIMIT_NPROC of getrlimit(2).
        doors: of its cgroup.

    Raises:
        OSError: the call that was refused.

    """
    privileges.limit_resources(disk_bytes, processes)
    for door in doors:
        os.write(door, b"0")
        os.close(door)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
