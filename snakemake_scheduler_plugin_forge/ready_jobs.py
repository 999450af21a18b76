"""The jobs that are ready, in an order that makes choosing from them independent of their number.

Jobs of equal needs are a :class:`_Shape`, with a heap by reward. Shapes whose needs agree in their first three binary
digits are a :class:`_Kind`, with a heap by the rewards of their best jobs. There are few kinds, whatever the jobs need:
a round looks at each once, leaves out those of which nothing can fit, and follows the heaps of the others.

A job that needs much could wait as long as others take, piece by piece, what becomes free. So a shape is *held* once
jobs have been started past it that together need :data:`PATIENCE` times as much as it does: from then on, jobs of no
higher priority get only what it leaves, until one of its jobs has started. One shape at a time is held.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

Reward = tuple[int, int, int]
_Key = tuple[int, int, int, int]  # the negative reward, then the number of the arrival: the smallest is the first
_Valid = Callable[[_Key, Any], bool]

PATIENCE = 20
"""Others may start past a job until together they need this many times its need of each resource that it lacks. Held
resources are idle, on average half of them until the running jobs end: a fortieth of a run, in the worst case."""
_LOOK = 64  # starts of jobs between two searches for a shape to hold, which look at all shapes


@dataclass(eq=False)
class _Shape:
    """The ready jobs that need the same."""

    needs: tuple[int, ...]
    given: tuple[int, ...]  # what all started jobs need together, when one of these was last started or the first came
    jobs: list[tuple[_Key, Any]] = field(default_factory=list)  # a heap; some have left
    listed: _Key | None = None  # where its kind has it

    def first(self, valid: _Valid) -> _Key | None:
        """Key of the best job; None if there is no job."""
        while self.jobs and not valid(*self.jobs[0]):
            heappop(self.jobs)
        return self.jobs[0][0] if self.jobs else None


@dataclass(eq=False)
class _Kind:
    """Shapes that differ by less than a quarter in each resource."""

    least: tuple[int, ...]  # none of them needs less
    shapes: list[tuple[_Key, _Shape]] = field(default_factory=list)  # a heap; valid where the shape is listed so

    def first(self, valid: _Valid) -> _Key | None:
        """Key of the best job of all shapes; None if there is no job."""
        while self.shapes:
            key, shape = self.shapes[0]
            if shape.listed == key:
                best = shape.first(valid)
                if best == key:
                    return key
                heappop(self.shapes)
                self.put(shape, best)
            else:
                heappop(self.shapes)
        return None

    def put(self, shape: _Shape, best: _Key | None) -> None:
        """List a shape by its best job."""
        shape.listed = best
        if best is not None:
            heappush(self.shapes, (best, shape))

    def pop(self) -> _Shape:
        """Take out the shape that is first."""
        _, shape = heappop(self.shapes)
        shape.listed = None
        return shape


class ReadyJobs:
    """All ready jobs. Jobs that leave otherwise than by being chosen are noticed when their turn comes."""

    def __init__(self) -> None:
        self._keys: dict[Any, _Key] = {}
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        self._kinds: dict[tuple[int, ...], _Kind] = {}
        self._arrivals = count()
        self._given: tuple[int, ...] = ()
        self._most: list[int] = []  # that was ever free
        self._held: _Shape | None = None
        self._since_search = 0

    def clear(self) -> None:
        """Forget all jobs, but not which shapes have waited for how long."""
        self._keys.clear()
        for shape in self._shapes.values():
            shape.jobs.clear()
            shape.listed = None
        for kind in self._kinds.values():
            kind.shapes.clear()

    def add(self, job: Any, needs: Sequence[int], reward: Reward) -> None:
        """Add a job, or change its needs and its reward."""
        wanted = tuple(max(0, need) for need in needs)
        priority, temporary, size = reward
        key = self._keys[job] = (-priority, -temporary, -size, next(self._arrivals))
        self._given = self._given or (0,) * len(wanted)
        shape = self._shapes.get(wanted)
        if shape is None:
            shape = self._shapes[wanted] = _Shape(wanted, self._given)
        heappush(shape.jobs, (key, job))
        if shape.listed is None or key < shape.listed:
            self._kind(wanted).put(shape, key)

    def _kind(self, needs: tuple[int, ...]) -> _Kind:
        least = tuple(need >> (rest := max(0, need.bit_length() - 3)) << rest for need in needs)
        kind = self._kinds.get(least)
        if kind is None:
            kind = self._kinds[least] = _Kind(least)
        return kind

    def choose(self, free: Sequence[int], starts: int | None, present: Container[Any]) -> list[Any]:
        """Choose jobs to start now, and forget them.

        Args:
            free: what is free of each resource, in the order of ``needs``.
            starts: how many jobs may be started; None for as many as fit.
            present: the jobs that are still ready.
        """
        round_ = _Round(list(free), sys.maxsize if starts is None else starts, self._valid(present))
        self._most = [max(both) for both in zip(free, self._most or free, strict=True)]
        best = self._held.first(round_.valid) if self._held else None
        if self._held is not None and best is not None:
            self._take(round_, priority=best[0])
            if round_.starts and _fit(self._held.needs, round_.free):
                self._start(round_, self._held)
            else:
                round_.free = [max(0, rest - need) for rest, need in zip(round_.free, self._held.needs, strict=True)]
        else:
            self._held = None
        self._take(round_)
        self._since_search += len(round_.chosen)
        if self._held is None and self._since_search >= _LOOK:
            self._since_search = 0
            self._hold(free, round_.valid)
        return round_.chosen

    def _valid(self, present: Container[Any]) -> _Valid:
        keys = self._keys
        return lambda key, job: keys.get(job) is key and job in present

    def _take(self, round_: _Round, priority: int | None = None) -> None:
        """Start what fits, from the best on; only what comes before a (negative) priority, if there is one."""
        kinds = [
            (key, kind)
            for kind in self._kinds.values()
            if _fit(kind.least, round_.free) and (key := kind.first(round_.valid)) is not None
        ]
        heapify(kinds)
        aside = []
        while kinds and round_.starts and (priority is None or kinds[0][0][0] < priority):
            _, kind = heappop(kinds)
            shape = kind.pop()
            if _fit(shape.needs, round_.free):
                self._start(round_, shape)
                kind.put(shape, shape.first(round_.valid))
            else:
                aside.append((kind, shape))
            if _fit(kind.least, round_.free) and (following := kind.first(round_.valid)) is not None:
                heappush(kinds, (following, kind))
        for kind, shape in aside:
            kind.put(shape, shape.first(round_.valid))

    def _start(self, round_: _Round, shape: _Shape) -> None:
        """Start the best job of a shape."""
        _, job = heappop(shape.jobs)
        del self._keys[job]
        round_.chosen.append(job)
        round_.starts -= 1
        round_.free = [rest - need for rest, need in zip(round_.free, shape.needs, strict=True)]
        self._given = shape.given = tuple(map(int.__add__, self._given, shape.needs))
        if shape is self._held:
            self._held = None

    def _hold(self, free: Sequence[int], valid: _Valid) -> None:
        """Hold the best of the shapes that do not fit and have been patient enough; forget those without a job."""
        candidates = []
        for needs, shape in list(self._shapes.items()):
            best = shape.first(valid)
            if best is None:
                del self._shapes[needs]
            elif self._is_passed_over(shape, free):
                candidates.append(((best[0], best[-1]), shape))
        self._held = min(candidates, key=lambda both: both[0])[1] if candidates else None

    def _is_passed_over(self, shape: _Shape, free: Sequence[int]) -> bool:
        lacking = [number for number, need in enumerate(shape.needs) if need > free[number]]
        return (
            bool(lacking)
            and _fit(shape.needs, self._most)
            and all(self._given[n] - shape.given[n] >= PATIENCE * shape.needs[n] for n in lacking)
        )


@dataclass
class _Round:
    """The remaining resources of one round, and its chosen jobs."""

    free: list[int]
    starts: int
    valid: _Valid
    chosen: list[Any] = field(default_factory=list)


def _fit(needs: Sequence[int], free: Sequence[int]) -> bool:
    return all(map(int.__le__, needs, free))
