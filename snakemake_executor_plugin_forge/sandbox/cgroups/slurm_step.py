"""The memory cgroup of the Slurm job that this process is in: Forge reads it and never changes it.

Sources: Documentation/admin-guide/cgroup-v1/memory.rst (``memory.oom_control``: ``oom_kill``, since Linux 4.13),
cgroup-v2.rst (``memory.events``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from . import base

_FILES = {
    1: ("memory.oom_control", "memory.max_usage_in_bytes", "memory.limit_in_bytes"),
    2: ("memory.events", "memory.peak", "memory.max"),
}


@dataclass(frozen=True, slots=True)
class StepCgroup:
    """The counters of the cgroup."""

    path: str
    top: str  # where its hierarchy is mounted
    version: int
    oom_kills: int
    memory_peak_bytes: int
    memory_limit_bytes: int | None  # the lowest of this cgroup and those above


def read_step() -> StepCgroup | None:
    """Read the cgroup of this process; None outside of a Slurm job, or if the job has no memory controller."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    for mount in base.mounts_of():
        if mount.version == 1 and "memory" in mount.controllers:
            return _step(mount.own, mount.mount_point, 1)
        if mount.version == 2 and os.path.exists(f"{mount.own}/memory.events"):
            return _step(mount.own, mount.mount_point, 2)
    return None


def since(before: StepCgroup | None) -> StepCgroup | None:
    """Read a cgroup again, and count the kills since ``before``."""
    after = read_again(before)
    return None if before is None or after is None else replace(after, oom_kills=after.oom_kills - before.oom_kills)


def read_again(before: StepCgroup | None) -> StepCgroup | None:
    """Read a cgroup again, wherever this process is now."""
    return None if before is None else _step(before.path, before.top, before.version)


def _step(path: str, top: str, version: int) -> StepCgroup | None:
    if "slurm" not in path and "/job_" not in path:
        return None
    events, peak, limit = _FILES[version]
    limits, directory = [], path
    while directory.startswith(top) and directory != top:
        if (value := base.read_limit(f"{directory}/{limit}")) is not None:
            limits.append(value)
        directory = os.path.dirname(directory)
    kills = base.read_values(f"{path}/{events}", "oom_kill") or [0]
    return StepCgroup(path, top, version, kills[0], base.read_number(f"{path}/{peak}"), min(limits, default=None))
