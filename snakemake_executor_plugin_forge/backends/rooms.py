"""How many jobs there is room for, by cores or by memory, and whose turn it is. Nothing here starts anything."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

from ..model import LaunchSpec


class Room(Protocol):
    """A ledger of who is inside and who waits. Not for several threads at a time."""

    waits_for: str
    """What there is too little of, in words."""

    def ask(self, spec: LaunchSpec) -> list[str]:
        """A job that neither is inside nor waits asks to be let in; at once or with a later call it is.

        Returns:
            The names of the jobs that are let in by this, in their order.

        """

    def release(self, name: str) -> list[str]:
        """A job is over or gives up waiting, or neither; else as :meth:`ask`."""


class Cores:
    """First come, first served. A job that wants more cores than there are has them all for itself."""

    waits_for = "a free core"

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._held: dict[str, int] = {}
        self._queue: deque[tuple[str, int]] = deque()

    def ask(self, spec: LaunchSpec) -> list[str]:
        """See :class:`Room`."""
        self._queue.append((spec.name, min(spec.limits.cpus, self._cores)))
        return self._grant()

    def release(self, name: str) -> list[str]:
        """See :class:`Room`."""
        if self._held.pop(name, None) is None:
            self._queue = deque(waiting for waiting in self._queue if waiting[0] != name)
        return self._grant()

    def _grant(self) -> list[str]:
        names = []
        while self._queue and sum(self._held.values()) + self._queue[0][1] <= self._cores:
            name, cores = self._queue.popleft()
            self._held[name] = cores
            names.append(name)
        return names


class Memory:
    """Keeps room for jobs that were given more memory than their rule asks for.

    Snakemake counts what rules ask for (if it was told to: ``--resources mem_mb=…``) and does not know of the rest. So:
    while a raised job runs or waits, the memory limits of all that run never add up to more than the run may use.
    Without one, everybody starts at once, as ever.

    First come, first served, so that a raised job gets its turn. Two kinds of jobs never wait. What has no memory limit
    of its own is counted as nothing: nobody knows what it will use. And a member of a group is counted but let in: the
    others wait for it while they hold memory themselves, so that waiting could last for ever.
    """

    waits_for = "memory"

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._held: dict[str, int] = {}
        self._raised: set[str] = set()  # of those inside
        self._queue: deque[tuple[str, int, bool]] = deque()

    def ask(self, spec: LaunchSpec) -> list[str]:
        """See :class:`Room`."""
        size = min(spec.limits.memory_bytes or 0, self._capacity)  # alone, every job has room
        raised = spec.retry > 0
        if spec.together or size == 0:
            return [self._let_in(spec.name, size, raised)]
        self._queue.append((spec.name, size, raised))
        return self._grant()

    def release(self, name: str) -> list[str]:
        """See :class:`Room`."""
        self._raised.discard(name)
        if self._held.pop(name, None) is None:
            self._queue = deque(waiting for waiting in self._queue if waiting[0] != name)
        return self._grant()

    def _let_in(self, name: str, size: int, raised: bool) -> str:
        self._held[name] = size
        if raised:
            self._raised.add(name)
        return name

    def _grant(self) -> list[str]:
        names = []
        while self._queue:
            name, size, raised = self._queue[0]
            counts = self._raised or any(waiting[2] for waiting in self._queue)
            if counts and sum(self._held.values()) + size > self._capacity:
                break
            self._queue.popleft()
            names.append(self._let_in(name, size, raised))
        return names


class Beside:
    """Keeps the room of jobs of earlier runs that go on without their Snakemake: this one does not know of them.

    As long as there are such: cores and memory limits of these and of those that are let in never add up to more than
    there is. First come, first served; members of groups never wait: see :class:`Memory`. Without them everybody starts
    at once.
    """

    waits_for = "cores or memory of jobs that go on since an earlier run"

    def __init__(self, cores: int, memory_bytes: int, others: Mapping[str, tuple[int, int]]) -> None:
        """Args as below.

        Args:
            cores: that this run may use.
            memory_bytes: the same.
            others: what the earlier ones have: cores and bytes.

        """
        self._cores = cores
        self._memory = memory_bytes
        self._others = dict(others)
        self._held: dict[str, tuple[int, int]] = {}
        self._queue: deque[tuple[str, tuple[int, int]]] = deque()

    def ask(self, spec: LaunchSpec) -> list[str]:
        """See :class:`Room`."""
        size = (min(spec.limits.cpus, self._cores), min(spec.limits.memory_bytes or 0, self._memory))
        if spec.together:
            self._held[spec.name] = size
            return [spec.name]
        self._queue.append((spec.name, size))
        return self._grant()

    def release(self, name: str) -> list[str]:
        """See :class:`Room`; also for one of the others."""
        if self._others.pop(name, None) is None and self._held.pop(name, None) is None:
            self._queue = deque(waiting for waiting in self._queue if waiting[0] != name)
        return self._grant()

    def _grant(self) -> list[str]:
        names = []
        while self._queue and (not self._others or self._fits(self._queue[0][1])):
            name, size = self._queue.popleft()
            self._held[name] = size
            names.append(name)
        return names

    def _fits(self, size: tuple[int, int]) -> bool:
        inside = [*self._others.values(), *self._held.values(), size]
        return sum(s[0] for s in inside) <= self._cores and sum(s[1] for s in inside) <= self._memory
