"""Who a process is, for longer than its number: boot and start time. proc_pid_stat(5), random(4)."""

from __future__ import annotations

import os
import pwd


def boot_id() -> str:
    """The identity of this boot of the host."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_time(pid: int) -> int:
    """When ``pid`` was started, in clock ticks since the boot.

    Raises:
        OSError: if there is no such process, or it is dead and its parent has not taken note.

    """
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(f"process {pid} is dead")
    return int(fields[19])


def lives(pid: int, started: int, boot: str) -> bool:
    """Whether a process of this host is still the one that it was: same boot, same start."""
    try:
        return boot == boot_id() and start_time(pid) == started
    except OSError:
        return False


def user_name() -> str:
    """The login name of the user; the number of one who has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
