"""Landlock: what a process may change in the file system, whatever its user may, and whom it may reach beside files.

Sources: landlock(7), landlock_create_ruleset(2), landlock_add_rule(2), landlock_restrict_self(2), linux/landlock.h and
userspace-api/landlock.rst of the kernel.

Only what *changes* files is handled. Reading and executing are not, so that opening a file to read costs nothing more
than before; what shall not be read is hidden by mounts. Three things that Landlock cannot do are left to read-only
mounts as well: it does not keep anybody from chmod, chown, utime and setxattr, nor from truncate(2) before ABI 3. What
it does beside them: it holds also where there is no mount namespace, it forbids every change of the mounts, and no
path around a mount leads past it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag

from .syscalls import Step

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION = 1
_RULE_PATH_BENEATH = 1
_LEAST_ABI = 2

_libc = ctypes.CDLL(None, use_errno=True)


class Right(IntFlag):
    """What may be done in a directory and below it: LANDLOCK_ACCESS_FS_…, those that change something."""

    WRITE_FILE = 1 << 1
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14


class Scope(IntFlag):
    """Whom a process may not reach, if it is outside: LANDLOCK_SCOPE_…."""

    ABSTRACT_UNIX_SOCKET = 1 << 0
    SIGNAL = 1 << 1


# IOCTL_DEV (ABI 5) is not among them: it would have to be allowed for all of /dev, and that is a small one already.
_SINCE = {Right.REFER: 2, Right.TRUNCATE: 3}  # the others since ABI 1
_OF_A_FILE = Right.WRITE_FILE | Right.TRUNCATE
_DEVICES = Right.MAKE_CHAR | Right.MAKE_BLOCK  # nobody may make them

# Written to, but never changed: devices (null, tty, fuse), and what a process says to the kernel about itself, as the
# names of its threads. Mounts say what there is in them.
_ALWAYS = ("/dev", "/proc")


@functools.cache
def abi() -> int:
    """The version of Landlock in this kernel; 0 where there is none, or where it is not switched on."""
    version: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    return max(version, 0)


def refusal(version: int) -> str:
    """Why Landlock cannot be used; empty if it can. Pure.

    Args:
        version: see :func:`abi`.

    """
    if version == 0:
        return "the kernel has no Landlock, or it is not switched on (boot parameter lsm=landlock,…)"
    if version < _LEAST_ABI:
        return "this kernel's Landlock forbids to move a file from one directory to another (before Linux 5.19)"
    return ""


def rights(version: int) -> Right:
    """What a kernel with this ABI can forbid. Pure."""
    found = Right(0)
    for right in Right:
        if version >= _SINCE.get(right, 1):
            found |= right
    return found


def scopes(version: int) -> Scope:
    """Whom a kernel with this ABI can put out of reach. Pure."""
    return Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL if version >= 6 else Scope(0)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is allowed in a file, or in a directory and below it."""

    path: str
    rights: Right
    required: bool
    """If there is no such path: an error, or no rule."""


def rules(version: int, writable: Iterable[str], optional: Iterable[str] = ()) -> tuple[Rule, ...]:
    """Those of a job. Pure.

    A job may move files from any of these to any other. A link to a file elsewhere is refused with EXDEV: it would be
    a way to change it.

    Args:
        version: see :func:`abi`.
        writable: files and directories in which the job may do anything but make device nodes.
        optional: the same, of those that exist.

    """
    all_ = rights(version) & ~_DEVICES
    return (
        *(Rule(path, rights(version) & _OF_A_FILE, required=False) for path in _ALWAYS),
        *(Rule(path, all_, required=True) for path in writable),
        *(Rule(path, all_, required=False) for path in optional),
    )


class Ruleset:
    """The rules of one process, in two parts: they are looked up ahead, and hold from when it restricts itself.

    They belong to files and directories, not to names: so they are looked up when all mounts are in place. What is
    mounted later on a path with a rule, or below it, has that rule too.
    """

    def __init__(self, version: int, allowed: Iterable[Rule]) -> None:
        """Nothing is opened yet: that is done by the process in which the steps are made.

        Args:
            version: see :func:`abi`; one that :func:`refusal` has nothing against.
            allowed: see :func:`rules`. Everything else that :class:`Right` names is forbidden.

        """
        self._fd = -1
        self._handled = struct.pack("=QQQ", rights(version), 0, scopes(version))
        # Worked out here: the process that makes the steps has to copy every page that it touches.
        self._rules = tuple((r.path, int(r.rights), int(r.rights & _OF_A_FILE), r.required) for r in allowed)

    def prepare_steps(self) -> list[Step]:
        """Look up the paths. FileNotFoundError if a required one is not there."""
        return [
            (self._create, (), "landlock_create_ruleset"),
            *((self._allow, rule, f"landlock_add_rule {rule[0]}") for rule in self._rules),
        ]

    def restrict_steps(self) -> list[Step]:
        """From now on only what the rules allow, for this process and all that it starts. After no_new_privs."""
        return [(self._restrict, (), "landlock_restrict_self")]

    def _create(self) -> int:
        self._fd = _libc.syscall(_CREATE_RULESET, self._handled, ctypes.c_size_t(len(self._handled)), 0)
        return self._fd

    def _allow(self, path: str, of_a_directory: int, of_a_file: int, required: bool) -> int:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            if required:
                raise
            return 0
        try:
            allowed = of_a_directory if stat.S_ISDIR(os.fstat(fd).st_mode) else of_a_file
            attributes = struct.pack("=Qi", allowed, fd)
            result: int = _libc.syscall(_ADD_RULE, self._fd, _RULE_PATH_BENEATH, attributes, 0)
        finally:
            os.close(fd)
        return result

    def _restrict(self) -> int:
        result: int = _libc.syscall(_RESTRICT_SELF, self._fd, 0)
        if result == 0:
            os.close(self._fd)
        return result
