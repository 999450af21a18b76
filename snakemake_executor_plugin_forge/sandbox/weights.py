"""Weights in place of limits: how CPU time and I/O are divided while more than one cgroup wants them.

Sources, of the kernel: cgroup-v2.rst (``cpu.weight``, ``io.weight``), cgroup-v1/blkio-controller.rst,
block/bfq-iosched.rst (``io.bfq.weight``, ``blkio.bfq.weight``), ``sched_prio_to_weight`` in kernel/sched/core.c.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from ..model import DEFAULT_IO_WEIGHT, CpuMode, Priority
from . import pseudofile
from .cgroup import FILE_SYSTEM

NICE_STEP = 1.25
"""Of two processes the one with the next nice value gets so much less: sched_prio_to_weight."""

_V2_WEIGHT, _V2_LOWEST, _V2_HIGHEST = 100, 1, 10_000
_V1_SHARES, _V1_LOWEST, _V1_HIGHEST = 1024, 2, 262_144
_BLOCK = "/sys/block"

NO_CONTROLLER = "no I/O controller can be used here"
"""Why there are no weights for I/O on most hosts: systemd does not give users io without being told to."""


def cpu_weight(cpus: int, mode: CpuMode, nice: int) -> int | None:
    """``cpu.weight`` of a job's cgroup (v2); None: the kernel's own, which is 100."""
    return _weight(_V2_WEIGHT, cpus, mode, nice, (_V2_LOWEST, _V2_HIGHEST))


def cpu_shares(cpus: int, mode: CpuMode, nice: int) -> int | None:
    """``cpu.shares`` of a job's cgroup (v1); None: the kernel's own, which is 1024."""
    return _weight(_V1_SHARES, cpus, mode, nice, (_V1_LOWEST, _V1_HIGHEST))


def _weight(base: int, cpus: int, mode: CpuMode, nice: int, bounds: tuple[int, int]) -> int | None:
    """A nice value counts within a cgroup only: so that of a job has to be in the weight of its cgroup as well."""
    if mode is CpuMode.OFF:
        if nice == 0:
            return None
        cpus = 1
    lowest, highest = bounds
    return min(highest, max(lowest, round(base * cpus / NICE_STEP**nice)))


@dataclass(frozen=True, slots=True)
class _IoFile:
    """Where a kernel takes a weight for I/O, and how Forge's 1 to 10000 (100: nobody asked) become its own."""

    name: str
    lowest: int
    highest: int
    factor: int  # what the kernel starts a cgroup with, divided by 100
    scheduler: str | None  # of the devices that it is for; None: io.cost.qos

    def value(self, weight: int) -> int:
        return min(self.highest, max(self.lowest, weight * self.factor))


_IO_FILES = (
    _IoFile("io.weight", 1, 10_000, 1, None),
    _IoFile("io.bfq.weight", 1, 1000, 1, "bfq"),
    _IoFile("blkio.bfq.weight", 1, 1000, 1, "bfq"),
    _IoFile("blkio.weight", 10, 1000, 5, "cfq"),  # until Linux 4.20
)


def write_io_weight(directory: str | None, weight: int) -> None:
    """Give a cgroup a weight, in each of the files that there are; none, if nobody asked for it.

    Args:
        directory: of the io controller, or of v1's blkio; None: this cgroup has none.
        weight: 1 to 10000. Where the kernel takes less, proportions are kept up to its highest.

    Raises:
        OSError: for a value that the kernel refuses.

    """
    if directory is None or weight == DEFAULT_IO_WEIGHT:
        return
    for file in _IO_FILES:
        path = f"{directory}/{file.name}"
        if os.path.exists(path):
            pseudofile.write(path, file.value(weight))


def scope_properties(priority: Priority) -> list[str]:
    """Of a systemd scope, as busctl(1) takes them: systemd.resource-control(5) has the same ranges as cgroup v2."""
    cpu = cpu_weight(1, CpuMode.OFF, priority.nice)
    properties = [] if cpu is None else ["CPUWeight", "t", str(cpu)]
    if priority.io_weight != DEFAULT_IO_WEIGHT:
        properties += ["IOWeight", "t", str(priority.io_weight)]
    return properties


@dataclass(frozen=True, slots=True)
class IoDivision:
    """Whether weights for I/O have an effect here."""

    refusal: str  # "" if they have
    devices: tuple[str, ...] = ()  # those where they have


def io_division(directory: str | None) -> IoDivision:
    """Look whether there is a file for a weight, and a device that is divided by it.

    A kernel takes weights also while no device asks for them: what divides is the I/O scheduler bfq of a device, or
    the cost model that root has switched on for it.

    Args:
        directory: as for :func:`write_io_weight`, of the run.

    """
    if directory is None:
        return IoDivision(NO_CONTROLLER)
    files = [file for file in _IO_FILES if os.access(f"{directory}/{file.name}", os.W_OK)]
    if not files:
        names = " nor ".join(file.name for file in _IO_FILES if os.path.exists(f"{directory}/{file.name}"))
        why = f"{names} may not be written" if names else "this kernel has no weights for I/O: neither bfq nor iocost"
        return IoDivision(f"{directory}: {why}")
    schedulers = {file.scheduler for file in files}
    devices = {name for name, scheduler in _schedulers() if scheduler in schedulers}
    if None in schedulers:
        devices |= set(_with_costs())
    if not devices:
        names = " and ".join(file.name for file in files)
        return IoDivision(f"{names} can be written, but no block device here has the scheduler bfq, or io.cost.qos on")
    return IoDivision("", tuple(sorted(devices)))


def _schedulers() -> list[tuple[str, str]]:
    """Each block device with the I/O scheduler that it has: Documentation/block/switching-sched.rst."""
    found = []
    with suppress(OSError):
        for name in os.listdir(_BLOCK):
            with suppress(OSError):
                text = pseudofile.read(f"{_BLOCK}/{name}/queue/scheduler").decode()
                found.append((name, text.partition("[")[2].partition("]")[0]))
    return found


def _with_costs() -> list[str]:
    """The block devices for which ``io.cost.qos`` says ``enable=1``; it is seen at the root of the hierarchy only."""
    found = []
    with suppress(OSError):
        for line in pseudofile.read(f"{FILE_SYSTEM}/io.cost.qos").decode().splitlines():
            number, *words = line.split()
            if "enable=1" in words:
                found.append(os.path.basename(os.path.realpath(f"/sys/dev/block/{number}")))
    return found
