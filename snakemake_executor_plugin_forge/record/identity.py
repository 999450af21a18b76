"""Who a process is, for longer than its number: boot and start time. proc_pid_stat(5), random(4)."""

from __future__ import annotations


def boot_id() -> str:
    """The identity of this boot of the host."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_time(pid: int) -> int:
    """When ``pid`` was started, in clock ticks since the boot.

    Raises:
        OSError: if there is no such process.

    """
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[19])
