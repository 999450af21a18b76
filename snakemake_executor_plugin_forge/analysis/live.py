"""The present use of a running job, read from any terminal through the process that its ``spec.json`` names.

The process leads to the job's cgroup (proc_pid_cgroup(5), cgroups(7)). With soft limits the job has no cgroup, and this
module adds up its processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..kernel import process_tree
from ..record.identity import start_time
from ..record.jsonfile import STDERR, STDOUT
from ..record.plain_files import open_to_read
from ..sandbox.cgroups.base import mounts_of, read
from ..spec.printable import without_escapes
from .attempt_log import rule_logs

_LINE_BYTES = 4096
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Live:
    """One sample. None: invisible from here, or already over."""

    memory_bytes: int | None
    cpu_seconds: float | None


NOTHING = Live(None, None)


def look(record: Mapping[str, Any]) -> Live:
    """Sample a running attempt.

    Args:
        record: with ``process`` and ``isolation``.
    """
    process = record.get("process") or {}
    try:
        pid = int(process["pid"])
        if record.get("backend", "local") != "local" or start_time(pid) != process["start_time"]:
            return NOTHING  # a process of another host, or another process of this one
        match str(record["isolation"]["limits"]):
            case "cgroup-v2":
                directory = _directory(pid, "")
                stat = dict(line.split(" ", 1) for line in read(f"{directory}/cpu.stat").splitlines())
                return Live(int(read(f"{directory}/memory.current")), int(stat["usage_usec"]) / 1e6)
            case "cgroup-v1":
                memory, cpu = (_directory(pid, controller) for controller in ("memory", "cpuacct"))
                return Live(int(read(f"{memory}/memory.usage_in_bytes")), int(read(f"{cpu}/cpuacct.usage")) / 1e9)
            case _:
                return look_at_processes(pid)
    except (OSError, KeyError, ValueError):
        return NOTHING


def newest_line(directory: str) -> str:
    """The last line of the stream, or of the file of the rule's ``log:``, that a job wrote to last."""
    newest, text = 0, ""
    streams = [(f"{directory}/{STDOUT}", False), (f"{directory}/{STDERR}", False)]
    for path, straight in (*streams, *((path, True) for _, path in rule_logs(directory))):
        with suppress(OSError), open_to_read(path, straight=straight) as file:
            status = os.fstat(file.fileno())
            if status.st_size and status.st_mtime_ns > newest:
                newest = status.st_mtime_ns
                file.seek(max(0, status.st_size - _LINE_BYTES))
                text = file.read(_LINE_BYTES).decode("utf-8", "replace")
    lines = without_escapes(text.replace("\r", "\n")).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def look_at_processes(pid: int) -> Live:
    """The use of a process and its descendants; shared memory counts once for each of them."""
    memory, cpu = 0, 0.0
    for current in (pid, *process_tree.descendants(pid)):
        with suppress(OSError, IndexError):
            fields = process_tree.stat(current)
            memory += int(fields[21]) * _PAGE_BYTES
            cpu += sum(map(int, fields[11:15])) / _TICKS  # own and of reaped children
    return Live(memory, cpu)


def _directory(pid: int, controller: str) -> str:
    """The cgroup directory of a process, which exists only if it is mounted here.

    Args:
        controller: of v1; "" for v2.

    Raises:
        KeyError: if no hierarchy with this controller is mounted.
    """
    for mount in mounts_of(pid):
        if controller in mount.controllers:
            return mount.own
    raise KeyError(controller)
