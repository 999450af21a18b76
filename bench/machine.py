"""The machine and versions of a measurement."""

import os
import platform
import resource
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("snakemake", "snakemake-executor-plugin-cluster-generic", "snakemake-executor-plugin-forge")


def machine() -> dict[str, str | int | None]:
    """Machine, software versions and date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "memory": _field(Path("/proc/meminfo"), "MemTotal"),
        "kernel": platform.release(),
        "cgroup": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1 or hybrid",
        "uid": os.getuid(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


class OtherLoad:
    """The number of cores that other processes have kept busy since this object was made.

    Wall times on a shared machine mean little without it. It counts CPU seconds of all processes in /proc/stat, less
    those of this process and of the children it has collected.
    """

    def __init__(self) -> None:
        """Start counting."""
        self._started = time.monotonic()
        self._others = _busy_seconds() - _own_seconds()

    def cores(self) -> float:
        """Return the mean since the start; time that a hypervisor took away counts as used by others."""
        used = _busy_seconds() - _own_seconds() - self._others
        return max(0.0, used / (time.monotonic() - self._started))


def _busy_seconds() -> float:
    """CPU time that was not idle, of all cores since boot."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _field(path: Path, name: str) -> str | None:
    """Return the value of the first ``name: value`` line of a file."""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
