"""A backend that runs nothing: for tests of what is above backends, and to see what a backend has to do.

Jobs end as a script says: by default each succeeds at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..model import Done, Host, LaunchSpec, Outcome, Usage, Verdict
from ..record.jobdir import now
from ..unattended import never_started
from .services import Services


@dataclass(frozen=True, slots=True)
class Scripted:
    """What becomes of one job."""

    seconds: float = 0.0
    outcome: Outcome = Outcome.SUCCEEDED
    reason: str = "as the script says"
    exit_code: int | None = 0


Script = Callable[[LaunchSpec], Scripted]

HOST = Host(
    run_memory_bytes=1 << 40,
    cpus=64,
    cgroup="soft",
    cgroup_note="nothing is run",
    namespaces="none",
    namespaces_note="nothing is run",
    mechanisms=(),
)


class FakeBackend:
    """Keeps jobs in memory until their time has come."""

    name = "fake"

    def __init__(self, script: Script = lambda _: Scripted()) -> None:
        self.host = HOST
        self._script = script
        self._jobs: dict[str, tuple[LaunchSpec, Done, float]] = {}  # with the time of the end
        self._cancelled: dict[str, str] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="forge-fake", daemon=True)
        self._thread.start()

    def check(self, rule: str, resources: dict[str, object]) -> None:
        """See :class:`..model.Backend`: it takes everything."""

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        """See :class:`..model.Backend`."""
        del payload, is_command
        with self._changed:
            self._jobs[spec.name] = (spec, done, time.monotonic() + self._script(spec).seconds)
            self._changed.notify_all()

    def cancel(self, name: str, reason: str) -> None:
        """See :class:`..model.Backend`."""
        with self._changed:
            if name in self._jobs:
                self._cancelled.setdefault(name, reason)
            self._changed.notify_all()

    def cancel_all(self, reason: str, grace: bool) -> None:
        """See :class:`..model.Backend`."""
        del grace
        with self._changed:
            for name in self._jobs:
                self._cancelled.setdefault(name, reason)
            self._changed.notify_all()

    def wait_idle(self, timeout_seconds: float) -> bool:
        """See :class:`..model.Backend`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout_seconds)

    def close(self) -> None:
        """See :class:`..model.Backend`."""
        self.cancel_all("the run is over", grace=False)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                clock = time.monotonic()
                due = [name for name, (_, _, end) in self._jobs.items() if end <= clock or name in self._cancelled]
                if not due:
                    if self._closing:
                        return
                    next_end = min((end for _, _, end in self._jobs.values()), default=None)
                    self._changed.wait(None if next_end is None else max(0.0, next_end - clock))
                    continue
                ended = [(self._jobs[name], self._cancelled.pop(name, None)) for name in due]
            for (spec, done, _), reason in ended:
                try:
                    done(never_started(spec, reason) if reason is not None else _verdict(spec, self._script(spec)))
                finally:
                    with self._changed:
                        del self._jobs[spec.name]
                        self._changed.notify_all()


def _verdict(spec: LaunchSpec, scripted: Scripted) -> Verdict:
    verdict = Verdict(scripted.outcome, scripted.reason, scripted.exit_code, None, Usage(), now(), scripted.seconds)
    return replace(verdict, directory=spec.job_dir)


def open_backend(services: Services) -> FakeBackend:
    """For :mod:`.registry`."""
    del services
    return FakeBackend()
