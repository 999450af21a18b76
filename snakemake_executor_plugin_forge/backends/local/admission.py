"""A backend in front of another one, which passes jobs on only while there is room for them, or a GPU.

Cores are counted for rules that run on the submitting host while the others run elsewhere: Snakemake counts the cores
of all of them together (``-j``), so that nothing else would keep 500 small local jobs from starting at once. Memory is
counted where jobs may get more of it than Snakemake knows.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from ...spec.backend import Backend, Done, Leaves
from ...spec.job import LaunchSpec
from ...spec.plan import with_gpus
from ...spec.verdict import EndedBy, Order, Verdict
from ...supervisor.reaper import never_started


@dataclass(frozen=True, slots=True)
class Holding:
    """The cores, memory and GPUs that a job holds from its start to its end."""

    size: tuple[int, ...]  # of each thing that is counted; more than there is of it counts as all of it
    binds: bool = True  # the capacity counts while such a job holds or waits, and not otherwise
    waits: bool = True  # False: granted at once, even beyond the capacity


class FifoAllocator:
    """Grants requests in the order in which they came, each once it fits. Not for several threads at a time.

    Small requests do not overtake a large one, so it is granted in the end.
    """

    def __init__(self, *capacity: int) -> None:
        self.capacity = capacity
        self._free = list(capacity)
        self._held: dict[str, Holding] = {}
        self._queue: OrderedDict[str, Holding] = OrderedDict()
        self._binding = 0

    def request(self, name: str, asked: Holding) -> list[str]:
        """Ask for a job that neither holds anything nor waits.

        Returns:
            The names of the jobs that get what they asked for now, in their order.
        """
        if name in self._held or name in self._queue:
            raise AssertionError(f"{name} asks for a second time")
        asked = Holding(tuple(map(min, asked.size, self.capacity)), asked.binds, asked.waits)
        self._binding += asked.binds
        if not asked.waits:
            self._hold(name, asked)
            return [name]
        self._queue[name] = asked
        return self._grant()

    def release(self, name: str) -> list[str]:
        """Take back what a job holds, or its place in the queue; without either, this does nothing.

        Returns:
            As :meth:`request`.
        """
        if (held := self._held.pop(name, None)) is not None:
            self._free = [free + part for free, part in zip(self._free, held.size, strict=True)]
        asked = held or self._queue.pop(name, None)
        if asked is None:
            return []
        self._binding -= asked.binds
        return self._grant()

    def _hold(self, name: str, asked: Holding) -> None:
        self._held[name] = asked
        self._free = [free - part for free, part in zip(self._free, asked.size, strict=True)]

    def _grant(self) -> list[str]:
        names = []
        while self._queue:
            name, asked = next(iter(self._queue.items()))
            if self._binding and any(part > free for part, free in zip(asked.size, self._free, strict=True)):
                break
            del self._queue[name]
            self._hold(name, asked)
            names.append(name)
        return names


@dataclass(slots=True)
class Admission:
    """A rule by which jobs start. Not for several threads at a time."""

    waits_for: str  # what there is too little of, in words
    allocator: FifoAllocator
    holding: Callable[[LaunchSpec], Holding]  # what a job holds; pure

    def request(self, spec: LaunchSpec) -> list[str]:
        """Ask for a job; returns the names of the jobs that start now."""
        return self.allocator.request(spec.name, self.holding(spec))

    def release(self, name: str) -> list[str]:
        """Take back what a job holds; returns the names of the jobs that start now."""
        return self.allocator.release(name)

    def equip(self, spec: LaunchSpec) -> LaunchSpec:
        """Return a job as it starts."""
        return spec


class GpuAdmission(Admission):
    """Gives GPUs to jobs."""

    def __init__(self, nodes: tuple[str, ...], notice: Callable[[str], None]) -> None:
        """Begin without jobs.

        Args:
            nodes: the devices that jobs may be given.
            notice: shows a sentence to the user.
        """
        allocator = FifoAllocator(len(nodes))
        super().__init__("a free GPU", allocator, lambda spec: Holding((spec.gpu_count,), waits=spec.gpu_count > 0))
        self._nodes = nodes
        self._taken: dict[str, tuple[str, ...]] = {}
        self._notice: Callable[[str], None] | None = notice

    def request(self, spec: LaunchSpec) -> list[str]:
        """See :meth:`Admission.request`; says once in a run that a job waits."""
        names = super().request(spec)
        if not names and self._notice is not None:
            self._notice(
                f"Forge: rule {spec.rule} waits for a free GPU. Its cores count as used meanwhile; with "
                f"--resources gpu={len(self._nodes)} Snakemake starts other jobs instead."
            )
            self._notice = None
        return names

    def release(self, name: str) -> list[str]:
        """See :meth:`Admission.release`."""
        self._taken.pop(name, None)
        return super().release(name)

    def equip(self, spec: LaunchSpec) -> LaunchSpec:
        """Choose the devices of a job."""
        taken = {node for nodes in self._taken.values() for node in nodes}
        free = [node for node in self._nodes if node not in taken]
        self._taken[spec.name] = tuple(free[: spec.gpu_count])
        return with_gpus(spec, self._taken[spec.name]) if spec.gpu_count else spec


def by_cores(cores: int) -> Admission:
    """Count cores. A job that wants more than there are has them all for itself."""
    return Admission("a free core", FifoAllocator(cores), lambda spec: Holding((spec.limits.cpus,)))


def by_memory(capacity_bytes: int) -> Admission:
    """Keep memory for jobs that were given more of it than their rule asks for.

    Snakemake counts what rules ask for (if ``--resources mem_mb=…`` tells it to) and does not know of the rest. So:
    while such a job runs or waits, the memory limits of all jobs that run never add up to more than the run may use.
    Without one, every job starts at once.

    Two kinds of jobs never wait. A job without a memory limit counts as nothing: nobody knows what it will use. And a
    member of a group counts but starts at once: the others wait for it while they hold memory themselves, so that
    waiting could last for ever.
    """

    def holding(spec: LaunchSpec) -> Holding:
        size = spec.limits.memory_bytes or 0
        return Holding((size,), binds=spec.retry > 0, waits=size > 0 and not spec.together)

    return Admission("memory", FifoAllocator(capacity_bytes), holding)


def by_processes(jobs: int) -> Admission:
    """Start so many jobs at once: each takes processes of a user who may have few. Members of a group never wait."""
    return Admission("processes", FifoAllocator(jobs), lambda spec: Holding((1,), waits=not spec.together))


def beside(cores: int, memory_bytes: int, others: Mapping[str, tuple[int, int]]) -> Admission:
    """Count the cores and memory of jobs that continue from earlier runs: Snakemake does not know of these jobs.

    While there is one: the cores and memory limits of these jobs and of those that start never add up to more than the
    run may use. Members of groups never wait: see :func:`by_memory`. Without other jobs, every job starts at once.

    Args:
        cores: how many this run may use.
        memory_bytes: how much this run may use.
        others: cores and bytes that each earlier job holds until its name is released.
    """
    allocator = FifoAllocator(cores, memory_bytes)
    for name, size in others.items():
        allocator.request(name, Holding(size, waits=False))

    def holding(spec: LaunchSpec) -> Holding:
        return Holding((spec.limits.cpus, spec.limits.memory_bytes or 0), binds=False, waits=not spec.together)

    return Admission("cores or memory of jobs that continue from an earlier run", allocator, holding)


class QueuedBackend:
    """A :class:`...spec.backend.Backend` in which jobs wait until they are admitted, and are then passed on."""

    def __init__(self, inner: Backend, admission: Admission) -> None:
        self._inner = inner
        self.name = inner.name
        self.host = inner.host
        self._admission = admission
        self._lock = threading.Lock()  # also while a job is passed on, so that cancel_all() cannot miss it
        self._telling: list[threading.Thread] = []  # each tells of a job that was cancelled while it waited
        self._waiting: dict[str, tuple[LaunchSpec, bytes, Done, bool]] = {}

    def check(self, rule: str, resources: dict[str, object]) -> None:
        self._inner.check(rule, resources)

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        with self._lock:
            self._waiting[spec.name] = (spec, payload, done, is_command)
            self._start(self._admission.request(spec))

    def _start(self, names: Iterable[str]) -> None:
        """Pass admitted jobs on. The caller holds the lock."""
        for name in names:
            spec, payload, done, is_command = self._waiting.pop(name)
            spec = self._admission.equip(spec)
            self._inner.submit(spec, payload, partial(self._done, name, done), is_command=is_command)

    def _done(self, name: str, done: Done, verdict: Verdict) -> None:
        self.release(name)
        done(verdict)

    def release(self, name: str) -> None:
        """Take back what ``name`` holds, and start the jobs that waited for it."""
        with self._lock:
            self._start(self._admission.release(name))

    def leave(self, order: Order) -> None:
        """See :class:`...spec.backend.Leaves`; jobs that wait here were never started."""
        self._dismiss(None, order)
        if isinstance(self._inner, Leaves):
            self._inner.leave(order)

    def cancel(self, name: str, order: Order) -> None:
        self._dismiss([name], order)
        self._inner.cancel(name, order)

    def cancel_all(self, order: Order) -> None:
        self._dismiss(None, order)
        self._inner.cancel_all(order)

    def _dismiss(self, names: Iterable[str] | None, order: Order) -> None:
        """Cancel jobs that wait; None: all of them."""
        with self._lock:
            chosen = self._waiting if names is None else names
            gone = [self._waiting.pop(name) for name in list(chosen) if name in self._waiting]
            admitted = [name for spec, *_ in gone for name in self._admission.release(spec.name)]
            self._start(name for name in admitted if name in self._waiting)  # some were just cancelled
            for spec, _, done, _ in gone:
                verdict = never_started(spec, order, self._admission.waits_for)
                thread = threading.Thread(target=done, args=(verdict,), name="forge-queued")  # not the caller's
                self._telling.append(thread)
                thread.start()

    def wait_idle(self, timeout_seconds: float) -> bool:
        deadline = time.monotonic() + timeout_seconds
        idle = self._inner.wait_idle(timeout_seconds)
        for thread in self._telling:
            thread.join(max(0.0, deadline - time.monotonic()))
            idle = idle and not thread.is_alive()
        with self._lock:
            return idle and not self._waiting

    def close(self) -> None:
        self.cancel_all(Order(EndedBy.FORGE, "the run is over", grace=False))
        self._inner.close()
        for thread in self._telling:
            thread.join()
