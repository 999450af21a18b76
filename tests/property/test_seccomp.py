"""The filter of system calls, run by an interpreter in Python: it does what its table says, for every call there is."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.sandbox.seccomp import program
from snakemake_executor_plugin_forge.sandbox.seccomp_table import (
    ABIS,
    ARCHITECTURES,
    HARMLESS_PERSONALITY,
    NEW_NAMESPACE_FLAGS,
    TERMINAL_COMMANDS,
    Check,
    refused,
)

ALLOW = 0x7FFF0000
PROGRAMS = {(machine, nested): program(machine, nested=nested) for machine in ABIS for nested in (False, True)}


def interpret(code: bytes, number: int, architecture: int, arguments: tuple[int, ...]) -> int:
    """What the kernel answers: networking/filter.rst. Classic BPF jumps forward only, so this ends."""
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
            case 0x06:
                return int(constant)
            case _:
                raise AssertionError(f"no such instruction: {operation:#x}")


def expected(abi: str, nested: bool, number: int, arguments: tuple[int, ...]) -> int:
    """From the table, said in another way."""
    if abi == "x86_64" and number >= 0x40000000:
        return ALLOW if number == 0xFFFFFFFF else 0x50000 | errno.ENOSYS
    call = next((call for call in refused(abi, nested=nested) if call.number == number), None)
    if call is None:
        return ALLOW
    first, second = arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF
    harmless = {
        Check.NOTHING: False,
        Check.NEW_NAMESPACES: not first & NEW_NAMESPACE_FLAGS,
        Check.TERMINAL: second not in TERMINAL_COMMANDS.values(),
        Check.PERSONALITY: first | HARMLESS_PERSONALITY == HARMLESS_PERSONALITY or first == 0xFFFFFFFF,
    }
    return ALLOW if harmless[call.check] else 0x50000 | call.errno


words = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([*TERMINAL_COMMANDS.values(), 0xFFFFFFFF, 0x10000000, 0x8, 0x0040000, 0x0400000, 0x1200011]),
    st.integers(0, 31).map(lambda bit: 1 << bit),
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
