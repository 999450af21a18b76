"""The system calls that no analysis needs, with their numbers, and what is answered to them.

Data and one function that reads it. The numbers are those of Linux 6.18: arch/x86/entry/syscalls/syscall_64.tbl and
syscall_32.tbl, scripts/syscall.tbl (aarch64), arch/arm/tools/syscall.tbl. A test compares them with the headers of the
host.
"""

from __future__ import annotations

import errno
import functools
from dataclasses import dataclass
from enum import Enum


class Group(Enum):
    """When a call is refused."""

    ALWAYS = "in every job"
    NAMESPACES = "but where a rule starts containers or sandboxes of its own"


class Check(Enum):
    """What is looked at beside the number."""

    NOTHING = "the call is refused whatever its arguments"
    NEW_NAMESPACES = "the first argument, for a flag CLONE_NEW…"
    TERMINAL = "the second argument, for a command that types into a terminal"
    PERSONALITY = "the first argument, for a bit that is not harmless"


@dataclass(frozen=True, slots=True)
class Call:
    """One that is refused: on one architecture."""

    name: str
    number: int
    group: Group
    check: Check
    errno: int


ARCHITECTURES = {"x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
"""AUDIT_ARCH_… of linux/audit.h: what the kernel says to a filter."""

ABIS = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}
"""By the machine's name of uname(2): those of its 64-bit and of its 32-bit programs."""

# CLONE_NEWTIME is not in it, because in clone(2) its bit belongs to the signal; for unshare(2) it needs a capability.
NEW_NAMESPACE_FLAGS = 0x7E020000  # NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET: linux/sched.h

TERMINAL_COMMANDS = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C, "TIOCSETD": 0x5423}  # asm-generic/ioctls.h

# 32-bit programs, a version number for old programs, and addresses that are not random (gdb, thread sanitizer).
# Everything else makes memory executable or changes how files and signals work: linux/personality.h.
HARMLESS_PERSONALITY = 0x0008 | 0x0020000 | 0x0040000
ASK_PERSONALITY = 0xFFFFFFFF

# ENOSYS where programs then do without: the C library takes clone for clone3, mount(8) takes mount(2) for the new
# calls, and a kernel without keyrings or io_uring is nothing unusual. EPERM everywhere else.
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
def refused(abi: str, *, nested: bool) -> tuple[Call, ...]:
    """What is refused to programs of one kind. Pure.

    Args:
        abi: a key of :data:`ARCHITECTURES`.
        nested: the rule starts containers or sandboxes of its own.

    """
    found = []
    lines = [line for line in _TABLE.splitlines() if line]
    column = lines[0].removeprefix("#").split().index(abi)
    for line in lines[1:]:
        words = line.split()
        name, number, answer, group = words[0], words[column], words[5], Group[words[6]]
        check = Check[words[7]] if len(words) > 7 else Check.NOTHING
        if number != "-" and not (nested and group is Group.NAMESPACES):
            found.append(Call(name, int(number), group, check, getattr(errno, answer)))
    return tuple(found)
