"""A program in the kernel that keeps the processes of a cgroup from changing the kernel's settings (/proc/sys).

Root's jobs that make containers need a whole /proc, in which root may write: what covered /proc/sys would forbid them
to mount a /proc of their own (mount_too_revealing() of fs/namespace.c). The kernel asks this program at each write to
a setting, in whatever mount of proc. Sources: bpf(2), bpf/prog_cgroup_sysctl.rst of the kernel, linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import os
import struct

from .descriptors import closing
from .syscalls import checked

_libc = ctypes.CDLL(None, use_errno=True)
_NUMBER = {"x86_64": 321, "aarch64": 280}  # of bpf(2)
_PROG_LOAD, _PROG_ATTACH = 5, 8
_PROG_TYPE, _ATTACH_TYPE, _ALLOW_MULTI = 23, 18, 2  # BPF_PROG_TYPE_CGROUP_SYSCTL, BPF_CGROUP_SYSCTL
_GET_NAME = 101  # BPF_FUNC_sysctl_get_name
_NET = int.from_bytes(b"net/", "little")  # settings that each network namespace has: engines write those of containers

# struct bpf_insn: operation, registers (source << 4 | destination), offset, constant
_PROGRAM = (
    (0x61, 0x12, 0, 0),  # r2 = context->write
    (0x15, 0x02, 11, 0),  # if it is 0, allow
    (0x7A, 0x0A, -8, 0),  # 16 bytes of the stack, for the helper
    (0x7A, 0x0A, -16, 0),
    (0xBF, 0xA2, 0, 0),  # r2 = their place
    (0x07, 0x02, 0, -16),
    (0xB7, 0x03, 0, 16),  # r3 = their number
    (0xB7, 0x04, 0, 0),  # r4 = no flags: the whole name
    (0x85, 0x00, 0, _GET_NAME),
    (0x61, 0xA1, -16, 0),  # r1 = its first four letters
    (0x15, 0x01, 2, _NET),  # if they are "net/", allow
    (0xB7, 0x00, 0, 0),  # refuse: EPERM
    (0x95, 0x00, 0, 0),
    (0xB7, 0x00, 0, 1),  # allow
    (0x95, 0x00, 0, 0),
)


def keep_settings(cgroup: str) -> None:
    """Refuse all processes in a cgroup of version 2 writes to settings, but those of the network.

    Raises:
        OSError: if the kernel refuses: before Linux 5.2, or without CAP_SYS_ADMIN or CAP_BPF.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("=BBhi", *line) for line in _PROGRAM))
    licence = ctypes.create_string_buffer(b"GPL")
    load = bytearray(72)
    struct.pack_into("=IIQQ", load, 0, _PROG_TYPE, len(_PROGRAM), ctypes.addressof(code), ctypes.addressof(licence))
    struct.pack_into("=I", load, 68, _ATTACH_TYPE)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with closing(_bpf(_PROG_LOAD, bytes(load))) as program, closing(os.open(cgroup, flags)) as directory:
        _bpf(_PROG_ATTACH, struct.pack("=IIII", directory, program, _ATTACH_TYPE, _ALLOW_MULTI))


def _bpf(command: int, attributes: bytes) -> int:
    return checked(_libc.syscall(_NUMBER.get(os.uname().machine, -1), command, attributes, len(attributes)), "bpf")
