# ruff: noqa: SIM115 - descriptors stay open, as an attacker's do
# mypy: disable-error-code="misc,func-returns-value"
"""Attacks of tests/integration/test_abuse.py, run by jobs: ``python3 abuse.py NAME`` prints the acts that worked, one a line."""

import ctypes
import fcntl
import glob
import mmap
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

libc = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine
# The code below uses x86_64's numbers. This maps them to aarch64's, -1 for a missing call. From 424 on all machines agree.
AARCH64 = {
    101: 117, 103: 116, 153: 58, 155: 41, 161: 51, 163: 89, 164: 170, 165: 40, 167: 224, 168: 225, 169: 142, 170: 161, 172: -1, 175: 105, 179: 60,
    180: 42, 212: 18, 237: 235, 240: 180, 246: 104, 248: 217, 250: 219, 272: 97, 285: 47, 298: 241, 300: 262, 304: 265, 308: 268, 310: 270, 311: 271,
    316: 276, 321: 280, 323: 282,
}  # fmt: skip
HOME = os.path.expanduser("~")
OUTSIDE = sys.argv[2] if len(sys.argv) > 2 else ""


def works(name: str, act: Callable[[], object]) -> None:
    """Print the name if the act raises no error."""
    try:
        result = act()
    except (OSError, ValueError):
        return
    if result is not False:
        print(name)


def call(number: int, *arguments: object) -> None:
    """Make a system call by its number on x86_64."""
    assert MACHINE in ("x86_64", "aarch64"), f"abuse.py has no numbers of system calls for {MACHINE}"
    if libc.syscall(AARCH64.get(number, number) if MACHINE == "aarch64" else number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def write(path: str, text: str = "x\n", mode: str = "a") -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, mode) as file:
        file.write(text)


def rewrite(path: str) -> None:
    """Write the file's own content into it."""
    with open(path) as file:
        text = file.read()
    write(path, text, "w")


def code_in_home() -> None:
    """Code and settings that the user's next shell, Python, git, ssh, systemd or cron would load."""
    for name in (
        ".bashrc", ".profile", ".ssh/authorized_keys", ".ssh/config", ".gitconfig", ".config/git/config", ".config/autostart/x.desktop",
        ".config/systemd/user/default.target.wants/x.service", f".local/lib/python3.{sys.version_info[1]}/site-packages/x.pth",
        ".Rprofile", ".vimrc", ".config/fish/config.fish", ".local/bin/snakemake", ".pgpass", ".docker/config.json",
    ):  # fmt: skip
        with suppress(OSError):
            write(f"{HOME}/{name}")


def system() -> None:
    """Files by which a system starts programs."""
    for path in (
        "/var/spool/cron/crontabs/root", "/etc/cron.d/x", "/var/spool/at/x", "/etc/ld.so.preload", "/etc/profile.d/x.sh", "/etc/passwd",
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug", "/proc/sys/fs/binfmt_misc/register",
        "/sys/kernel/uevent_helper", "/sys/kernel/debug/x", "/sys/kernel/tracing/trace", "/sys/power/state", "/proc/sysrq-trigger",
        "/run/x", "/run/systemd/transient/x.service", "/var/lib/systemd/linger/x", "/var/run/utmp", "/var/log/wtmp", "/boot/x", "/usr/local/bin/x",
        f"/sys/fs/cgroup/x{os.getpid()}/cgroup.procs",
    ):  # fmt: skip
        works(path, lambda path=path: open(path, "a").close())  # nothing is written: a hole here must not hurt the host
    for path in ("/proc/kcore", "/dev/mem", "/dev/kmsg", "/dev/port", "/proc/1/mem", "/dev/sda", "/dev/vda", "/dev/loop-control"):
        works(path, lambda path=path: open(path, "rb").read(1))
    works("core_pattern rewritten", lambda: rewrite("/proc/sys/kernel/core_pattern"))
    works("oom_score_adj", lambda: write("/proc/self/oom_score_adj", "-1000", "w"))


def processes() -> None:
    """Files, directories and memory of processes outside this job."""
    me = os.getpid()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) in (me, os.getppid()) or not os.path.exists(f"/proc/{pid}"):
            continue
        here = f"/proc/{pid}"
        works(f"{here}/mem", lambda here=here: open(f"{here}/mem", "r+b"))
        works(f"{here}/environ", lambda here=here: bool(open(f"{here}/environ", "rb").read()) and b"abuse.py" not in open(f"{here}/cmdline", "rb").read())
        works(f"{here}/cwd", lambda here=here: os.stat(f"{here}/cwd/").st_ino != os.stat(".").st_ino)
        works(f"{here}/root", lambda here=here: os.stat(f"{here}/root/").st_dev != os.stat("/").st_dev)
        for fd in glob.glob(f"{here}/fd/*"):
            works(fd, lambda fd=fd: os.stat(fd).st_mode & 0o170000 == 0o100000 and os.close(os.open(fd, os.O_RDWR)))


def renames() -> None:
    """Exchange and whiteout of an input, a link of a nameless file over the output of another rule, holes in it."""
    renameat2, here = 316, -100
    write("mine", "WRONG\n")
    works("exchange input", lambda: call(renameat2, here, b"mine", here, b"input.txt", 2))
    works("whiteout input", lambda: call(renameat2, here, b"input.txt", here, b"mine2", 4))
    with suppress(OSError):  # overlays have nameless files since Linux 6.6
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR)
        os.write(fd, b"WRONG\n")
        assert libc.linkat(here, f"/proc/self/fd/{fd}".encode(), here, b"unnamed", 0x400) == 0
        works("unnamed over an input", lambda: os.rename("unnamed", "input.txt"))
    works("punch", lambda: open("input.txt", "r+b").truncate(0))
    works("fallocate", lambda: call(285, os.open("input.txt", os.O_RDWR), 3, ctypes.c_long(0), ctypes.c_long(4)))
    works("swap", lambda: call(167, b"input.txt", 0))
    works("immutable", lambda: fcntl.ioctl(os.open("mine", os.O_RDONLY), 0x40086602, struct.pack("l", 0x10)))
    works("append-only directory", lambda: fcntl.ioctl(os.open(".", os.O_RDONLY), 0x40086602, struct.pack("l", 0x20)))
    works("capability", lambda: os.setxattr("mine", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")))
    works("trusted", lambda: os.setxattr("mine", "trusted.overlay.opaque", b"y"))
    works("workdir", lambda: os.rename(os.getcwd(), os.getcwd() + "-away"))
    for name in ("mine", "mine2", "unnamed"):
        if os.path.lexists(name):
            os.unlink(name)


def calls() -> None:
    """System calls that reach beyond a process."""
    zero, page = ctypes.create_string_buffer(256), mmap.mmap(-1, 4096)
    attr = ctypes.create_string_buffer(struct.pack("IIQQQ", 1, 128, 0, 0, 0), 128)
    handle = ctypes.create_string_buffer(struct.pack("Ii", 8, 1) + struct.pack("II", 2, 0), 136)
    root = os.open("/", os.O_RDONLY)
    del page
    iov = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(zero), 8), 16)
    for name, number, arguments in (
        ("bpf", 321, (0, zero, 128)), ("perf_event_open", 298, (attr, 0, -1, -1, 0)), ("fanotify_init", 300, (0, 0)), ("userfaultfd", 323, (0,)),
        ("kexec_load", 246, (0, 0, 0, 0)), ("init_module", 175, (zero, 0, b"")), ("iopl", 172, (3,)), ("open_by_handle_at", 304, (root, handle, 0)),
        ("setns", 308, (os.open("/proc/self/ns/mnt", os.O_RDONLY), 0)), ("unshare", 272, (0x20000,)), ("chroot", 161, (b"/",)), ("acct", 163, (0,)),
        ("mount", 165, (b"x", b"/mnt", b"tmpfs", 0, 0)), ("pivot_root", 155, (b".", b".")), ("syslog", 103, (3, zero, 200)), ("fspick", 433, (-100, b"/", 0)),
        ("open_tree", 428, (-100, b"/", 1)), ("sethostname", 170, (b"x", 1)), ("settimeofday", 164, (0, 0)), ("quotactl", 179, (0x80000100, 0, 0, zero)),
        ("io_uring_setup", 425, (1, zero)), ("ptrace", 101, (16, 1, 0, 0)), ("process_vm_readv", 310, (1, iov, 1, iov, 1, 0)), ("process_vm_writev", 311, (1, iov, 1, iov, 1, 0)), ("pidfd_getfd", 438, (os.pidfd_open(1), 0, 0)), ("add_key", 248, (b"user", b"forge-abuse", b"x", 1, -4)),
        ("keyctl link", 250, (8, -3, -4)), ("personality READ_IMPLIES_EXEC is harmless; vhangup", 153, ()), ("mbind", 237, (0, 4096, 0, 0, 0, 0)),
        ("lookup_dcookie", 212, (0, zero, 1)), ("clone3 into cgroup", 435, (ctypes.create_string_buffer(struct.pack("11Q", 0x200000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, root)), 88)),
        ("fsmount", 432, (0, 0, 0)), ("reboot", 169, (0, 0, 0, 0)), ("swapoff", 168, (b"/x",)), ("nfsservctl", 180, (0, 0, 0)), ("vm86", 1000, ()),
    ):  # fmt: skip
        works(name, lambda number=number, arguments=arguments: call(number, *arguments))


def sockets() -> None:
    """Services of the user and the system: buses, agents, engines, abstract sockets, and one in the home."""
    for path in (
        *glob.glob("/run/**/*.sock", recursive=True), *glob.glob("/run/user/*/*"), *glob.glob("/run/dbus/*"), *glob.glob("/tmp/.X11-unix/*"),
        "/run/systemd/private", "/run/systemd/journal/stdout", "/run/systemd/journal/socket", "/run/udev/control", f"{HOME}/.gnupg/S.gpg-agent", "agent.sock", f"\0{OUTSIDE}",
    ):  # fmt: skip
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            works(repr(path), lambda path=path, kind=kind: socket.socket(socket.AF_UNIX, kind).connect(path))


def loopback() -> None:
    """A service on this host, with the network off."""
    for family, place in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET, "0.0.0.0")):
        works(place, lambda family=family, place=place: socket.socket(family).connect((place, int(OUTSIDE))))


def daemons() -> None:
    """Processes that try to outlive the job."""
    libc.prctl(36, 1, 0, 0, 0)
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            libc.setpriority(2, os.getuid(), 19)
            if os.fork() == 0:
                for fd in range(3):
                    os.close(fd)
                os.execvp("sh", ["sh", "-c", "sleep 1000; echo > late; echo > ~/late"])
            os._exit(0)


def locks() -> None:
    """Locks on every file that Forge and Snakemake may want to lock."""
    kept = []
    for path in [*glob.glob(".snakemake/**", recursive=True), "Snakefile", "input.txt", "/", ".", HOME]:
        try:
            kept.append(os.open(path, os.O_RDONLY))
            fcntl.flock(kept[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass
    time.sleep(3)


def queues() -> None:
    """Objects of System V and POSIX that live as long as the host, many watches, and unmapped segments."""
    for _ in range(5):
        libc.msgget(0, 0o1666)
        libc.semget(0, 3, 0o1666)
        libc.shmget(0x1234, 4096, 0o1666)
    works("mqueue", lambda: call(240, b"forge-abuse", 0o102, 0o666, 0) or False)
    works("huge pages", lambda: mmap.mmap(-1, 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000).write(b"x"))
    for _ in range(2000):
        if libc.inotify_init1(0) < 0:
            break


def allocated() -> None:
    """Blocks beyond the end of files, which no file size shows."""
    for number in range(20):
        fd = os.open(f"{os.environ['TMPDIR']}/{number}", os.O_CREAT | os.O_RDWR)
        call(285, fd, 1, ctypes.c_long(0), ctypes.c_long(5 << 20))
        time.sleep(0.1)
    time.sleep(100)


def attributes() -> None:
    """Attributes by which overlays and Forge itself mark files, and extreme times."""
    os.mkdir("marked")
    write("marked/file")
    for name in ("user.overlay.opaque", "user.overlay.redirect", "user.overlay.whiteout", "user.overlay.metacopy", "user.overlay.forge.prepared"):
        for path in ("marked", "marked/file"):
            with suppress(OSError):
                os.setxattr(path, name, b"/etc")
    os.utime("marked/file", (2**33, 2**33))
    os.utime("marked", (0, 0))


def names() -> None:
    """Names that a terminal, a shell or a decoder takes for something else."""
    os.mkdir("named")
    for name in (b"n" * 255, b"a\nb", b"\xff\xfe", b"-rf", b"\x1b]0;x\x07", b"$(touch pwned)", b"'\"", b" ", "\u202e".encode(), b"{wildcard}"):
        with open(b"named/" + name, "w") as file:
            file.write("x")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
