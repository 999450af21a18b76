"""Landlock: limits on the changes that a process can make to files, and on the processes that it can reach.

Sources: landlock(7), landlock_create_ruleset(2), landlock_add_rule(2), landlock_restrict_self(2), linux/landlock.h and
userspace-api/landlock.rst of the kernel.

Forge lets Landlock handle *changes* only, not reading and executing, so that opening a file for reading costs nothing
more; mounts hide unreadable files. Read-only mounts do the rest: Landlock does not prevent chmod, chown, utime and
setxattr, nor truncate(2) before ABI 3. Landlock adds to mounts: it also works without a mount namespace, it forbids
every change of the mounts, and no path around a mount avoids it.
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

from ..kernel.syscalls import Step

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_VERSION = 1
_RULE_PATH_BENEATH = 1
_LEAST_ABI = 2

_libc = ctypes.CDLL(None, use_errno=True)


class Right(IntFlag):
    """Rights in a directory and below it: the LANDLOCK_ACCESS_FS_… that change something."""

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
    """Targets outside that a process cannot reach: LANDLOCK_SCOPE_…."""

    ABSTRACT_UNIX_SOCKET = 1 << 0
    SIGNAL = 1 << 1


# IOCTL_DEV (ABI 5) is missing: Forge would have to allow it for all of /dev, which is a small one already.
_SINCE = {Right.REFER: 2, Right.TRUNCATE: 3}  # all others since ABI 1
_OF_A_FILE = Right.WRITE_FILE | Right.TRUNCATE
_DEVICES = Right.MAKE_CHAR | Right.MAKE_BLOCK  # a job may never make these

# Writable, without new or removed files: devices (null, tty, fuse), and files by which a process configures itself,
# such as the names of its threads. Mounts decide their content.
_ALWAYS = ("/dev", "/proc")


@functools.cache
def abi() -> int:
    """The version of Landlock in this kernel; 0 where it is missing or disabled."""
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
    """The rights that a kernel with this ABI can forbid. Pure."""
    found = Right(0)
    for right in Right:
        if version >= _SINCE.get(right, 1):
            found |= right
    return found


def scopes(version: int) -> Scope:
    """The targets that a kernel with this ABI can make unreachable. Pure."""
    return Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL if version >= 6 else Scope(0)


@dataclass(frozen=True, slots=True)
class Rule:
    """Rights for a file, or for a directory and everything below it."""

    path: str  # a missing one gives no rule
    rights: Right


def rules(version: int, writable: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of a job. Pure.

    A job may move files between these places. Landlock refuses a hard link to a file elsewhere with EXDEV, because the
    link would make it writable.

    Args:
        version: see :func:`abi`.
        writable: files and directories with all rights but making device nodes.
    """
    return (
        *(Rule(path, rights(version) & _OF_A_FILE) for path in _ALWAYS),
        *(Rule(path, rights(version) & ~_DEVICES) for path in writable),
    )


class Ruleset:
    """The rules of one process, in two parts: it opens the paths first, and later restricts itself.

    Rules belong to files and directories, not to names: so the process opens the paths when all mounts are in place. A
    later mount on a path with a rule, or below it, has that rule too.
    """

    def __init__(self, version: int, allowed: Iterable[Rule]) -> None:
        """Open nothing yet: the process that runs the steps does so.

        Args:
            version: see :func:`abi`; :func:`refusal` must accept it.
            allowed: see :func:`rules`. All other rights of :class:`Right` are forbidden.
        """
        self._fd = -1
        self._handled = struct.pack("=QQQ", rights(version), 0, scopes(version))
        # Computed here: in the process that runs the steps, each touched page costs a copy.
        self._rules = tuple((r.path, int(r.rights), int(r.rights & _OF_A_FILE)) for r in allowed)

    def prepare_steps(self) -> list[Step]:
        """Open the paths."""
        return [
            (self._create, (), "landlock_create_ruleset"),
            *((self._allow, rule, f"landlock_add_rule {rule[0]}") for rule in self._rules),
        ]

    def restrict_steps(self) -> list[Step]:
        """Restrict this process and its descendants to the rules. Requires no_new_privs."""
        return [(self._restrict, (), "landlock_restrict_self")]

    def _create(self) -> int:
        self._fd = _libc.syscall(_CREATE_RULESET, self._handled, ctypes.c_size_t(len(self._handled)), 0)
        return self._fd

    def _allow(self, path: str, of_a_directory: int, of_a_file: int) -> int:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
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
