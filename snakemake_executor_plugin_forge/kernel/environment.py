"""The environment of this process, with what is left of a variable in its memory: environ(7), proc_pid_environ(5).

The processes of jobs with Python in them are forks, which have all of the memory of the process that they come from.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Iterable, Mapping

from .process_tree import stat

_libc = ctypes.CDLL(None)
_libc.getenv.restype = ctypes.c_void_p
_libc.strlen.restype = ctypes.c_size_t
_BEGIN, _END = 47, 48  # env_start and env_end of proc_pid_stat(5), counted from the state
_libc.memmem.restype = ctypes.c_void_p
_libc.memmem.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t)
_BYTES_HEAD = bytes.__basicsize__ - 1  # of CPython's objects, before their content
_HEADS: tuple[tuple[type, int], ...] = ((bytes, _BYTES_HEAD), (str, sys.getsizeof("") - 1))
_SHORTEST = 8  # bytes of a value that is looked for: shorter ones are no secrets, and are found everywhere
_SEARCHED_BYTES = 1 << 29
_OWN_REFERENCES = 3  # of os.environ, of the variable here, and of the argument of getrefcount


def forget(names: Iterable[str], secrets: Iterable[str] = ()) -> None:
    """Remove variables from this process, and overwrite their values wherever no living object has them.

    That is C's environment, Python's and the kernel's. Objects that the program still has stay, such as a global of a
    Snakefile. Nothing here decodes a value, which would make one more copy.

    Args:
        secrets: those of them whose values are also looked for in strings that Python has freed.
    """
    kept: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
    found = {os.fsencode(name) for name in names} & kept.keys()
    values = {name: bytearray(kept[name]) for name in sorted(found.intersection(map(os.fsencode, secrets)))}
    for name in found:
        _overwrite(name)
        del os.environb[name]
    if found:
        _overwrite_initial(values_of(tuple(sorted(found))))
        _overwrite_freed({name: value for name, value in values.items() if len(value) >= _SHORTEST})
    for value in values.values():
        value[:] = bytes(len(value))


def _overwrite(name: bytes) -> None:
    address = _libc.getenv(name)
    if address:
        ctypes.memset(address, 0, _libc.strlen(ctypes.c_void_p(address)))
    value = os.environ._data[name]  # type: ignore[attr-defined]
    if len(value) > 1 and sys.getrefcount(value) <= _OWN_REFERENCES:  # CPython shares shorter ones
        ctypes.memset(id(value) + _BYTES_HEAD, 0, len(value))


@functools.cache  # each supervisor looks for the same: see sandbox/base.py
def values_of(names: tuple[bytes, ...]) -> re.Pattern[bytes]:
    """The pattern that finds the values of variables in a process's environment; its group is the value."""
    return re.compile(rb"(?:^|\0)(?:%s)=([^\0]+)" % b"|".join(map(re.escape, names)))


def _overwrite_initial(pattern: re.Pattern[bytes]) -> None:
    """Overwrite values in the block that execve(2) has made, which ``/proc/PID/environ`` shows."""
    fields = stat(os.getpid())
    begin, end = int(fields[_BEGIN]), int(fields[_END])
    if not 0 < begin < end:  # where the kernel hides them
        return
    block = (ctypes.c_char * (end - begin)).from_address(begin)
    for found in pattern.finditer(block):
        ctypes.memset(begin + found.start(1), 0, found.end(1) - found.start(1))


def _overwrite_freed(secrets: Mapping[bytes, bytearray]) -> None:
    """Overwrite values in what Python has freed, at most 0.2 s for 100 MB and value: memmem(3)."""
    places, budget = _anonymous(), _SEARCHED_BYTES
    for name, value in secrets.items():
        needle = (ctypes.c_char * len(value)).from_buffer(value)
        for begin, end in places:
            budget -= end - begin
            found = begin - 1
            while budget > 0 and (found := _libc.memmem(found + 1, end - found - 1, needle, len(value)) or 0):
                inside = begin + len(name) + max(head for _, head in _HEADS) < found < end - len(value)
                if inside and _is_freed(found, len(name) + 1, len(value)):
                    ctypes.memset(found, 0, len(value))


def _anonymous() -> list[tuple[int, int]]:
    """Return the memory of this process that no file is behind: proc_pid_maps(5)."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        lines = [line.split() for line in file]
    own = [line[0].split("-") for line in lines if line[1] == "rw-p" and line[4] == "0"]
    return [(int(begin, 16), int(end, 16)) for begin, end in own]


def _is_freed(address: int, prefix: int, size: int) -> bool:
    """Return whether no living object has a value: it is in a freed string, or an entry (NAME=value) that is no object.

    Args:
        prefix: bytes before the value in an entry, as subprocess makes them.
        size: of the value in bytes.
    """
    if any(_references(address - head, kind, size) == 0 for kind, head in _HEADS):
        return True
    is_entry = ctypes.string_at(address - 1, 1) == b"=" and ctypes.string_at(address + size, 1) == b"\0"
    whole = (_references(address - prefix - head, kind, prefix + size) for kind, head in _HEADS)
    return is_entry and not any(whole)


def _references(address: int, kind: type, size: int) -> int | None:
    """Count the references to an object of a size; 0 if it is freed, None if none of this size is there."""
    references, type_of, length = (ctypes.c_uint64 * 3).from_address(address)
    if type_of != id(kind) or length != size:
        return None
    return int(references) if references < 1 << 32 else 0
