"""How much disk a job's scratch and its staged outputs take, measured while the job runs, at a bounded price.

The tree is walked in slices of a few milliseconds, with a pause of twenty times as long after each: so a tree of a
million files costs a twentieth of a CPU at most, and the supervisor's other business never waits for it. As long as the
file system has not lost enough free space for the limit to be near, the tree is walked now and then only: others may
have given back what this job has taken. How often that is depends on what a walk costs, so that a small tree, which is
what nearly all jobs have, is never out of sight for long.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from ..model import Excess
from . import sweep

_SLICE_SECONDS = 0.005
_PAUSE = 20
_SHORTEST_SECONDS = 0.05
_LONGEST_SECONDS = 2.0  # between two looks, of which a walk is one, and the free space another
_WALK_ANYWAY = 200  # times as long as the last walk has taken, within these bounds
_WALK_ANYWAY_SECONDS = (0.2, 30.0)
_ENTRIES_AT_ONCE = 20
_EMPTY_DIRECTORY_BYTES = 4096
_BLOCK = 512  # of st_blocks: stat(2)


@dataclass(slots=True)
class _Walk:
    """What one walk has found so far."""

    total_bytes: int = 0
    seen: set[tuple[int, int]] = field(default_factory=set)  # files that could be met twice
    largest: tuple[int, str] = (0, "")
    groups: dict[str, int] = field(default_factory=dict)  # bytes below each top-level entry

    def add(self, size: int, name: str, group: str) -> None:
        self.total_bytes += size
        if size > self.largest[0]:
            self.largest = (size, name)
        self.groups[group] = self.groups.get(group, 0) + size

    def excess(self) -> Excess:
        """The largest file or, if it is less than half of it, the largest top-level entry."""
        size, name = self.largest
        if size * 2 < self.total_bytes:
            name, size = max(self.groups.items(), key=lambda item: item[1])
        return Excess(self.total_bytes, name, size)


class Meter:
    """Measures one scratch directory against a limit."""

    def __init__(
        self, root: str, inner: str, seen_as: str, limit_bytes: int | None, staged: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Nothing is measured yet.

        Args:
            root: all of the job's private /tmp, as the host sees it.
            inner: $TMPDIR, a directory in it.
            seen_as: what the job sees ``root`` as.
            limit_bytes: of all that is in it together, or None.
            staged: directories with what it has written elsewhere, and what it sees them as; they count as well.

        """
        self._root = root
        self._inner = os.path.basename(inner)
        self._seen_as = seen_as
        self._staged = staged
        self._limit = limit_bytes
        self._large = float("inf") if limit_bytes is None else limit_bytes / 1000
        self._walk: _Walk | None = None
        self._steps: Iterator[None] = iter(())
        self._interval = _SHORTEST_SECONDS
        self._free: int | None = None  # of the file system, at the last walk
        self._last_walk = 0.0
        self._busy = 0.0  # seconds that the present walk has taken, or the last one
        self._last_total = 0
        self.peak_bytes = 0
        self.full_file: str | None = None  # one that is as large as RLIMIT_FSIZE lets it be
        self.due = time.monotonic() + _SHORTEST_SECONDS

    def step(self, pids: Callable[[], list[int]]) -> Excess | None:
        """Go on measuring, for a few milliseconds at most; to be called when it is :attr:`due`.

        Args:
            pids: the job's processes, whose unlinked but open files count.

        """
        begin = time.monotonic()
        if self._walk is None:
            if self._far_from_the_limit(begin):
                self._interval = self._longer()
                self.due = begin + self._interval
                return None
            self._walk, self._busy = _Walk(), 0.0
            self._steps = self._measure(self._walk, pids())
            self._free = self._free_bytes()
        walk, whole = self._walk, self._advance(begin + _SLICE_SECONDS)
        now = time.monotonic()
        took = min(now - begin, 2 * _SLICE_SECONDS)  # on a busy host, the rest is what others have computed meanwhile
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
        """Measure what is left when all processes are dead, and say whether that was all of it or the time was over."""
        walk = _Walk()
        self._walk, self._steps = walk, self._measure(walk, [])
        whole = self._advance(time.monotonic() + seconds)
        self.peak_bytes = max(self.peak_bytes, walk.total_bytes)
        over = self._limit is not None and walk.total_bytes > self._limit
        return (walk.excess() if over else None), whole

    def _advance(self, until: float) -> bool:
        """Walk on until then; True at the end of the walk."""
        return all(time.monotonic() < until for _ in self._steps)

    def _far_from_the_limit(self, now: float) -> bool:
        """Whether the file system has lost too little space since the last walk for the limit to be near."""
        if self._free is None or self._limit is None or now - self._last_walk >= self._anyway():
            return False
        lost = self._free - self._free_bytes()
        return lost < (self._limit - self._last_total) / 4

    def _anyway(self) -> float:
        """Seconds after which the tree is walked even if the file system has as much free space as before."""
        shortest, longest = _WALK_ANYWAY_SECONDS
        return min(max(_WALK_ANYWAY * self._busy, shortest), longest)

    def _longer(self) -> float:
        """The next interval, if nothing seems to happen."""
        return min(self._interval * 1.5, self._anyway(), _LONGEST_SECONDS)

    def _free_bytes(self) -> int:
        """Of all file systems that are written to; one that is there twice makes it look again earlier."""
        return sum(_free_bytes(root) for root in (self._root, *(root for root, _ in self._staged)))

    def _next_interval(self, total: int, now: float) -> float:
        """Half the time that is left until the limit, if it grows on like this."""
        grown, took = total - self._last_total, now - self._last_walk
        if self._limit is None or grown <= 0 or self._last_walk == 0:
            return self._longer()
        left = (self._limit - total) / (grown / took)
        return min(max(left / 2, _SHORTEST_SECONDS), _LONGEST_SECONDS)

    def _measure(self, walk: _Walk, pids: list[int]) -> Iterator[None]:
        """Add up everything; yields again and again, so that it can be interrupted."""
        try:
            device = os.lstat(self._root).st_dev
        except OSError:
            return
        yield from _unlinked(walk, pids, device)
        for root, seen_as in ((self._root, self._seen_as), *self._staged):
            yield from self._measure_below(walk, root, seen_as)

    def _measure_below(self, walk: _Walk, root: str, seen_as: str) -> Iterator[None]:
        directories = [("", "")]
        count = 0
        while directories:
            below, group = directories.pop()
            with suppress(OSError), os.scandir(f"{root}/{below}" if below else root) as entries:
                for entry in entries:
                    path = f"{below}/{entry.name}" if below else entry.name
                    top = path if not below or below == self._inner else group
                    if entry.is_dir(follow_symlinks=False):
                        directories.append((path, top))
                    with suppress(OSError):
                        self._add(walk, entry.stat(follow_symlinks=False), f"{seen_as}/{path}", f"{seen_as}/{top}")
                    count += 1
                    if count % _ENTRIES_AT_ONCE == 0:
                        yield

    def _add(self, walk: _Walk, status: os.stat_result, path: str, top: str) -> None:
        size = status.st_blocks * _BLOCK
        if status.st_size == self._limit:
            self.full_file = path
        if stat.S_ISDIR(status.st_mode):
            size = size if size > _EMPTY_DIRECTORY_BYTES else 0  # one of very many files is large itself
        elif status.st_nlink > 1 or size > self._large:  # hard links; large ones that are moved meanwhile
            key = (status.st_dev, status.st_ino)
            if key in walk.seen:
                return
            walk.seen.add(key)
        if size:
            walk.add(size, path, top)


def _unlinked(walk: _Walk, pids: list[int], device: int) -> Iterator[None]:
    """Files without a name that a process of the job holds open: proc_pid_fd(5)."""
    for pid in pids:
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{fd}")
                    key = (status.st_dev, status.st_ino)
                    if status.st_nlink or status.st_dev != device or key in walk.seen:
                        continue
                    walk.seen.add(key)
                    name = f"a deleted file that process {sweep.command_name(pid) or pid} holds open"
                    walk.add(status.st_blocks * _BLOCK, name, name)
        yield


def _free_bytes(path: str) -> int:
    """Of its file system: statvfs(3)."""
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize
