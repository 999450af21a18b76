"""A filter that refuses system calls which no analysis needs, so that kernel bugs in them cannot be exploited.

Sources: seccomp(2), seccomp_filter.rst and networking/filter.rst of the kernel, linux/filter.h, linux/seccomp.h.

At installation the kernel runs the program once for each call number, and never again for numbers that it allows
without reading the arguments (Linux 5.11). So it costs a job nothing later; and it is a search tree, so that these runs
are short.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import glob
import os
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, assert_never

from ..kernel import procfs, syscalls

_LOAD, _EQUAL, _GREATER_OR_EQUAL, _ANY_BIT, _GO, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x05, 0x06  # linux/bpf_common.h
_MASK = 0x54
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_X32_BIT = 0x40000000
_SKIPPED = 0xFFFFFFFF  # the number by which a tracer skips a call: the tracer's answer must stay
_MACHINE = os.uname().machine
_SYSCALL = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1
_SPEC_ALLOW = 1 << 2
_NEW_LISTENER = 1 << 3
_WAIT_KILLABLE = 1 << 5
_NOTIFY = 0x7FC00000
_LOCK_EX = 2
_ANY_POINTER = 0xFFFFFFFF

_LEAF = 3
"""The number of consecutive comparisons."""

_libc = ctypes.CDLL(None, use_errno=True)

Instruction = tuple[int, int, str, str]
"""Code, constant, and jump labels: if true (or always), if false. An empty label is the next instruction."""


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


@functools.cache
def refusal() -> str:
    """The reason why this host has no filter; empty if it has. Probes by a call that can only fail."""
    number = _SYSCALL.get(_MACHINE)
    if number is None:
        return f"Forge has no table of system calls for {_MACHINE}"
    _libc.syscall(number, _SET_MODE_FILTER, _SPEC_ALLOW, None)
    reason = ctypes.get_errno()
    return "" if reason == errno.EFAULT else f"the kernel refuses seccomp filters: {os.strerror(reason)}"


def steps(*, nested: bool) -> list[syscalls.Step]:
    """Steps that install the filter in a job, after no_new_privs. Empty where :func:`refusal` gives a reason.

    Args:
        nested: the rule starts containers or sandboxes of its own: the filter permits mounts and namespaces.
    """
    if refusal():
        return []
    _prepared(False, NOTIFIED if os.geteuid() != 0 else NOTIFIED_OF_ROOT)  # before the fork, for listen()
    # SPEC_ALLOW: before Linux 5.16 a filter also switched off speculative stores, which makes every program slower.
    arguments = (_SYSCALL[_MACHINE], _SET_MODE_FILTER, _SPEC_ALLOW, ctypes.byref(_prepared(nested, ())))
    return [(_libc.syscall, arguments, "seccomp")]


@functools.cache
def _prepared(nested: bool, looked_at: tuple[str, ...]) -> _Program:
    code = program(_MACHINE, nested=nested, looked_at=looked_at, pool=_has_pool())
    return _Program(len(code) // 8, code)


def _has_pool() -> bool:
    """Whether the host has a pool of huge pages, or makes one. To look at each mmap(2) takes 0.9 us."""
    return any(int(procfs.read(path)) for path in glob.iglob("/sys/kernel/mm/hugepages/*/nr_*hugepages"))


def program(machine: str, *, nested: bool, looked_at: tuple[str, ...] = (), pool: bool = True) -> bytes:
    """The filter, as an array of struct sock_filter. Pure.

    Args:
        machine: a key of :data:`ABIS`.
        nested: see :func:`steps`.
        looked_at: names of :class:`NotifiedCall`: see :func:`listen`.
        pool: whether the host has a pool of huge pages.
    """
    native, compat = ABIS[machine]
    listing: list[tuple[str, Instruction]] = [
        ("", (_LOAD, _ARCHITECTURE, "", "")),
        ("", (_EQUAL, ARCHITECTURES[native], native, "")),
        ("", (_EQUAL, ARCHITECTURES[compat], "far", "unknown")),
        ("unknown", (_RETURN, _ERRNO | errno.ENOSYS, "", "")),
        ("far", (_GO, 0, compat, "")),  # further than a comparison can jump
        *_block(native, nested, looked_at, pool),
        *_block(compat, nested, looked_at, pool),
    ]
    return _assemble(listing)


def _block(abi: str, nested: bool, names: tuple[str, ...], pool: bool) -> list[tuple[str, Instruction]]:
    calls = tuple(call for call in refused(abi, nested=nested) if pool or call.group is not RefusalScope.POOL)
    looked_at = notified(abi, names)
    listing: list[tuple[str, Instruction]] = [(abi, (_LOAD, _NUMBER, "", ""))]
    if abi == "x86_64":  # x32 programs have other numbers; Forge refuses them all
        listing.append(("", (_GREATER_OR_EQUAL, _X32_BIT, f"{abi} x32", "")))
    listing += _search(abi, sorted((*calls, *looked_at), key=lambda call: call.number))
    for call in calls:
        listing += _look_at_arguments(abi, call, nested)
    for one in looked_at:
        listing.append((f"{abi} {one.name}", (_LOAD, _argument(one.argument), "", "")))
        if one.bits:
            listing.append(("", (_ANY_BIT, one.bits, f"{abi} notify", "")))
        listing += [("", (_EQUAL, value, f"{abi} notify", "")) for value in one.values]
        listing.append(("", (_RETURN, _ALLOW, "", "")))
    if looked_at:
        listing.append((f"{abi} notify", (_RETURN, _NOTIFY, "", "")))
    if abi == "x86_64":
        listing.append((f"{abi} x32", (_EQUAL, _SKIPPED, "", _label(abi, errno.ENOSYS))))
        listing.append(("", (_RETURN, _ALLOW, "", "")))
    for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT, errno.ENOMEM):
        listing.append((_label(abi, number), (_RETURN, _ERRNO | number, "", "")))
    return listing


def _search(abi: str, calls: list[RefusedCall | NotifiedCall]) -> list[tuple[str, Instruction]]:
    """Find the number among those of ``calls``, which are sorted."""
    if len(calls) <= _LEAF:
        found: list[tuple[str, Instruction]] = []
        for call in calls:
            target = f"{abi} {call.name}"
            if isinstance(call, RefusedCall) and call.check is Check.NOTHING:
                target = _label(abi, call.errno)
            found.append(("", (_EQUAL, call.number, target, "")))
        return [*found, ("", (_RETURN, _ALLOW, "", ""))]
    lower, upper = calls[: len(calls) // 2], calls[len(calls) // 2 :]
    label = f"{abi} from {upper[0].number}"
    (_, start), *rest = _search(abi, upper)  # the first one never has a label
    return [("", (_GREATER_OR_EQUAL, upper[0].number, label, "")), *_search(abi, lower), (label, start), *rest]


def _look_at_arguments(abi: str, call: RefusedCall, nested: bool) -> list[tuple[str, Instruction]]:
    """Compare the lower half only, which is all that the kernel reads in these arguments."""
    refuse, allow = _label(abi, call.errno), f"{abi} {call.name} allow"
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
            checks = [(_LOAD, _argument(0), "", ""), (_EQUAL, ASK_PERSONALITY, allow, "")]
            checks.append((_ANY_BIT, ~HARMLESS_PERSONALITY & 0xFFFFFFFF, refuse, ""))
        case Check.FAMILY:
            return _look_at_family(f"{abi} {call.name}", refuse, nested)
        case Check.HUGE_PAGES:
            position, bits = HUGE_PAGES[call.name]
            checks = [(_LOAD, _argument(position), "", ""), (_ANY_BIT, bits, refuse, "")]
        case Check.SOCKET_CALL:
            checks = [(_LOAD, _argument(0), "", "")]
            checks += [(_EQUAL, number, refuse, "") for number in SOCKET_CALLS]
        case _:
            assert_never(call.check)
    first, *others = checks
    end: Instruction = (_RETURN, _ALLOW, "", "")
    return [(f"{abi} {call.name}", first), *(("", check) for check in others), (allow, end)]


def _look_at_family(name: str, refuse: str, nested: bool) -> list[tuple[str, Instruction]]:
    """Compare family and, of two families, what makes another one of them: the type, the protocol."""
    internet, netlink, allow = f"{name} internet", f"{name} netlink", f"{name} allow"
    protocols = NETLINK_OF_NESTED if nested else NETLINK
    return [
        (name, (_LOAD, _argument(0), "", "")),
        ("", (_EQUAL, socket.AF_UNIX, allow, "")),
        ("", (_EQUAL, socket.AF_INET, internet, "")),
        ("", (_EQUAL, socket.AF_INET6, internet, "")),
        ("", (_EQUAL, socket.AF_NETLINK, netlink, refuse)),
        (internet, (_LOAD, _argument(1), "", "")),
        ("", (_MASK, SOCKET_TYPES, "", "")),
        ("", (_EQUAL, SOCK_PACKET, refuse, allow)),
        (netlink, (_LOAD, _argument(2), "", "")),
        *(("", (_EQUAL, protocol, allow, "")) for protocol in protocols),
        ("", (_GO, 0, refuse, "")),
        (allow, (_RETURN, _ALLOW, "", "")),
    ]


def _argument(position: int) -> int:
    """The offset of its lower half in struct seccomp_data: all of :data:`ABIS` are little-endian."""
    return 16 + 8 * position


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


@functools.cache
def can_listen() -> bool:
    """Whether :func:`listen` works here. "Continue" is an answer since Linux 5.5, openat2 exists since 5.6."""
    return not refusal() and syscalls.has_openat2()


def listen() -> int | None:
    """Install, after no_new_privs, the filter of :func:`steps`, which also stops this process at :class:`NotifiedCall`.

    Returns:
        The descriptor by which a supervisor lets each call continue: seccomp_unotify(2). None, and nothing is
        installed, if the kernel refuses it: a tree of processes has at most one.
    """
    names = NOTIFIED if os.geteuid() != 0 else NOTIFIED_OF_ROOT
    number, filled = _SYSCALL[_MACHINE], _prepared(False, names)
    for flags in (_NEW_LISTENER | _SPEC_ALLOW | _WAIT_KILLABLE, _NEW_LISTENER | _SPEC_ALLOW):  # the first: Linux 5.19
        fd: int = _libc.syscall(number, _SET_MODE_FILTER, flags, ctypes.byref(filled))
        if fd >= 0:
            return fd
    return None


class NotifiedCall(NamedTuple):
    """A call of which a supervisor is notified if an argument has one of some bits, or is one of some values."""

    name: str
    number: int
    argument: int
    bits: int
    values: tuple[int, ...] = ()


# F_SETLKW, F_SETLKW64, F_OFD_SETLKW: linux/fcntl.h. SQLite, which never waits by them, sets thousands of other locks.
_WAIT_FOR_LOCKS = (7, 14, 38)

# openat2 takes its flags in a structure, which a filter cannot read.
_NOTIFIED: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("open", 1, os.O_APPEND, {"x86_64": 2, "i386": 5, "arm": 5}),
    ("openat", 2, os.O_APPEND, {"x86_64": 257, "i386": 295, "aarch64": 56, "arm": 322}),
    ("mkdir", 0, _ANY_POINTER, {"x86_64": 83, "i386": 39, "arm": 39}),
    ("mkdirat", 1, _ANY_POINTER, {"x86_64": 258, "i386": 296, "aarch64": 34, "arm": 323}),
    ("flock", 1, _LOCK_EX, {"x86_64": 73, "i386": 143, "aarch64": 32, "arm": 143}),
    ("fcntl", 1, 0, {"x86_64": 72, "i386": 55, "aarch64": 25, "arm": 55}),
    ("fcntl64", 1, 0, {"i386": 221, "arm": 221}),
    ("link", 0, _ANY_POINTER, {"x86_64": 86, "i386": 9, "arm": 9}),
    ("linkat", 1, _ANY_POINTER, {"x86_64": 265, "i386": 303, "aarch64": 37, "arm": 330}),
    ("rename", 0, _ANY_POINTER, {"x86_64": 82, "i386": 38, "arm": 38}),
    ("renameat", 1, _ANY_POINTER, {"x86_64": 264, "i386": 302, "aarch64": 38, "arm": 329}),
    ("renameat2", 1, _ANY_POINTER, {"x86_64": 316, "i386": 353, "aarch64": 276, "arm": 382}),
)
NOTIFIED = tuple(name for name, *_ in _NOTIFIED)
"""The names of all such calls."""

NOTIFIED_OF_ROOT = tuple(name for name in NOTIFIED if not name.startswith(("link", "rename")))
"""The filters of jobs whose overlay can link every file, and rename every directory."""


@functools.cache
def notified(abi: str, names: tuple[str, ...] = NOTIFIED) -> tuple[NotifiedCall, ...]:
    """The calls for programs of one architecture (a key of :data:`ARCHITECTURES`) that a supervisor looks at. Pure."""
    return tuple(
        NotifiedCall(name, numbers[abi], argument, bits, () if bits else _WAIT_FOR_LOCKS)
        for name, argument, bits, numbers in _NOTIFIED
        if abi in numbers and name in names
    )


def notified_call(number: int, architecture: int) -> str | None:
    """Return the name of the call that a notification is about. Pure."""
    abi = next(name for name, value in ARCHITECTURES.items() if value == architecture)
    return next((call.name for call in notified(abi) if call.number == number), None)


class RefusalScope(Enum):
    """The jobs in which a call is refused."""

    ALWAYS = "in every job"
    POOL = "where the host has a pool of huge pages"
    NAMESPACES = "but where a rule starts containers or sandboxes of its own"


class Check(Enum):
    """The condition on a call's arguments."""

    NOTHING = "the call is refused whatever its arguments"
    NEW_NAMESPACES = "the first argument, for a flag CLONE_NEW…"
    TERMINAL = "the second argument, for a command that types into a terminal"
    PERSONALITY = "the first argument, for a bit that is not harmless"
    FAMILY = "the first argument, for a family of sockets that no analysis needs"
    HUGE_PAGES = "the flags, for memory of a pool that no cgroup of Forge counts"
    SOCKET_CALL = "the first argument, for a socket whose family a filter cannot read"


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """A refused call on one architecture."""

    name: str
    number: int
    group: RefusalScope
    check: Check
    errno: int


ARCHITECTURES = {"x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
"""AUDIT_ARCH_… of linux/audit.h, as a filter sees them."""

ABIS = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}
"""Architectures of 64-bit and 32-bit programs, by the machine's name of uname(2)."""

# Without CLONE_NEWTIME, whose bit belongs to the signal in clone(2); for unshare(2) it needs a capability.
NEW_NAMESPACE_FLAGS = 0x7E020000  # NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET: linux/sched.h

TERMINAL_COMMANDS = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C, "TIOCSETD": 0x5423}  # asm-generic/ioctls.h

# 32-bit programs, a version number for old programs, and fixed addresses (gdb, thread sanitizer). All other bits make
# memory executable or change how files and signals work: linux/personality.h.
HARMLESS_PERSONALITY = 0x0008 | 0x0020000 | 0x0040000
ASK_PERSONALITY = 0xFFFFFFFF

# The families that a job may have: AF_UNIX, AF_INET, AF_INET6, and of AF_NETLINK what getaddrinfo(3) and getifaddrs(3)
# ask. AF_VSOCK leads to the host of a virtual machine whatever the network namespace; the others (packets, kernel
# crypto, CAN, Bluetooth, TIPC, RDS, …) are where the kernel's holes are. Programs know EAFNOSUPPORT from kernels
# that lack a family: socket(2).
NETLINK = (socket.NETLINK_ROUTE,)
NETLINK_OF_NESTED = (socket.NETLINK_ROUTE, 12)  # NETLINK_NETFILTER: the firewall of containers
SOCKET_TYPES = 0xF  # SOCK_TYPE_MASK of linux/net.h
SOCK_PACKET = 10  # of AF_INET it means AF_PACKET: __sock_create() of net/socket.c
SOCKET_CALLS = (1, 8)  # SYS_SOCKET, SYS_SOCKETPAIR of linux/net.h: socketcall(2) has the family in memory

# Position and bits: MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB. Programs know ENOMEM from an empty pool: hugetlbpage.rst.
HUGE_PAGES = {"mmap": (3, 0x40000), "mmap2": (3, 0x40000), "memfd_create": (1, 4), "shmget": (2, 0o4000)}

# ENOSYS where programs have an alternative: the C library falls back from clone3 to clone, mount(8) from the new calls
# to mount(2), and programs expect kernels without keyrings or io_uring. EPERM everywhere else.
_TABLE = """
# call                 x86_64 i386 aarch64  arm  answer  group
add_key                   248  286     217  309  ENOSYS  ALWAYS
request_key               249  287     218  310  ENOSYS  ALWAYS
keyctl                    250  288     219  311  ENOSYS  ALWAYS
io_uring_setup            425  425     425  425  ENOSYS  ALWAYS
io_uring_enter            426  426     426  426  ENOSYS  ALWAYS
io_uring_register         427  427     427  427  ENOSYS  ALWAYS
bpf                       321  357     280  386  EPERM   ALWAYS
userfaultfd               323  374     282  388  EPERM   ALWAYS
perf_event_open           298  336     241  364  EPERM   ALWAYS
kexec_load                246  283     104  347  EPERM   ALWAYS
kexec_file_load           320    -     294  401  EPERM   ALWAYS
create_module             174  127       -    -  EPERM   ALWAYS
init_module               175  128     105  128  EPERM   ALWAYS
finit_module              313  350     273  379  EPERM   ALWAYS
delete_module             176  129     106  129  EPERM   ALWAYS
swapon                    167   87     224   87  EPERM   ALWAYS
swapoff                   168  115     225  115  EPERM   ALWAYS
reboot                    169   88     142   88  EPERM   ALWAYS
quotactl                  179  131      60  131  EPERM   ALWAYS
quotactl_fd               443  443     443  443  EPERM   ALWAYS
acct                      163   51      89   51  EPERM   ALWAYS
syslog                    103  103     116  103  EPERM   ALWAYS
vhangup                   153  111      58  111  EPERM   ALWAYS
open_by_handle_at         304  342     265  371  EPERM   ALWAYS
lookup_dcookie            212  253      18  249  EPERM   ALWAYS
uselib                    134   86       -   86  EPERM   ALWAYS
settimeofday              164   79     170   79  EPERM   ALWAYS
stime                       -   25       -    -  EPERM   ALWAYS
clock_settime             227  264     112  262  EPERM   ALWAYS
clock_settime64             -  404       -  404  EPERM   ALWAYS
adjtimex                  159  124     171  124  EPERM   ALWAYS
clock_adjtime             305  343     266  372  EPERM   ALWAYS
clock_adjtime64             -  405       -  405  EPERM   ALWAYS
iopl                      172  110       -    -  EPERM   ALWAYS
ioperm                    173  101       -    -  EPERM   ALWAYS
vm86                        -  166       -    -  EPERM   ALWAYS
vm86old                     -  113       -    -  EPERM   ALWAYS
ioctl                      16   54      29   54  EPERM   ALWAYS      TERMINAL
personality               135  136      92  136  EPERM   ALWAYS      PERSONALITY
mmap                        9    -     222    -  ENOMEM  POOL        HUGE_PAGES
mmap2                       -  192       -  192  ENOMEM  POOL        HUGE_PAGES
memfd_create              319  356     279  385  ENOMEM  POOL        HUGE_PAGES
shmget                     29  395     194  307  ENOMEM  POOL        HUGE_PAGES
socket                     41  359     198  281  EAFNOSUPPORT ALWAYS FAMILY
socketpair                 53  360     199  288  EAFNOSUPPORT ALWAYS FAMILY
socketcall                  -  102       -    -  EAFNOSUPPORT ALWAYS SOCKET_CALL
mount                     165   21      40   21  EPERM   NAMESPACES
umount                      -   22       -    -  EPERM   NAMESPACES
umount2                   166   52      39   52  EPERM   NAMESPACES
pivot_root                155  217      41  218  EPERM   NAMESPACES
chroot                    161   61      51   61  EPERM   NAMESPACES
open_tree                 428  428     428  428  ENOSYS  NAMESPACES
move_mount                429  429     429  429  ENOSYS  NAMESPACES
fsopen                    430  430     430  430  ENOSYS  NAMESPACES
fsconfig                  431  431     431  431  ENOSYS  NAMESPACES
fsmount                   432  432     432  432  ENOSYS  NAMESPACES
fspick                    433  433     433  433  ENOSYS  NAMESPACES
mount_setattr             442  442     442  442  ENOSYS  NAMESPACES
open_tree_attr            467  467     467  467  ENOSYS  NAMESPACES
sethostname               170   74     161   74  EPERM   NAMESPACES
setdomainname             171  121     162  121  EPERM   NAMESPACES
setns                     308  346     268  375  EPERM   NAMESPACES
unshare                   272  310      97  337  EPERM   NAMESPACES  NEW_NAMESPACES
clone                      56  120     220  120  EPERM   NAMESPACES  NEW_NAMESPACES
clone3                    435  435     435  435  ENOSYS  NAMESPACES
"""


@functools.cache
def refused(abi: str, *, nested: bool) -> tuple[RefusedCall, ...]:
    """The refused calls for programs of one architecture. Pure.

    Args:
        abi: a key of :data:`ARCHITECTURES`.
        nested: the rule starts containers or sandboxes of its own.
    """
    found = []
    lines = [line for line in _TABLE.splitlines() if line]
    column = lines[0].removeprefix("#").split().index(abi)
    for line in lines[1:]:
        words = line.split()
        name, number, answer, group = words[0], words[column], words[5], RefusalScope[words[6]]
        check = Check[words[7]] if len(words) > 7 else Check.NOTHING
        if number != "-" and not (nested and group is RefusalScope.NAMESPACES):
            found.append(RefusedCall(name, int(number), group, check, getattr(errno, answer)))
    return tuple(found)
