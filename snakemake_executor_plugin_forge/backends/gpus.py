"""Who has which GPU, and who waits for some: each belongs to one job at a time."""

from __future__ import annotations

from collections import deque

Grant = tuple[str, tuple[str, ...]]
"""A job and the devices that it has from now on."""


class Devices:
    """First come, first served: a job that needs many is not overtaken by those that need few, so it gets them."""

    def __init__(self, nodes: tuple[str, ...]) -> None:
        self._nodes = nodes
        self._held: dict[str, tuple[str, ...]] = {}
        self._queue: deque[tuple[str, int]] = deque()

    def __len__(self) -> int:
        return len(self._nodes)

    def ask(self, name: str, count: int) -> list[Grant]:
        """Ask for devices for a job that neither has nor waits for some; at once or with a later call it gets them.

        Args:
            count: from 1 to the number of devices; the plan has seen to it.

        Returns:
            The jobs that have got theirs by this.

        """
        self._queue.append((name, count))
        return self._grant()

    def release(self, name: str) -> list[Grant]:
        """A job needs none any more, whether it had some, waited for some, or neither; else as :meth:`ask`."""
        if self._held.pop(name, None) is None:
            self._queue = deque(waiting for waiting in self._queue if waiting[0] != name)
        return self._grant()

    def dismiss(self) -> list[str]:
        """Send all away who wait, and say who they were."""
        names = [name for name, _ in self._queue]
        self._queue.clear()
        return names

    def _grant(self) -> list[Grant]:
        grants = []
        while self._queue:
            name, count = self._queue[0]
            taken = {node for nodes in self._held.values() for node in nodes}
            free = [node for node in self._nodes if node not in taken]
            if len(free) < count:
                break
            self._queue.popleft()
            self._held[name] = tuple(free[:count])
            grants.append((name, self._held[name]))
        return grants
