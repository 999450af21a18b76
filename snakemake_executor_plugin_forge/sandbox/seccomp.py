"""A filter of system calls: what no analysis needs is refused, whatever a bug in the kernel would make of it.

Sources: seccomp(2), seccomp_filter.rst and networking/filter.rst of the kernel, linux/filter.h, linux/seccomp.h.

When it is installed, the kernel runs the program once for each number that there is, and never again for those that it
allows without a look at the arguments (Linux 5.11). So it costs a job nothing later; and it is a search tree, so that
these runs are short.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from typing import assert_never

from . import syscalls
from .seccomp_table import (
    ABIS,
    ARCHITECTURES,
    ASK_PERSONALITY,
    HARMLESS_PERSONALITY,
    NEW_NAMESPACE_FLAGS,
    TERMINAL_COMMANDS,
    Call,
    Check,
    refused,
)

_LOAD, _EQUAL, _GREATER_OR_EQUAL, _ANY_BIT, _GO, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x05, 0x06  # linux/bpf_common.h
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_X32_BIT = 0x40000000
_SKIPPED = 0xFFFFFFFF  # a tracer's word for "do not make this call": its own answer must stay
_SYSCALL = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1
_SPEC_ALLOW = 1 << 2

_LEAF = 3
"""As many comparisons may follow each other."""

_libc = ctypes.CDLL(None, use_errno=True)

Instruction = tuple[int, int, str, str]
"""Code, constant, and the labels to go to: if true (or always), if not. An empty one is the next instruction."""


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


@functools.cache
def refusal() -> str:
    """Why there is no filter on this host; empty if there is. Asked by a call that can only fail."""
    machine = os.uname().machine
    number = _SYSCALL.get(machine)
    if number is None:
        return f"Forge has no table of system calls for {machine}"
    _libc.syscall(number, _SET_MODE_FILTER, _SPEC_ALLOW, None)
    reason = ctypes.get_errno()
    return "" if reason == errno.EFAULT else f"the kernel refuses seccomp filters: {os.strerror(reason)}"


def steps(*, nested: bool) -> list[syscalls.Step]:
    """In a job, after no_new_privs: refuse from now on what :mod:`.seccomp_table` lists. None where :func:`refusal`.

    Args:
        nested: the rule starts containers or sandboxes of its own: mounts and namespaces are left to the kernel.

    """
    if refusal():
        return []
    # SPEC_ALLOW: before Linux 5.16 a filter also switched off speculative stores, which makes every program slower.
    arguments = (_SYSCALL[os.uname().machine], _SET_MODE_FILTER, _SPEC_ALLOW, ctypes.byref(_prepared(nested)))
    return [(_libc.syscall, arguments, "seccomp")]


@functools.cache
def _prepared(nested: bool) -> _Program:
    code = program(os.uname().machine, nested=nested)
    return _Program(len(code) // 8, code)


def program(machine: str, *, nested: bool) -> bytes:
    """The filter, as an array of struct sock_filter. Pure.

    Args:
        machine: a key of :data:`.seccomp_table.ABIS`.
        nested: see :func:`steps`.

    """
    native, compat = ABIS[machine]
    listing: list[tuple[str, Instruction]] = [
        ("", (_LOAD, _ARCHITECTURE, "", "")),
        ("", (_EQUAL, ARCHITECTURES[native], native, "")),
        ("", (_EQUAL, ARCHITECTURES[compat], "far", "unknown")),
        ("unknown", (_RETURN, _ERRNO | errno.ENOSYS, "", "")),
        ("far", (_GO, 0, compat, "")),  # further than a comparison can jump
        *_block(native, nested=nested),
        *_block(compat, nested=nested),
    ]
    return _assemble(listing)


def _block(abi: str, *, nested: bool) -> list[tuple[str, Instruction]]:
    calls = refused(abi, nested=nested)
    listing: list[tuple[str, Instruction]] = [(abi, (_LOAD, _NUMBER, "", ""))]
    if abi == "x86_64":  # x32 programs have numbers of their own, and there are none
        listing.append(("", (_GREATER_OR_EQUAL, _X32_BIT, f"{abi} x32", "")))
    listing += _search(abi, sorted(calls, key=lambda call: call.number))
    for call in calls:
        listing += _look_at_arguments(abi, call)
    if abi == "x86_64":
        listing.append((f"{abi} x32", (_EQUAL, _SKIPPED, "", _label(abi, errno.ENOSYS))))
        listing.append(("", (_RETURN, _ALLOW, "", "")))
    for number in (errno.EPERM, errno.ENOSYS):
        listing.append((_label(abi, number), (_RETURN, _ERRNO | number, "", "")))
    return listing


def _search(abi: str, calls: list[Call]) -> list[tuple[str, Instruction]]:
    """Find the number among those of ``calls``, which are sorted."""
    if len(calls) <= _LEAF:
        found: list[tuple[str, Instruction]] = []
        for call in calls:
            target = _answer(abi, call) if call.check is Check.NOTHING else f"{abi} {call.name}"
            found.append(("", (_EQUAL, call.number, target, "")))
        return [*found, ("", (_RETURN, _ALLOW, "", ""))]
    lower, upper = calls[: len(calls) // 2], calls[len(calls) // 2 :]
    label = f"{abi} from {upper[0].number}"
    (_, start), *rest = _search(abi, upper)  # the first one never has a label
    return [("", (_GREATER_OR_EQUAL, upper[0].number, label, "")), *_search(abi, lower), (label, start), *rest]


def _look_at_arguments(abi: str, call: Call) -> list[tuple[str, Instruction]]:
    """Only the lower half: that is what the kernel itself looks at in these."""
    refuse = _answer(abi, call)
    checks: list[Instruction]
    match call.check:
        case Check.NOTHING:
            return []
        case Check.NEW_NAMESPACES:
            checks = [(_LOAD, _argument(0), "", ""), (_ANY_BIT, NEW_NAMESPACE_FLAGS, refuse, "")]
        case Check.TERMINAL:
            checks = [(_LOAD, _argument(1), "", "")]
            checks += [(_EQUAL, command, refuse, "") for command in TERMINAL_COMMANDS.values()]
        case Check.PERSONALITY:
            allow = f"{abi} {call.name} allow"
            checks = [(_LOAD, _argument(0), "", ""), (_EQUAL, ASK_PERSONALITY, allow, "")]
            checks.append((_ANY_BIT, ~HARMLESS_PERSONALITY & 0xFFFFFFFF, refuse, ""))
        case _:
            assert_never(call.check)
    first, *others = checks
    end: Instruction = (_RETURN, _ALLOW, "", "")
    return [
        (f"{abi} {call.name}", first),
        *(("", check) for check in others),
        (f"{abi} {call.name} allow", end),
    ]


def _argument(position: int) -> int:
    """The offset of its lower half in struct seccomp_data: all of :data:`.seccomp_table.ABIS` are little-endian."""
    return 16 + 8 * position


def _answer(abi: str, call: Call) -> str:
    return _label(abi, call.errno)


def _label(abi: str, number: int) -> str:
    return f"{abi} {errno.errorcode[number]}"


def _assemble(listing: list[tuple[str, Instruction]]) -> bytes:
    places = {label: place for place, (label, _) in enumerate(listing) if label}
    code = bytearray()
    for place, (_, (operation, constant, if_true, if_not)) in enumerate(listing):
        ways = [places[label] - place - 1 if label else 0 for label in (if_true, if_not)]
        if operation == _GO:
            code += struct.pack("=HBBI", operation, 0, 0, ways[0])
        else:
            code += struct.pack("=HBBI", operation, *ways, constant)  # struct.error beyond 255
    return bytes(code)
