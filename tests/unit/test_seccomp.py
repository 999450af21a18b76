"""The filter of system calls on the real kernel: calls that it refuses, and programs that continue to work."""

from __future__ import annotations

import ctypes
import errno
import mmap
import multiprocessing
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel import syscalls
from snakemake_executor_plugin_forge.sandbox import seccomp
from snakemake_executor_plugin_forge.sandbox.seccomp import ABIS, HUGE_PAGES, Check, RefusedCall, refused
from tests.conftest import DEADLINE

from ..child import in_child

MACHINE = os.uname().machine
NATIVE, COMPAT = ABIS[MACHINE]
BAD = ctypes.c_void_p(1)  # a call that passes the filter finds nothing there
MARK = 1000  # added to the filter's answers, so that they are not taken for the kernel's own

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every host has a pool of huge pages here, so that the filter is whole."""
    monkeypatch.setattr(seccomp, "_has_pool", lambda: True)


def _install(*, nested: bool) -> None:
    syscalls.run([syscalls.prctl_step(syscalls.PR_SET_NO_NEW_PRIVS, 1), *seccomp.steps(nested=nested)])


def _install_marked(*, nested: bool) -> None:
    """Install the filter with other answers: EPERM + 1000, ENOSYS + 1000."""
    code = bytearray(seccomp.program(MACHINE, nested=nested))
    for at in range(0, len(code), 8):
        operation, if_true, if_not, constant = struct.unpack_from("=HBBI", code, at)
        if operation == 0x06 and constant >> 16 == 5:
            struct.pack_into("=HBBI", code, at, operation, if_true, if_not, constant + MARK)
    filled = seccomp._Program(len(code) // 8, bytes(code))
    assert libc.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(filled), 0, 0) == 0, os.strerror(ctypes.get_errno())


def _arguments(call: RefusedCall) -> tuple[int, int, int, int]:
    """Arguments with which the call is refused, and does nothing if it is not."""
    if call.check is Check.HUGE_PAGES:
        position, bits = HUGE_PAGES[call.name]
        return (0, 0, 0, bits) if position == 3 else (0, 0, bits, 1) if position == 2 else (0, bits, 1, 1)
    first, second = {
        Check.NOTHING: (-1, 1),
        Check.NEW_NAMESPACES: (0x10000000, 1),  # CLONE_NEWUSER
        Check.TERMINAL: (-1, 0x5412),
        Check.PERSONALITY: (0x0400000, 1),  # READ_IMPLIES_EXEC
        Check.FAMILY: (socket.AF_VSOCK, 1),
        Check.SOCKET_CALL: (1, 1),
    }[call.check]
    return first, second, 1, 1


def _native(number: int, first: int, second: int, third: int = 1, fourth: int = 1) -> int:
    result = libc.syscall(*map(ctypes.c_long, (number, first, second, third, fourth)), BAD, BAD)
    return ctypes.get_errno() if result == -1 else 0


def _i386() -> Callable[[int, int, int, int, int], int]:
    """A 32-bit call from this 64-bit process: push rbx; eax, ebx, ecx, edx, esi = arguments; int 0x80; pop rbx; ret."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("53 89f8 89f3 87d1 4489c6 cd80 5b c3"))
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    stub = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, *[ctypes.c_uint] * 4)(start)

    def call(number: int, first: int, second: int, third: int, fourth: int) -> int:
        assert page  # the code must live as long as this function
        result = int(stub(number, first & 0xFFFFFFFF, second, third, fourth))
        return -result if -4096 < result < 0 else 0

    return call


def _answers(abi: str, *, nested: bool) -> dict[str, int]:
    call = _native if abi == NATIVE else _i386()
    _install_marked(nested=nested)
    return {one.name: call(one.number, *_arguments(one)) for one in refused(abi, nested=nested)}


@pytest.mark.parametrize("ordinary", [False, True], ids=["as_is", "ordinary"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_every_listed_call_is_refused_by_the_filter(nested: bool, ordinary: bool) -> None:
    wanted = {call.name: call.errno + MARK for call in refused(NATIVE, nested=nested)}
    assert in_child(lambda: _answers(NATIVE, nested=nested), ordinary=ordinary) == wanted


@pytest.mark.skipif(MACHINE != "x86_64", reason="int 0x80 is an instruction of x86_64")
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_every_listed_call_is_refused_to_32_bit_programs(nested: bool) -> None:
    wanted = {call.name: call.errno + MARK for call in refused(COMPAT, nested=nested)}
    assert in_child(lambda: _answers(COMPAT, nested=nested)) == wanted


@pytest.mark.skipif(MACHINE != "x86_64", reason="x32 is a kind of x86_64")
def test_there_are_no_x32_calls() -> None:
    def getpid() -> int:
        _install_marked(nested=False)
        return _native(0x40000000 | 39, 0, 0)

    assert in_child(getpid) == errno.ENOSYS + MARK


@pytest.mark.skipif(MACHINE != "x86_64", reason="i386 is a kind of x86_64")
def test_a_32_bit_program_runs(tmp_path: Path) -> None:
    """The program is static, so that it needs no 32-bit C library: it writes a word and ends with 7."""
    source = tmp_path / "x.s"
    source.write_text(
        ".globl _start\n_start: mov $4,%eax\nmov $1,%ebx\nmov $word,%ecx\nmov $3,%edx\nint $0x80\n"
        'mov $1,%eax\nmov $7,%ebx\nint $0x80\n.section .rodata\nword: .ascii "ok\\n"\n'
        ".section .note.GNU-stack\n"
    )
    subprocess.run(["as", "--32", "-o", "x.o", "x.s"], cwd=tmp_path, check=True)
    subprocess.run(["ld", "-m", "elf_i386", "-o", "x", "x.o"], cwd=tmp_path, check=True)
    done = _filtered([str(tmp_path / "x")])
    assert (done.returncode, done.stdout) == (7, "ok\n"), done.stderr


def _families(nested: bool) -> tuple[list[int], list[int], dict[str, int | str]]:
    """Families and netlink protocols that have sockets under the filter, and the answers of single calls."""
    _install(nested=nested)

    def answer(*arguments: int) -> int:
        try:
            socket.socket(*arguments).close()
        except OSError as error:
            return error.errno or 0
        return 0

    families = [family for family in range(64) if answer(family, socket.SOCK_DGRAM) != errno.EAFNOSUPPORT]
    protocols = [number for number in range(32) if answer(socket.AF_NETLINK, socket.SOCK_RAW, number) != errno.EAFNOSUPPORT]
    found: dict[str, int | str] = {
        "packets by their old name": answer(socket.AF_INET, 10 | socket.SOCK_CLOEXEC, 0),
        "a pair": len(socket.socketpair()),
        "a name": socket.getaddrinfo("127.0.0.1", 80)[0][4][0],
        "interfaces": len(socket.if_nameindex()) > 0,
    }
    for name, kind in (("a pair of TIPC", 30), ("a pair of VSOCK", socket.AF_VSOCK)):
        try:
            socket.socketpair(kind, socket.SOCK_STREAM)
            found[name] = "made"
        except OSError as error:
            found[name] = error.errno or 0
    return families, protocols, found


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_only_the_families_of_the_list(nested: bool) -> None:
    families, protocols, found = in_child(lambda: _families(nested))
    assert families == [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK]
    assert protocols == ([0, 12] if nested else [0])
    none = errno.EAFNOSUPPORT
    assert found == {"packets by their old name": none, "a pair": 2, "a name": "127.0.0.1", "interfaces": True,
                     "a pair of TIPC": none, "a pair of VSOCK": none}


def _namespaces() -> dict[str, int]:
    _install(nested=False)
    flags = {"user": 0x10000000, "mount": 0x20000, "files": 0x400}
    found = {name: libc.unshare(flag) and ctypes.get_errno() for name, flag in flags.items()}
    found["clone3"] = _native(435, 1, 88)
    return found


@pytest.mark.parametrize("ordinary", [False, True], ids=["as_is", "ordinary"])
def test_no_namespaces_but_own_files(ordinary: bool) -> None:
    wanted = {"user": errno.EPERM, "mount": errno.EPERM, "files": 0, "clone3": errno.ENOSYS}
    assert in_child(_namespaces, ordinary=ordinary) == wanted


def test_nested_leaves_namespaces_to_the_kernel() -> None:
    def nested() -> int:
        _install(nested=True)
        return int(libc.unshare(0x10000000 | 0x20000) or libc.mount(b"x", b"/tmp", b"tmpfs", 0, None))

    assert in_child(nested, ordinary=True) == 0


def _threads() -> list[int]:
    _install(nested=False)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, range(-50, 0))


def test_multiprocessing_works() -> None:
    assert in_child(_threads) == list(range(50, 0, -1))


def _filtered(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command under the filter, which a Python in between installs."""
    code = (
        "import os, sys\n"
        "from snakemake_executor_plugin_forge.kernel import syscalls\n"
        "from snakemake_executor_plugin_forge.sandbox import seccomp\n"
        "syscalls.run([syscalls.prctl_step(38, 1), *seccomp.steps(nested=False)])\n"
        "os.execvp(sys.argv[1], sys.argv[1:])\n"
    )
    return subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, input=text,
                          check=False, timeout=DEADLINE)


PROGRAMS = {
    "bash": (["bash", "-c", "cat <(echo ok | tr a-z A-Z) > >(cat); wait; sleep 0 & wait; echo $(ulimit -n) >/dev/null"], "OK"),
    "python": ([sys.executable, "-c",
                ("import subprocess, threading, concurrent.futures as c\n"
                "with c.ThreadPoolExecutor(4) as e: print(sum(e.map(int, '1234')), subprocess.getoutput('echo ok'))")], "10 ok"),
    "gcc": (["gcc", "-x", "c", "-E", "-P", "-"], ""),
    "R": (["R", "--vanilla", "-s", "-e", "cat(sum(unlist(parallel::mclapply(1:4, sqrt, mc.cores=2))) > 6)"], "TRUE"),
    "java": (["java", "-Xmx64m", "-version"], ""),
    "getent": (["getent", "ahosts", "localhost"], "127.0.0.1"),
    "curl": (["curl", "-s", "-o", "/dev/null", "-w", "%{errormsg}", "http://127.0.0.1:1/", "--next", "file:///dev/null"], "onnect"),
    "samtools": (["samtools", "view", "-c", "-"], "0"),
    "gdb": (["gdb", "-batch", "-ex", "run", "-ex", "info program", "--args", "true"], "exited normally"),
    "strace": (["strace", "-f", "-o", "/dev/null", "bash", "-c", "echo ok | cat"], "ok"),
    "setarch": (["setarch", "-R", "linux32", "echo", "ok"], "ok"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_ordinary_programs_work(name: str) -> None:
    command, wanted = PROGRAMS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = _filtered(command, "@SQ\tSN:x\tLN:10\n" if name == "samtools" else "")
    assert done.returncode == 0, done.stderr
    assert wanted in done.stdout


@pytest.mark.parametrize("command", [["unshare", "-r", "true"], ["mount", "-t", "tmpfs", "x", "/mnt"], ["dmesg", "-S"]])
def test_programs_are_told_that_it_is_not_permitted(command: list[str]) -> None:
    done = _filtered(command)
    assert done.returncode != 0
    assert "not permitted" in done.stderr or "permission denied" in done.stderr, done.stderr


HEADERS = {
    "x86_64": ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"],
    "i386": ["/usr/include/x86_64-linux-gnu/asm/unistd_32.h", "/usr/include/asm/unistd_32.h"],
    "aarch64": ["/usr/include/asm-generic/unistd.h"],
}


@pytest.mark.parametrize("abi", sorted(HEADERS))
def test_the_numbers_are_those_of_the_headers(abi: str) -> None:
    header = next((Path(path) for path in HEADERS[abi] if Path(path).exists()), None)
    if header is None:
        pytest.skip(f"the kernel's headers for {abi} are not installed (linux-libc-dev)")
    found = {name: int(number) for name, number in
             re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())}
    ours = {call.name: call.number for call in refused(abi, nested=False)}
    ours |= {call.name: call.number for call in seccomp.notified(abi)}
    known = {name: number for name, number in ours.items() if name in found}
    assert known == {name: found[name] for name in known}
    assert len(known) >= len(ours) - 3  # the newest ones may be missing in old headers


def test_the_probe_says_that_there_is_a_filter() -> None:
    assert seccomp.refusal() == ""
    assert len(seccomp.steps(nested=False)) == 1
