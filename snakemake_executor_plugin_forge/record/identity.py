"""The identity of a process beyond its number: boot and start time. proc_pid_stat(5), random(4)."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..kernel import process_tree


def boot_id() -> str:
    """The identity of this boot of the host."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_time(pid: int) -> int:
    """The start time of ``pid``, in clock ticks since the boot.

    Raises:
        OSError: if there is no such process, or it is a zombie.
    """
    fields = process_tree.stat(pid)
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(f"process {pid} is dead")
    return int(fields[19])


def process_number(value: object) -> int:
    """Return a process id from a file.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise ValueError(f"{value!r:.50} is no process id")
    return value


def lives(pid: int, started: int, boot: str) -> bool:
    """Whether a recorded process of this host still runs: boot and start time agree."""
    try:
        return boot == boot_id() and start_time(pid) == started
    except OSError:
        return False


def pid_namespace() -> int:
    """The inode of this process's PID namespace: pid_namespaces(7). 0 if the kernel has none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def this_process() -> dict[str, Any]:
    """The facts about this process by which readers of a record know whether it lives."""
    return {
        "pid": os.getpid(),
        "start_time": start_time(os.getpid()),
        "boot_id": boot_id(),
        "host": socket.gethostname(),
        "pid_namespace": pid_namespace(),
    }


def is_here(record: Mapping[str, object]) -> bool:
    """Whether the processes of a record have their numbers from where this process has its own.

    A container can have the name of its host; its processes have other numbers, or are seen by nobody outside. In a
    record without a PID namespace, which is older, the host alone decides.
    """
    return record.get("host") == socket.gethostname() and record.get("pid_namespace") in (None, pid_namespace())


def user_name(uid: int | None = None) -> str:
    """The login name of a user, this one by default, or the number if there is no name."""
    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def software_versions() -> dict[str, str]:
    """Versions of the software that a run depends on, for its record."""
    import importlib.metadata  # these two would triple the memory of a launcher
    import platform

    found = {"python": platform.python_version(), "linux": platform.release()}
    for name, package in (("snakemake", "snakemake"), ("forge", "snakemake-executor-plugin-forge")):
        with suppress(importlib.metadata.PackageNotFoundError):  # run from a directory on PYTHONPATH
            found[name] = importlib.metadata.version(package)
    return found
