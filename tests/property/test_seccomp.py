"""The filter of system calls, run by an interpreter in Python: it does what its table says, for every call there is."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.sandbox.seccomp import (
    ABIS,
    ARCHITECTURES,
    HARMLESS_PERSONALITY,
    HUGE_PAGES,
    NETLINK,
    NETLINK_OF_NESTED,
    NEW_NAMESPACE_FLAGS,
    NOTIFIED,
    SOCK_PACKET,
    TERMINAL_COMMANDS,
    Check,
    notified,
    notified_call,
    program,
    refused,
)

ALLOW = 0x7FFF0000
PROGRAMS = {(machine, nested): program(machine, nested=nested) for machine in ABIS for nested in (False, True)}
LISTENED_TO = {machine: program(machine, nested=False, looked_at=NOTIFIED) for machine in ABIS}


def interpret(code: bytes, number: int, architecture: int, arguments: tuple[int, ...]) -> int:
    """Compute the kernel's answer (networking/filter.rst). Classic BPF jumps forward only, so this ends."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments)
    accumulator, place = 0, 0
    while True:
        operation, if_true, if_not, constant = struct.unpack_from("=HBBI", code, place * 8)
        place += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, constant)
            case 0x05:
                place += constant
            case 0x15:
                place += if_true if accumulator == constant else if_not
            case 0x35:
                place += if_true if accumulator >= constant else if_not
            case 0x45:
                place += if_true if accumulator & constant else if_not
            case 0x54:
                accumulator &= constant
            case 0x06:
                return int(constant)
            case _:
                raise AssertionError(f"no such instruction: {operation:#x}")


def expected(abi: str, nested: bool, number: int, arguments: tuple[int, ...]) -> int:
    """Compute the answer from the table, in another way."""
    if abi == "x86_64" and number >= 0x40000000:
        return ALLOW if number == 0xFFFFFFFF else 0x50000 | errno.ENOSYS
    call = next((call for call in refused(abi, nested=nested) if call.number == number), None)
    if call is None:
        return ALLOW
    first, second, third = (argument & 0xFFFFFFFF for argument in arguments[:3])
    internet = first in (socket.AF_INET, socket.AF_INET6) and second & 0xF != SOCK_PACKET
    netlink = first == socket.AF_NETLINK and third in (NETLINK_OF_NESTED if nested else NETLINK)
    harmless = {
        Check.NOTHING: False,
        Check.NEW_NAMESPACES: not first & NEW_NAMESPACE_FLAGS,
        Check.TERMINAL: second not in TERMINAL_COMMANDS.values(),
        Check.FAMILY: first == socket.AF_UNIX or internet or netlink,
        Check.HUGE_PAGES: not arguments[HUGE_PAGES[call.name][0]] & HUGE_PAGES[call.name][1] if call.name in HUGE_PAGES else False,
        Check.SOCKET_CALL: first not in (1, 8),
        Check.PERSONALITY: first | HARMLESS_PERSONALITY == HARMLESS_PERSONALITY or first == 0xFFFFFFFF,
    }
    return ALLOW if harmless[call.check] else 0x50000 | call.errno


words = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([*TERMINAL_COMMANDS.values(), 0xFFFFFFFF, 0x10000000, 0x8, 0x0040000, 0x0400000, 0x1200011]),
    st.integers(0, 31).map(lambda bit: 1 << bit),
    st.sampled_from([0x40022, 0o4600, 5]),
    st.integers(0, 46),  # families, types and protocols of sockets
    st.sampled_from([*TERMINAL_COMMANDS.values()]).map(lambda command: command | 7 << 32),  # the kernel takes the lower half
)
arguments = st.tuples(words, words, words, words, words, words)


@settings(max_examples=1000)
@given(st.sampled_from(sorted(PROGRAMS)), st.integers(0, 1), st.data(), arguments)
def test_the_program_is_the_table(
    which: tuple[str, bool], side: int, data: st.DataObject, values: tuple[int, ...]
) -> None:
    machine, nested = which
    abi = ABIS[machine][side]
    listed = sorted(call.number for call in refused(abi, nested=False))
    number = data.draw(st.one_of(st.sampled_from(listed), st.integers(0, 600), st.integers(0, 2**32 - 1)))
    answer = interpret(PROGRAMS[which], number, ARCHITECTURES[abi], values)
    assert answer == expected(abi, nested, number, values)


@pytest.mark.parametrize("which", sorted(PROGRAMS))
def test_every_number_on_every_architecture(which: tuple[str, bool]) -> None:
    machine, nested = which
    for abi in ABIS[machine]:
        for number in [*range(1000), 0x3FFFFFFF, 0x40000000, 0x40000000 + 250, 0xFFFFFFFE, 0xFFFFFFFF]:
            for first in (0, 0x10000000, 0x1200011):
                values = (first, 0x5412, 0, 0, 0, 0)
                answer = interpret(PROGRAMS[which], number, ARCHITECTURES[abi], values)
                assert answer == expected(abi, nested, number, values), (abi, number)


@pytest.mark.parametrize("abi", ["x86_64", "i386"])
def test_without_a_pool_nobody_looks_at_mappings(abi: str) -> None:
    code = program("x86_64", nested=False, pool=False)
    number = {"x86_64": 9, "i386": 192}[abi]
    assert interpret(code, number, ARCHITECTURES[abi], (0, 0, 0, 0x40000, 0, 0)) == ALLOW
    assert interpret(PROGRAMS["x86_64", False], number, ARCHITECTURES[abi], (0, 0, 0, 0x40000, 0, 0)) == 0x50000 | errno.ENOMEM


@given(st.sampled_from(sorted(PROGRAMS)), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_programs_of_other_architectures_get_nowhere(which: tuple[str, bool], architecture: int, number: int) -> None:
    if architecture not in {ARCHITECTURES[abi] for abi in ABIS[which[0]]}:
        answer = interpret(PROGRAMS[which], number, architecture, (0,) * 6)
        assert answer == 0x50000 | errno.ENOSYS


@pytest.mark.parametrize("abi", sorted(ARCHITECTURES))
def test_what_nested_leaves_out_is_less(abi: str) -> None:
    plain = {call.name for call in refused(abi, nested=False)}
    nested = {call.name for call in refused(abi, nested=True)}
    assert nested < plain
    assert {"mount", "umount2", "setns", "unshare", "clone", "clone3", "pivot_root"} <= plain - nested
    assert {"bpf", "keyctl", "init_module", "ioctl", "personality"} <= nested
    assert len({call.number for call in refused(abi, nested=False)}) == len(plain)


flags = st.one_of(words, st.sampled_from([os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY, 1, 2, 4, 6, 7, 8, 13, 14, 37, 38]))


@settings(max_examples=500)
@given(st.sampled_from(sorted(ARCHITECTURES)), st.integers(0, 600), st.tuples(flags, flags, flags, flags, flags, flags))
def test_a_supervisor_is_notified_of_appends_and_exclusive_locks(abi: str, number: int, values: tuple[int, ...]) -> None:
    machine = next(machine for machine, abis in ABIS.items() if abi in abis)
    code, architecture = LISTENED_TO[machine], ARCHITECTURES[abi]
    for call in [number, *(call.number for call in notified(abi))]:
        name = notified_call(call, architecture)
        pointer = 2**32 - 1
        kinds = {None: (0, 0), "open": (1, os.O_APPEND), "openat": (2, os.O_APPEND), "flock": (1, 2), "fcntl": (1, 0), "fcntl64": (1, 0),
                 "mkdir": (0, pointer), "mkdirat": (1, pointer), "link": (0, pointer), "linkat": (1, pointer),
                 "rename": (0, pointer), "renameat": (1, pointer), "renameat2": (1, pointer)}
        position, bits = kinds[name]
        is_lock = name in ("fcntl", "fcntl64") and values[position] & 0xFFFFFFFF in (7, 14, 38)
        wanted = 0x7FC00000 if values[position] & bits or is_lock else expected(abi, False, call, values)
        assert interpret(code, call, architecture, values) == wanted
