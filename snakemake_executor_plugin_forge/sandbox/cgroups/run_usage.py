"""The budget of a whole run and what it uses of it now, read from its cgroup by any process of the host.

Sources: cgroups(7), Documentation/admin-guide/cgroup-v1/, cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ...kernel.procfs import read_whole
from .base import mounts_of, read_limit, read_number, read_value

_USUAL_SHARES, _USUAL_WEIGHT = 1024, 100


@dataclass(frozen=True, slots=True)
class RunUsage:
    """One sample of a run. None: no such counter here, or no such limit."""

    memory_bytes: int | None = None  # page cache included
    memory_peak_bytes: int | None = None
    memory_limit_bytes: int | None = None
    processes: int | None = None  # and threads
    processes_limit: int | None = None
    cpu_seconds: float | None = None
    cpu_weight: int | None = None  # beside the other runs; 100 is the usual one


NOTHING = RunUsage()


def run_directories(pid: int, name: str, place: str) -> dict[str, str]:
    """The cgroup directories of a run by controller; "" for v2, which has one for all. Empty if it has none.

    Args:
        pid: a process of the run that is in none of them, as Snakemake or its nursery.
        name: the name of the run's cgroup.
        place: the note of the run's record about its cgroup: a directory, or why there is none.
    """
    if not place.startswith("/"):
        return {}
    if os.path.exists(f"{place}/cgroup.controllers"):
        return {"": place} if _is_cgroup(place) else {}
    try:
        mounts = mounts_of(pid)
    except OSError:  # the run is just over
        return {}
    return {
        controller: f"{mount.own}/{name}" for mount in mounts if mount.version == 1 for controller in mount.controllers
    }


def _is_cgroup(place: str) -> bool:
    """Whether the kernel makes the files there: another user's record may name any directory, with pipes in it."""
    device = os.stat(place).st_dev
    number = f"{os.major(device)}:{os.minor(device)}".encode()
    lines = read_whole("/proc/self/mountinfo").splitlines()
    return any(line.split()[2] == number and b" - cgroup2 " in line for line in lines)


def run_usage(directories: dict[str, str]) -> RunUsage:
    """Sample a run; :data:`NOTHING` if it has no cgroup, or none any more."""
    if "" not in directories and not {"memory", "pids", "cpu", "cpuacct"} <= directories.keys():
        return NOTHING
    found = _v2(directories[""]) if "" in directories else _v1(directories)
    here = directories.get("") or directories["memory"]
    return found if os.path.isdir(here) else NOTHING  # it may have gone between two reads, which give 0 then


def job_memory(directories: dict[str, str], name: str) -> int:
    """The memory that a job of the run uses now, in bytes, page cache included; 0 if it has no cgroup."""
    if "" in directories:
        return read_number(f"{directories['']}/{name}/memory.current")
    memory = directories.get("memory")
    return read_number(f"{memory}/{name}/memory.usage_in_bytes") if memory else 0


def _v2(path: str) -> RunUsage:
    return RunUsage(
        memory_bytes=read_number(f"{path}/memory.current"),
        memory_peak_bytes=read_number(f"{path}/memory.peak") or None,  # since Linux 5.19
        memory_limit_bytes=read_limit(f"{path}/memory.max"),
        processes=read_number(f"{path}/pids.current"),
        processes_limit=read_limit(f"{path}/pids.max"),
        cpu_seconds=read_value(f"{path}/cpu.stat", "usage_usec") / 1e6,
        cpu_weight=read_number(f"{path}/cpu.weight") or None,  # gone without the controller
    )


def _v1(paths: dict[str, str]) -> RunUsage:
    memory, pids = paths["memory"], paths["pids"]
    return RunUsage(
        memory_bytes=read_number(f"{memory}/memory.usage_in_bytes"),
        memory_peak_bytes=read_number(f"{memory}/memory.max_usage_in_bytes"),
        memory_limit_bytes=read_limit(f"{memory}/memory.limit_in_bytes"),
        processes=read_number(f"{pids}/pids.current"),
        processes_limit=read_limit(f"{pids}/pids.max"),
        cpu_seconds=read_number(f"{paths['cpuacct']}/cpuacct.usage") / 1e9,
        cpu_weight=max(1, read_number(f"{paths['cpu']}/cpu.shares") * _USUAL_WEIGHT // _USUAL_SHARES),
    )
