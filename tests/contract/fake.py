"""A backend that runs nothing: for tests of the layers above backends, and as an example of a backend's duties.

A script decides how jobs end: by default each succeeds at once. The directory ``registered`` on ``sys.path`` acts like
an installed package with this backend.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from snakemake_executor_plugin_forge.backends.registry import Services
from snakemake_executor_plugin_forge.record.attempt_dir import now
from snakemake_executor_plugin_forge.spec.backend import Done
from snakemake_executor_plugin_forge.spec.host import Host
from snakemake_executor_plugin_forge.spec.job import LaunchSpec
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Order, Outcome, Usage, Verdict
from snakemake_executor_plugin_forge.supervisor.reaper import never_started


@dataclass(frozen=True, slots=True)
class Scripted:
    """The end of one job."""

    seconds: float = 0.0
    outcome: Outcome = Outcome.SUCCEEDED
    reason: str = "as the script says"
    exit_code: int | None = 0


Script = Callable[[LaunchSpec], Scripted]

HOST = Host(1 << 40, 64, "soft", "nothing is run", "none", "nothing is run", mechanisms=())


class FakeBackend:
    """Keeps jobs in memory until their time has come."""

    name = "fake"

    def __init__(self, script: Script = lambda _: Scripted()) -> None:
        self.host = HOST
        self._script = script
        self._jobs: dict[str, tuple[LaunchSpec, Done, float]] = {}  # the float is the time of the end
        self._cancelled: dict[str, Order] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="forge-fake", daemon=True)
        self._thread.start()

    def check(self, rule: str, resources: dict[str, object]) -> None:
        """See :class:`..spec.backend.Backend`: accept everything."""

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        """See :class:`..spec.backend.Backend`."""
        del payload, is_command
        with self._changed:
            self._jobs[spec.name] = (spec, done, time.monotonic() + self._script(spec).seconds)
            self._changed.notify_all()

    def cancel(self, name: str, order: Order) -> None:
        """See :class:`..spec.backend.Backend`."""
        self._cancel([name], order)

    def cancel_all(self, order: Order) -> None:
        """See :class:`..spec.backend.Backend`."""
        self._cancel(list(self._jobs), order)

    def wait_idle(self, timeout_seconds: float) -> bool:
        """See :class:`..spec.backend.Backend`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout_seconds)

    def close(self) -> None:
        """See :class:`..spec.backend.Backend`."""
        self.cancel_all(Order(EndedBy.FORGE, "the run is over", grace=False))
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _cancel(self, names: list[str], order: Order) -> None:
        with self._changed:
            for name in self._jobs.keys() & names:
                self._cancelled.setdefault(name, order)
            self._changed.notify_all()

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
            for (spec, done, _), order in ended:
                try:
                    done(never_started(spec, order) if order is not None else _verdict(spec, self._script(spec)))
                finally:
                    with self._changed:
                        del self._jobs[spec.name]
                        self._changed.notify_all()


def _verdict(spec: LaunchSpec, scripted: Scripted) -> Verdict:
    verdict = Verdict(scripted.outcome, scripted.reason, scripted.exit_code, None, Usage(), now(), scripted.seconds)
    return replace(verdict, directory=spec.job_dir)


def open_backend(services: Services) -> FakeBackend:
    """Open the backend: the entry point."""
    del services
    return FakeBackend()
