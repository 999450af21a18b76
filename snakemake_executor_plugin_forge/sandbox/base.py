"""The base that a supervisor prepares for all of its jobs: a mount namespace that they copy, and descriptors."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from ..kernel import environment, process_tree, procfs, syscalls
from ..spec.file_policy import PRIVATE_DIRECTORIES
from . import landlock, privileges, seccomp
from .environment import withheld
from .filesystem import mounts
from .filesystem.kept import Connection, Kept

# The directories in / that belong to the system, by hier(7): all others hold somebody's data.
_SYSTEM = (
    "bin", "boot", "dev", "etc", "gnu", "lib", "lib32", "lib64", "libx32", "nix", "opt", "proc", "run", "sbin", "sys",
    "tmp", "usr", "var",
)  # fmt: skip

ROOT_MECHANISMS = ("mount-ns", "pid-ns", "ipc-ns", "uts-ns", "no-new-privs", "capabilities")
USER_MECHANISMS = ("user-ns", *ROOT_MECHANISMS)
NO_MECHANISMS = ("subreaper", "no-new-privs", "capabilities")
MECHANISMS = {"root": ROOT_MECHANISMS, "user": USER_MECHANISMS, "none": NO_MECHANISMS}
"""The mechanisms that isolate a job, by the kind of its namespaces: see :attr:`..spec.host.Host.namespaces`."""


@dataclass(frozen=True, slots=True)
class Base:
    """The preparation of a supervisor for all of its jobs."""

    namespaces: str  # "root", "user" or "none"
    own_pid_namespace: int  # a descriptor
    returns: bool  # whether this process can leave its PID namespace and return: not out of a user namespace
    userns: bool  # whether a user namespace is around its jobs, its own or somebody else's
    null: int  # a descriptor of /dev/null
    init_program: str
    capabilities: frozenset[int]  # what a job keeps
    pid_max: int  # of this host: proc_sys_kernel(5)
    private: tuple[str, ...]  # see private_directories()
    foreign: tuple[str, ...] = ()  # directories in / that are no part of the system
    gpus: tuple[str, ...] = ()  # device nodes that its jobs may be given
    kept: tuple[tuple[str, str], ...] = ()  # directories of the workflow's home, and where their overlays are meanwhile
    holder: Connection | None = None  # keeps these overlays
    removed: tuple[str, ...] = ()  # variables of Snakemake's environment that they do not get


def mechanisms(namespaces: str) -> tuple[str, ...]:
    """Return the mechanisms that isolate a job on this host: see :attr:`..spec.host.Host.mechanisms`."""
    refusals = {"landlock": landlock.refusal(landlock.abi()), "seccomp": seccomp.refusal()}
    return MECHANISMS[namespaces] + tuple(name for name, refusal in refusals.items() if not refusal)


def work_out_ahead(declared: tuple[str, ...]) -> None:
    """Fill the caches that each supervisor needs, in the process that forks them: they share them, and spare the time.

    Args:
        declared: see :func:`prepare`.
    """
    environment.values_of(tuple(sorted(map(os.fsencode, withheld(os.environ, declared)))))
    landlock.refusal(landlock.abi())
    seccomp.steps(nested=False)
    seccomp.can_listen()
    syscalls.has_mount_setattr()


def prepare(
    namespaces: str,
    gpus: tuple[str, ...] = (),
    declared: tuple[str, ...] = (),
    home: Kept | None = None,
    console: str | None = None,
) -> Base:
    """Give this (single-threaded) process a mount namespace that its jobs will copy.

    Where there are no namespaces, this process becomes the parent of all that its jobs leave behind: see
    :mod:`..kernel.process_tree`.

    Args:
        namespaces: "root", "user" or "none".
        gpus: device nodes that its jobs may be given.
        declared: variables that the workflow wants in its jobs' environment.
        home: the workflow's home.
        console: the terminal of jobs, for a prompt.

    Raises:
        OSError: if the host refuses a call.
    """
    if namespaces == "none":
        process_tree.become_subreaper()
        return _base(namespaces, (), gpus, declared)
    holder = home.connect() if home is not None else None  # while its socket can be seen
    covers = holder.mounts() if holder is not None else []
    mounts.enter_namespace(namespaces)
    mounts.prepare_base(next(filter(os.path.isdir, (*PRIVATE_DIRECTORIES, os.getcwd()))), gpus, console)
    kept = tuple(zip(home.directories if home is not None else (), mounts.place_kept(covers), strict=True))
    return replace(_base(namespaces, private_directories(), gpus, declared), kept=kept, holder=holder)


def _base(namespaces: str, private: tuple[str, ...], gpus: tuple[str, ...], declared: tuple[str, ...]) -> Base:
    removed = withheld(os.environ, declared)
    environment.forget(removed)
    syscalls.join_new_session_keyring()  # a job must not change the keyring of the user
    paths = (f"{directory}/cat" for directory in os.get_exec_path())
    program = next((path for path in paths if os.access(path, os.X_OK)), None)
    if program is None:
        raise OSError("cat, which holds a job's PID namespace, is not in PATH")
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    return Base(
        namespaces=namespaces,
        own_pid_namespace=own,
        returns=namespaces != "none" and _can_enter(own),
        userns=mounts.in_user_namespace(),
        null=os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC),
        init_program=program,
        capabilities=privileges.bound(),
        pid_max=int(procfs.read("/proc/sys/kernel/pid_max")),
        private=private,
        foreign=tuple(sorted(f"/{name}" for name in os.listdir("/") if _is_foreign(name))),
        gpus=gpus,
        removed=removed,
    )


def _can_enter(namespace: int) -> bool:
    """Whether this process may enter its own PID namespace again: setns(2), not out of a user namespace."""
    try:
        syscalls.setns(namespace, syscalls.CLONE_NEWPID)
    except OSError:
        return False
    return True


def _is_foreign(name: str) -> bool:
    return name not in _SYSTEM and os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")


def private_directories() -> tuple[str, ...]:
    """Return the directories of PRIVATE_DIRECTORIES that exist here and are not links, nor the working directory."""
    workdir = os.path.realpath(os.getcwd())
    return tuple(d for d in PRIVATE_DIRECTORIES if os.path.isdir(d) and not os.path.islink(d) and d != workdir)
