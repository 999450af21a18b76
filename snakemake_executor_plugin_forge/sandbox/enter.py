"""The way into the sandbox, in two halves: what a supervisor does once, and what each job does for itself."""

from __future__ import annotations

import functools
import os
import select
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NoReturn

from ..errors import SandboxError
from ..files import CHECKPOINTS, PRIVATE_DIRECTORIES, below
from ..model import FilePolicy, Files, Network
from ..variables import allowed
from . import landlock, mounts, privileges, pseudofile, root, seccomp, sweep, syscalls
from .layers import Layer
from .scratch import Scratch
from .syscalls import Step
from .view import Cover, lay_checkpoint, protect, remember, shared_memory, show, view_steps
from .view import prepare as prepare_covers

_SHM = "/dev/shm"  # noqa: S108
# What makes up a system, in the root directory: all else there is somebody's data. hier(7)
_SYSTEM = (
    "bin", "boot", "dev", "etc", "gnu", "lib", "lib32", "lib64", "libx32", "nix", "opt", "proc", "run", "sbin", "sys",
    "tmp", "usr", "var",
)  # fmt: skip

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
    foreign: tuple[str, ...] = ()  # directories in / that are no part of the system
    gpus: tuple[str, ...] = ()  # device nodes that its jobs may be given


def mechanisms(namespaces: str) -> tuple[str, ...]:
    """What a job has on this host: see :attr:`.model.Host.mechanisms`."""
    beside = (("landlock",) if not landlock.refusal(landlock.abi()) else ()) + (
        ("seccomp",) if not seccomp.refusal() else ()
    )
    return MECHANISMS[namespaces] + beside


def prepare(namespaces: str, gpus: tuple[str, ...] = (), declared: tuple[str, ...] = ()) -> Base:
    """Give this (single-threaded) process a mount namespace that its jobs will copy.

    As an ordinary user this is done in a user namespace in which only the user itself exists: user_namespaces(7).
    Where there are no namespaces, it becomes the parent of all that its jobs leave behind: see :mod:`.sweep`.

    Args:
        namespaces: "root", "user" or "none".
        gpus: device nodes that its jobs may be given.
        declared: variables that the workflow wants in its jobs' environment.

    Raises:
        OSError: the call that the host refuses.

    """
    if namespaces == "none":
        sweep.become_subreaper()
        return _base(namespaces, (), gpus, declared)
    if namespaces == "root":
        syscalls.unshare(syscalls.CLONE_NEWNS)
    else:
        uid, gid = os.geteuid(), os.getegid()
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        pseudofile.write("/proc/self/setgroups", "deny")
        pseudofile.write("/proc/self/uid_map", f"{uid} {uid} 1")
        pseudofile.write("/proc/self/gid_map", f"{gid} {gid} 1")
    mounts.prepare_base(next(filter(os.path.isdir, (*PRIVATE_DIRECTORIES, os.getcwd()))), gpus)
    return _base(namespaces, private_directories(), gpus, declared)


def _base(namespaces: str, private: tuple[str, ...], gpus: tuple[str, ...], declared: tuple[str, ...]) -> Base:
    for name in allowed(os.environ, declared)[1]:
        del os.environ[name]
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
        foreign=tuple(sorted(f"/{name}" for name in os.listdir("/") if _is_foreign(name))),
        gpus=gpus,
    )


def _is_foreign(name: str) -> bool:
    return name not in _SYSTEM and os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")


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
            return Started(fork_init(job), None)
        if base.namespaces == "user":
            return _start_in_user_namespace(base, job)
        holder, namespace = hold_namespace(base)
        try:
            return Started(fork_into(base, namespace, job, 0), holder)
        finally:
            os.close(namespace)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def fork_init(job: Callable[[], NoReturn], flags: int = 0) -> int:
    """Fork ``job`` as the first process of a new PID namespace, which ends with its parent.

    SIGTERM is to be blocked.

    Args:
        flags: more of them, of clone(2).

    Returns:
        Its number.

    Raises:
        OSError: if that is refused.

    """
    pid = syscalls.fork(syscalls.CLONE_NEWPID | flags)
    if pid == 0:
        _offer_to_the_oom_killer()
        syscalls.set_process_name("forge-init")
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # its /proc entry and its memory are not the job's business
        job()
    return pid


def hold_namespace(base: Base) -> tuple[Holder, int]:
    """Make a PID namespace, as root.

    Returns:
        Who holds it, and a descriptor of it.

    Raises:
        OSError: if that is refused.

    """
    syscalls.unshare(syscalls.CLONE_NEWPID)
    try:
        holder = _hold_namespace(base)
        return holder, os.open(f"/proc/{holder.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        syscalls.setns(base.own_pid_namespace, syscalls.CLONE_NEWPID)


def fork_into(base: Base, namespace: int, job: Callable[[], NoReturn], flags: int) -> int:
    """Fork ``job`` into a PID namespace that somebody holds. SIGTERM is to be blocked.

    Args:
        namespace: a descriptor of it.
        flags: of clone(2).

    Returns:
        Its number.

    Raises:
        OSError: if that is refused.

    """
    syscalls.setns(namespace, syscalls.CLONE_NEWPID)
    try:
        pid = syscalls.fork(flags)
        if pid == 0:
            _offer_to_the_oom_killer()
            job()
    finally:
        syscalls.setns(base.own_pid_namespace, syscalls.CLONE_NEWPID)
    return pid


def _offer_to_the_oom_killer() -> None:
    """Where the host, or a cgroup around the run, is out of memory: a job first, and not Snakemake or a service.

    proc_pid_oom_score_adj(5). Within the job's own limit it makes no difference, as all of its processes have it. Here
    and not later, because the file belongs to root once this process is not dumpable.
    """
    with suppress(OSError, ValueError):
        if int(pseudofile.read("/proc/self/oom_score_adj")) < _OOM_SCORE:
            pseudofile.write("/proc/self/oom_score_adj", _OOM_SCORE)


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


@dataclass(frozen=True, slots=True)
class View:
    """All that the way into a sandbox depends on: jobs that agree in it can use each other's process."""

    scratch_base: str
    network: Network = Network.ON
    exposed: tuple[str, ...] = ()  # below private directories, and visible all the same
    workdir: str = "/"
    files: Files = Files()  # noqa: RUF009 - frozen; without what concerns one job alone
    identities: tuple[tuple[int, int] | None, ...] = ()  # of those directories
    interactive: bool = False
    gpus: tuple[str, ...] = ()
    root: str | None = None  # the root directory of its image
    shown: tuple[str, ...] = ()  # paths of the host that are seen in there
    checkpoints: bool = False  # whether it gets a directory for them, where it has a layer


def covers(view: View, base: Base, scratch: Scratch, layers: tuple[Layer, ...]) -> tuple[Cover, ...]:
    """What a job sees in place of what, with what is visible of it all the same.

    Args:
        layers: those over the directories that the view names, in their order, and then that over $HOME.

    """
    strict = view.files.policy is FilePolicy.STRICT
    found = [Cover(directory, source=source) for directory, source in scratch.private.items()]
    if _SHM in base.private:
        found.append(shared_memory())
    if strict:
        home = view.files.home
        found += [Cover(directory, writable=False) for directory in base.foreign if directory != home]
        found += [Cover(home, tmpfs="mode=700,size=100%")] if home is not None else []
    for layer in layers:
        found.append(Cover(layer.root, layer=layer))
        if layer.lower == layer.root:
            staging = os.path.dirname(layer.directory)
            found += [Cover(staging, writable=False)] if below(staging, layer.root) else []
    if view.checkpoints and layers:  # those of other jobs are not seen, and its own is laid in there
        found.append(Cover(f"{view.workdir}/{CHECKPOINTS}"))
    return show(tuple(found), _shown(view, scratch, layers))


def _writable(view: View, scratch: Scratch) -> tuple[str, ...]:
    """Real paths that a job may write to, beside its layers and private directories."""
    return (*view.files.live, *view.files.writable, *(() if scratch.is_private else (scratch.root,)))


def _shown(view: View, scratch: Scratch, layers: tuple[Layer, ...]) -> Iterator[tuple[str, bool]]:
    """Real paths that a cover must leave visible, and whether they can be written to."""
    strict = view.files.policy is FilePolicy.STRICT
    for path in (*view.exposed, *view.files.visible):
        if os.path.exists(path) and not any(path == layer.root for layer in layers):
            yield path, not view.files.staged
    for path in _writable(view, scratch):
        if os.path.exists(path):
            yield path, True
    if strict:  # mounts of other file systems are a part of what the layers would show
        return
    for point in view.files.mounts:
        yield point, False


@dataclass(frozen=True, slots=True)
class Way:
    """What :func:`entry_steps` needs: all that is known of a sandbox before there is a process for it."""

    view: View
    covers: tuple[Cover, ...]
    layers: tuple[Layer, ...]
    places: str  # where the mount points of the covers are
    writable: tuple[str, ...]


def way_in(view: View, base: Base, scratch: Scratch, layers: tuple[Layer, ...]) -> Way:
    """Look at what is there, and make mount points; in the supervisor.

    Raises:
        OSError, SandboxError: if a mount point cannot be made.

    """
    if base.namespaces == "none":
        if view.root is not None:
            raise SandboxError("a container needs namespaces, which this host does not give: snakemake-forge doctor")
        return Way(view, (), layers, "", (*view.files.writable, scratch.root) if view.files.writable else ("/",))
    found = covers(view, base, scratch, layers)
    prepare_covers(found, scratch.places)
    writable = tuple(
        path
        for path in _writable(view, scratch)
        if os.path.exists(path) and not any(below(path, cover.directory) for cover in found)
    )
    shown = root.make_mount_points(view.root, view.shown) if view.root is not None else ()
    return Way(replace(view, shown=shown), found, layers, scratch.places, writable)


def _ruleset(writable: tuple[str, ...], nested: bool) -> landlock.Ruleset | None:
    """None where there is no Landlock, and for jobs that mount something themselves, which it forbids."""
    version = landlock.abi()
    if nested or landlock.refusal(version):
        return None
    return landlock.Ruleset(version, landlock.rules(version, (), optional=writable))


def _lock_steps(rules: landlock.Ruleset | None, nested: bool, capabilities: frozenset[int]) -> tuple[Step, ...]:
    restrict = rules.restrict_steps() if rules is not None else []
    return (*privileges.drop_steps(capabilities, nested=nested), *restrict, *seccomp.steps(nested=nested))


@functools.lru_cache(maxsize=64)  # most jobs of a run are entered in the same way
def entry_steps(way: Way, base: Base) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """What locks a job's process into its sandbox, worked out ahead of it.

    Returns:
        What can be done before there is a job, and what is done when there is one.

    """
    view, files = way.view, way.view.files
    if base.namespaces == "none":
        rules = _ruleset(way.writable, files.nested)
        ahead: tuple[Step, ...] = (syscalls.chdir_step(view.workdir), *(rules.prepare_steps() if rules else ()))
        return ahead, _lock_steps(rules, files.nested, base.capabilities)
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
    if view.network is Network.OFF:
        flags |= syscalls.CLONE_NEWNET
    mounts_of_view = view_steps(
        way.covers,
        way.places,
        read_only=files.staged,
        writable=way.writable,
        hidden=files.hidden,
        masks=not files.nested,
        user=base.namespaces == "user",
    )
    shown = [path for cover in way.covers for path, may_write in cover.shown if may_write]
    allowed_to = [cover.directory for cover in way.covers if cover.writable] + shown + list(way.writable)
    rules = _ruleset(tuple(allowed_to) if files.staged else ("/",), files.nested)
    ahead = (
        syscalls.unshare_step(flags),
        *([(syscalls.raise_loopback, (), "loopback")] if view.network is Network.OFF else []),
        *[(remember, (layer.root,), "") for layer in way.layers],
        *mounts_of_view,
        *(mounts.gpu_steps(view.gpus) if base.gpus else []),
        *(root.steps(view.root, view.shown) if view.root is not None else []),
        syscalls.chdir_step(view.workdir),
        (syscalls.join_new_session_keyring, (), "keyring"),
        *(rules.prepare_steps() if rules is not None else ()),
    )
    return ahead, _lock_steps(rules, files.nested, base.capabilities)


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


def lock(
    steps: tuple[Step, ...],
    inputs: Iterable[tuple[str, str]],
    checkpoint: tuple[str, str] | None,
    bounds: privileges.Bounds,
    doors: list[int],
) -> None:
    """Make this process, which is in its sandbox, that of one job: its inputs, its limits, and no way back.

    Args:
        steps: see :func:`entry_steps`.
        inputs: to be protected: see :func:`.view.protect`.
        checkpoint: working directory and name: see :func:`.view.lay_checkpoint`.
        bounds: of its processes.
        doors: of its cgroup.

    Raises:
        OSError: the call that was refused.

    """
    if checkpoint is not None:
        lay_checkpoint(*checkpoint)
    protect(inputs)
    syscalls.run(steps)
    privileges.limit_resources(bounds)
    for door in doors:
        os.write(door, b"0")
        os.close(door)
