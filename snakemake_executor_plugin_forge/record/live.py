"""What a running job uses at this moment, seen from any terminal: by the process that its ``spec.json`` names.

The process leads to the job's cgroup (proc_pid_cgroup(5), cgroups(7)). With soft limits there is none, and the
processes are summed up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from .explain import ESCAPES
from .identity import start_time
from .layout import STDERR, STDOUT

_LINE_BYTES = 4096
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Live:
    """One look. None: not to be seen from here, or over by now."""

    memory_bytes: int | None
    cpu_seconds: float | None

    def as_json(self) -> dict[str, object]:
        """The ``live`` object of ``snakemake-forge jobs --running --json``."""
        return {"memory_bytes": self.memory_bytes, "cpu_seconds": self.cpu_seconds}


NOTHING = Live(None, None)


def look(record: Mapping[str, Any]) -> Live:
    """Look at a running attempt.

    Args:
        record: with ``process`` and ``isolation``.

    """
    process = record.get("process") or {}
    try:
        pid = int(process["pid"])
        if record.get("backend", "local") != "local":  # it is a process of another host
            return NOTHING
        if start_time(pid) != process["start_time"]:
            return NOTHING
        match str(record["isolation"]["limits"]):
            case "cgroup-v2":
                return _look_v2(_directory(pid, ""))
            case "cgroup-v1":
                return _look_v1(_directory(pid, "memory"), _directory(pid, "cpuacct"))
            case _:
                return _look_at_processes(pid)
    except (OSError, KeyError, ValueError):
        return NOTHING


def newest_line(directory: str) -> str:
    """The last line that a job wrote, to whichever stream it wrote last."""
    newest, text = 0, ""
    for name in (STDOUT, STDERR):
        with suppress(OSError), open(f"{directory}/{name}", "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size and status.st_mtime_ns > newest:
                newest = status.st_mtime_ns
                file.seek(max(0, status.st_size - _LINE_BYTES))
                text = file.read(_LINE_BYTES).decode("utf-8", "replace")
    lines = ESCAPES.sub("", text.replace("\r", "\n")).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _look_v2(directory: str) -> Live:
    usage = next(line for line in _read(f"{directory}/cpu.stat").splitlines() if line.startswith("usage_usec "))
    return Live(int(_read(f"{directory}/memory.current")), int(usage.split()[1]) / 1e6)


def _look_v1(memory: str, cpuacct: str) -> Live:
    return Live(int(_read(f"{memory}/memory.usage_in_bytes")), int(_read(f"{cpuacct}/cpuacct.usage")) / 1e9)


def _look_at_processes(pid: int) -> Live:
    """A process and its descendants; shared memory is counted once for each of them."""
    memory, cpu, waiting = 0, 0.0, [pid]
    while waiting:
        current = waiting.pop()
        with suppress(OSError, ValueError):
            fields = _read(f"/proc/{current}/stat").rpartition(")")[2].split()
            memory += int(fields[21]) * _PAGE_BYTES
            cpu += sum(int(ticks) for ticks in fields[11:15]) / _TICKS  # its own, and of children it has waited for
            waiting += [int(child) for child in _read(f"/proc/{current}/task/{current}/children").split()]
    return Live(memory, cpu)


def _directory(pid: int, controller: str) -> str:
    """The directory of the cgroup of a process.

    Args:
        controller: of v1; "" for v2.

    Raises:
        KeyError: if it is not mounted, or not shown here.

    """
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            point, root = _mounts()[controller]
            if not path.startswith(root.rstrip("/") + "/"):
                break
            return point + path[len(root.rstrip("/")) :]
    raise KeyError(controller)


@cache
def _mounts() -> dict[str, tuple[str, str]]:
    """Where each controller of v1, and v2 as "", is mounted, and which cgroup is at the top there."""
    found: dict[str, tuple[str, str]] = {}
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            found.setdefault("", (point, root))
        elif kind == "cgroup":
            for option in options.split(","):
                found.setdefault(option, (point, root))
    return found


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
