"""Disk usage of a job's scratch directory and layers, measured while the job runs, at a bounded cost.

The meter walks the tree in slices of a few milliseconds and pauses twenty times as long after each. So a tree of a
million files costs at most a twentieth of a CPU, and the supervisor never waits for it. As long as the file system has
not lost enough free space for the limit to be near, the meter walks the tree only now and then, because other processes
may have freed what this job has taken. How often depends on the cost of a walk: a small tree, which nearly all jobs
have, is walked within a fraction of a second.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from ...kernel import open_files, process_tree, tree
from ...spec.job import file_bytes
from ...spec.verdict import Excess

_SLICE_SECONDS = 0.005
_PAUSE = 20
_SHORTEST_SECONDS = 0.05
_LONGEST_SECONDS = 2.0  # between two measurements, each a walk or a query of the free space
_WALK_ANYWAY = 200  # times as long as the last walk has taken, within these bounds
_WALK_ANYWAY_SECONDS = (0.2, 30.0)
_ENTRIES_AT_ONCE = 20
_EMPTY_DIRECTORY_BYTES = 4096
_BLOCK = 512  # of st_blocks: stat(2)


@dataclass(slots=True)
class _UsageWalk:
    """The result of one walk so far."""

    total_bytes: int = 0
    seen: set[tuple[int, int]] = field(default_factory=set)  # device and inode of files that the walk could meet twice
    largest: tuple[int, str] = (0, "")
    groups: dict[str, int] = field(default_factory=dict)  # bytes below each top-level entry

    def add(self, size: int, name: str, group: str) -> None:
        self.total_bytes += size
        if size > self.largest[0]:
            self.largest = (size, name)
        self.groups[group] = self.groups.get(group, 0) + size

    def excess(self) -> Excess:
        """The total and its cause: the largest file or, if that is less than half, the largest top-level entry."""
        size, name = self.largest
        if size * 2 < self.total_bytes:
            name, size = max(self.groups.items(), key=lambda item: item[1])
        return Excess(self.total_bytes, name, size)


class Meter:
    """Measures the disk usage of one job against its limit."""

    def __init__(
        self, root: str, inner: str, seen_as: str, limit_bytes: int | None, layers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Prepare a meter that has measured nothing yet.

        Args:
            root: the real path of the job's private /tmp.
            inner: $TMPDIR, a directory in ``root``.
            seen_as: the path of ``root`` for the job.
            limit_bytes: of all directories together, or None.
            layers: further directories that the job has written to, each with its path for the job.
        """
        self._root = root
        self._inner = os.path.basename(inner)
        self._seen_as = seen_as
        self._layers = layers
        self._limit = limit_bytes
        self._full = None if limit_bytes is None else file_bytes(limit_bytes)
        self._large = float("inf") if limit_bytes is None else limit_bytes / 1000
        self._walk: _UsageWalk | None = None
        self._steps: Iterator[None] = iter(())
        self._interval = _SHORTEST_SECONDS
        self._free: int | None = None  # bytes in the file systems, at the last walk
        self._last_walk = 0.0
        self._busy = 0.0  # seconds that the present or last walk has taken
        self._last_total = 0
        self.peak_bytes = 0
        self.full_file: str | None = None  # a file that has reached RLIMIT_FSIZE
        self.due = time.monotonic() + _SHORTEST_SECONDS

    def step(self, pids: Callable[[], list[int]]) -> Excess | None:
        """Continue measuring for a few milliseconds; to be called when :attr:`due`, a time of time.monotonic().

        Args:
            pids: returns the job's processes, whose unlinked but open files count too.

        Returns:
            How the limit is exceeded; None if it is not.
        """
        begin = time.monotonic()
        if self._walk is None:
            if self._far_from_the_limit(begin):
                self._interval = self._longer()
                self.due = begin + self._interval
                return None
            self._walk, self._busy = _UsageWalk(), 0.0
            self._steps = self._measure(self._walk, pids())
            self._free = self._free_bytes()
        walk, whole = self._walk, self._advance(begin + _SLICE_SECONDS)
        now = time.monotonic()
        took = min(now - begin, 2 * _SLICE_SECONDS)  # on a busy host, other processes have used the rest
        self._busy += took
        pause = max(_PAUSE * took, _SHORTEST_SECONDS)
        self.peak_bytes = max(self.peak_bytes, walk.total_bytes)
        if self._limit is not None and walk.total_bytes > self._limit:
            return walk.excess()
        if whole:
            self._interval = self._next_interval(walk.total_bytes, now)
            pause = max(pause, self._interval)
            self._walk, self._last_walk, self._last_total = None, now, walk.total_bytes
        self.due = now + pause
        return None

    def finish(self, seconds: float) -> tuple[Excess | None, bool]:
        """Measure when all processes are dead; return the excess, and whether the walk ended within ``seconds``."""
        walk = _UsageWalk()
        self._walk, self._steps = walk, self._measure(walk, [])
        whole = self._advance(time.monotonic() + seconds)
        self.peak_bytes = max(self.peak_bytes, walk.total_bytes)
        over = self._limit is not None and walk.total_bytes > self._limit
        return (walk.excess() if over else None), whole

    def _advance(self, until: float) -> bool:
        """Continue the walk until a time of time.monotonic(); return whether the walk has ended."""
        return all(time.monotonic() < until for _ in self._steps)

    def _far_from_the_limit(self, now: float) -> bool:
        """Whether the file system has lost too little space since the last walk for the limit to be near."""
        if self._free is None or self._limit is None or now - self._last_walk >= self._anyway():
            return False
        lost = self._free - self._free_bytes()
        return lost < (self._limit - self._last_total) / 4

    def _anyway(self) -> float:
        """Seconds after which the meter walks the tree even if the free space has not changed."""
        shortest, longest = _WALK_ANYWAY_SECONDS
        return min(max(_WALK_ANYWAY * self._busy, shortest), longest)

    def _longer(self) -> float:
        """Seconds of the next interval, if the usage seems not to grow."""
        return min(self._interval * 1.5, self._anyway(), _LONGEST_SECONDS)

    def _free_bytes(self) -> int:
        """Free bytes in all file systems that the job writes to; counting one twice only means an earlier walk."""
        return sum(_free_bytes(root) for root in (self._root, *(root for root, _ in self._layers)))

    def _next_interval(self, total: int, now: float) -> float:
        """Seconds: half of the time until the limit is reached at the present growth."""
        grown, took = total - self._last_total, now - self._last_walk
        if self._limit is None or grown <= 0 or self._last_walk == 0:
            return self._longer()
        left = (self._limit - total) / (grown / took)
        return min(max(left / 2, _SHORTEST_SECONDS), _LONGEST_SECONDS)

    def _measure(self, walk: _UsageWalk, pids: list[int]) -> Iterator[None]:
        """Add up all files; yields often, so that the caller can pause the walk."""
        devices = self._devices(pids) if pids else set[int]()
        for pid in pids:
            yield from _unlinked(walk, pid, devices)
        for root, seen_as in ((self._root, self._seen_as), *self._layers):
            yield from self._measure_below(walk, root, seen_as)

    def _devices(self, pids: list[int]) -> set[int]:
        """Return the numbers by which the job's processes see the file systems of its files."""
        roots = (self._root, *(root for root, _ in self._layers))
        seen = [f"/proc/{pid}/root{seen_as}" for pid in pids[-1:] for _, seen_as in self._layers]
        found = set()
        for path in (*roots, *seen):
            with suppress(OSError):
                found.add(os.lstat(path).st_dev)
        return found

    def _measure_below(self, walk: _UsageWalk, root: str, seen_as: str) -> Iterator[None]:
        count = 0
        with suppress(OSError):  # the job moves directories meanwhile: the next walk sees them
            for below, entry in tree.scan(root):
                path = f"{below}/{entry.name}" if below else entry.name
                top = path if not below or below == self._inner else _group(below, self._inner)
                with suppress(OSError):
                    self._add(walk, entry.stat(follow_symlinks=False), f"{seen_as}/{path}", f"{seen_as}/{top}")
                count += 1
                if count % _ENTRIES_AT_ONCE == 0:
                    yield

    def _add(self, walk: _UsageWalk, status: os.stat_result, path: str, top: str) -> None:
        size = status.st_blocks * _BLOCK
        if status.st_size == self._full:
            self.full_file = path
        if stat.S_ISDIR(status.st_mode):
            size = size if size > _EMPTY_DIRECTORY_BYTES else 0  # a directory of very many files is large itself
        elif status.st_nlink > 1 or size > self._large:  # hard links; large files that may move meanwhile
            key = (status.st_dev, status.st_ino)
            if key in walk.seen:
                return
            walk.seen.add(key)
        if size:
            walk.add(size, path, top)


def _group(directory: str, inner: str) -> str:
    """The top-level entry that a directory is or lies in; entries of ``inner`` count as such."""
    parts = directory.split("/", 2)
    return "/".join(parts[:2]) if parts[0] == inner else parts[0]


def _unlinked(walk: _UsageWalk, pid: int, devices: set[int]) -> Iterator[None]:
    """Add files without a name that a process of the job holds."""
    for file in open_files.unnamed(pid):
        if file is None:
            yield
        elif file.device in devices and not file.in_memory and (file.device, file.inode) not in walk.seen:
            walk.seen.add((file.device, file.inode))
            name = f"a deleted file that process {process_tree.command_name(pid) or pid} holds open"
            walk.add(file.bytes, name, name)
    yield


def _free_bytes(path: str) -> int:
    """Free bytes in the file system of a path: statvfs(3)."""
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize
