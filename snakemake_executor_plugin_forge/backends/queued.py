"""A backend in front of another one that lets in only as many jobs as there is room for: see :mod:`.rooms`.

By cores, for rules that run on the submitting host while the others run elsewhere: Snakemake counts the cores of all of
them together (``-j``), so that nobody else would keep 500 small local jobs from starting at once. By memory, where jobs
may get more of it than Snakemake knows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from functools import partial

from ..model import Backend, Done, LaunchSpec, Leaves, Verdict
from ..unattended import never_started
from .rooms import Room


class QueuedBackend:
    """Jobs wait here for their turn, and are given on."""

    def __init__(self, inner: Backend, room: Room) -> None:
        self._inner = inner
        self.name = inner.name
        self.host = inner.host
        self._room = room
        self._lock = threading.Lock()  # also while a job is given on, so that who ends all does not miss it
        self._telling: list[threading.Thread] = []  # of those that were dismissed
        self._waiting: dict[str, tuple[LaunchSpec, bytes, Done, bool]] = {}

    def check(self, rule: str, resources: dict[str, object]) -> None:
        """See :class:`..model.Backend`."""
        self._inner.check(rule, resources)

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        """See :class:`..model.Backend`."""
        with self._lock:
            self._waiting[spec.name] = (spec, payload, done, is_command)
            self._start(self._room.ask(spec))

    def _start(self, names: Iterable[str]) -> None:
        """Give on those that there is room for. With the lock."""
        for name in names:
            spec, payload, done, is_command = self._waiting.pop(name)
            self._inner.submit(spec, payload, partial(self._done, name, done), is_command=is_command)

    def _done(self, name: str, done: Done, verdict: Verdict) -> None:
        with self._lock:
            self._start(self._room.release(name))
        done(verdict)

    def free(self, name: str) -> None:
        """Whatever is known to the room by that name is gone."""
        with self._lock:
            self._start(self._room.release(name))

    def leave(self, reason: str) -> None:
        """See :class:`..model.Leaves`; those that wait were never started."""
        self._dismiss(None, reason)
        if isinstance(self._inner, Leaves):
            self._inner.leave(reason)

    def cancel(self, name: str, reason: str) -> None:
        """See :class:`..model.Backend`."""
        self._dismiss([name], reason)
        self._inner.cancel(name, reason)

    def cancel_all(self, reason: str, grace: bool) -> None:
        """See :class:`..model.Backend`."""
        self._dismiss(None, reason)
        self._inner.cancel_all(reason, grace)

    def _dismiss(self, names: Iterable[str] | None, reason: str) -> None:
        """Send those away that wait; None: all."""
        with self._lock:
            chosen = self._waiting if names is None else names
            gone = [self._waiting.pop(name) for name in list(chosen) if name in self._waiting]
            admitted = [name for spec, _, _, _ in gone for name in self._room.release(spec.name)]
            self._start(name for name in admitted if name in self._waiting)  # some are among those that are gone
            for spec, _, done, _ in gone:  # in a thread of its own, as every verdict is
                verdict = never_started(spec, f"{reason}, while it waited for {self._room.waits_for}")
                thread = threading.Thread(target=done, args=(verdict,), name="forge-queued")
                self._telling.append(thread)
                thread.start()

    def wait_idle(self, timeout_seconds: float) -> bool:
        """See :class:`..model.Backend`."""
        deadline = time.monotonic() + timeout_seconds
        idle = self._inner.wait_idle(timeout_seconds)
        for thread in self._telling:
            thread.join(max(0.0, deadline - time.monotonic()))
            idle = idle and not thread.is_alive()
        with self._lock:
            return idle and not self._waiting

    def close(self) -> None:
        """See :class:`..model.Backend`."""
        self.cancel_all("the run is over", grace=False)
        self._inner.close()
        for thread in self._telling:
            thread.join()
