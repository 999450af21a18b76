"""Weights in place of limits: how CPU time and I/O are divided while more than one cgroup wants them.

Sources, of the kernel: cgroup-v2.rst (``cpu.weight``, ``io.weight``), cgroup-v1/blkio-controller.rst,
block/bfq-iosched.rst (``io.bfq.weight``, ``blkio.bfq.weight``), ``sched_prio_to_weight`` in kernel/sched/core.c.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from ...kernel import process_tree, procfs
from ...spec.job import DEFAULT_IO_WEIGHT, CpuMode, Priority
from .base import FILE_SYSTEM

NICE_STEP = 1.25
"""The factor by which a process with the next nice value gets less CPU time: sched_prio_to_weight."""

_V2_WEIGHT, _V2_LOWEST, _V2_HIGHEST = 100, 1, 10_000
_V1_SHARES, _V1_LOWEST, _V1_HIGHEST = 1024, 2, 262_144
_BLOCK = "/sys/block"

NO_CONTROLLER = "no I/O controller can be used here"
"""Why most hosts have no weights for I/O: systemd delegates io to users only if it is told to."""


def cpu_weight(cpus: int, mode: CpuMode, nice: int) -> int | None:
    """``cpu.weight`` of a job's cgroup (v2); None: the kernel's default, which is 100."""
    return _weight(_V2_WEIGHT, cpus, mode, nice, (_V2_LOWEST, _V2_HIGHEST))


def cpu_shares(cpus: int, mode: CpuMode, nice: int) -> int | None:
    """``cpu.shares`` of a job's cgroup (v1); None: the kernel's default, which is 1024."""
    return _weight(_V1_SHARES, cpus, mode, nice, (_V1_LOWEST, _V1_HIGHEST))


def _weight(base: int, cpus: int, mode: CpuMode, nice: int, bounds: tuple[int, int]) -> int | None:
    """A weight with the nice value in it, which by itself would count only among processes of one cgroup."""
    if mode is CpuMode.OFF:
        if nice == 0:
            return None
        cpus = 1
    lowest, highest = bounds
    return min(highest, max(lowest, round(base * cpus / NICE_STEP**nice)))


@dataclass(frozen=True, slots=True)
class _IoFile:
    """A file that takes a weight for I/O, and how it is scaled from Forge's 1 to 10000 (100: nobody asked)."""

    name: str
    lowest: int
    highest: int
    factor: int  # the kernel's default, divided by 100
    scheduler: str | None  # the I/O scheduler of the devices that obey it; None: io.cost.qos

    def value(self, weight: int) -> int:
        return min(self.highest, max(self.lowest, weight * self.factor))


_IO_FILES = (
    _IoFile("io.weight", 1, 10_000, 1, None),
    _IoFile("io.bfq.weight", 1, 1000, 1, "bfq"),
    _IoFile("blkio.bfq.weight", 1, 1000, 1, "bfq"),
    _IoFile("blkio.weight", 10, 1000, 5, "cfq"),  # until Linux 4.20
)


def write_io_weight(directory: str | None, weight: int) -> None:
    """Write a weight to each file for it that the kernel has; to none if nobody asked for a weight.

    Args:
        directory: the cgroup in the io controller, or in v1's blkio; None: it has none.
        weight: 1 to 10000. Where the kernel's range is smaller, its highest value stands for all above.

    Raises:
        OSError: if the kernel refuses the value.
    """
    if directory is None or weight == DEFAULT_IO_WEIGHT:
        return
    for file in _IO_FILES:
        path = f"{directory}/{file.name}"
        if os.path.exists(path):
            procfs.write(path, file.value(weight))


def scope_properties(priority: Priority) -> list[str]:
    """Weights of a systemd scope, for busctl(1): systemd.resource-control(5) has the same ranges as cgroup v2."""
    cpu = cpu_weight(1, CpuMode.OFF, priority.nice)
    properties = [] if cpu is None else ["CPUWeight", "t", str(cpu)]
    if priority.io_weight != DEFAULT_IO_WEIGHT:
        properties += ["IOWeight", "t", str(priority.io_weight)]
    return properties


@dataclass(frozen=True, slots=True)
class IoDivision:
    """Whether weights for I/O have an effect here."""

    refusal: str  # why not; "" if they have
    devices: tuple[str, ...] = ()  # the block devices where they have


def io_division(directory: str | None) -> IoDivision:
    """Find out whether there is a file for a weight, and a device that obeys it.

    A kernel takes weights also while no device obeys them: a device needs the I/O scheduler bfq, or the cost model,
    which root has to switch on.

    Args:
        directory: the cgroup of the run, as for :func:`write_io_weight`.
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
    """Each block device with its I/O scheduler: Documentation/block/switching-sched.rst."""
    found = []
    with suppress(OSError):
        for name in os.listdir(_BLOCK):
            with suppress(OSError):
                text = procfs.read(f"{_BLOCK}/{name}/queue/scheduler").decode()
                found.append((name, text.partition("[")[2].partition("]")[0]))
    return found


def _with_costs() -> list[str]:
    """The block devices for which ``io.cost.qos``, at the root of the hierarchy, says ``enable=1``."""
    found = []
    with suppress(OSError):
        for line in procfs.read(f"{FILE_SYSTEM}/io.cost.qos").decode().splitlines():
            number, *words = line.split()
            if "enable=1" in words:
                found.append(os.path.basename(os.path.realpath(f"/sys/dev/block/{number}")))
    return found


_SESSION = 3  # field in process_tree.stat(): proc_pid_stat(5)


class Sessions:
    """The sessions of a job. The kernel divides CPU time among sessions (sched(7), autogroup): each gets the value."""

    def __init__(self, nice: int) -> None:
        self._nice = nice if nice and os.path.exists("/proc/self/autogroup") else 0
        self._seen: set[int] = set()

    def lower(self, pids: Iterable[int]) -> None:
        """Give new sessions the nice value.

        The kernel lets an ordinary user do so every 100 ms only: the other new sessions get it at the next sample.
        """
        if not self._nice:
            return
        for pid in pids:
            try:
                session = int(process_tree.stat(pid)[_SESSION])
                if session in self._seen:
                    continue
                procfs.write(f"/proc/{pid}/autogroup", self._nice)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                continue  # it is dead, or a process of Forge, which the kernel protects
            except (IndexError, ValueError):
                continue
            self._seen.add(session)
