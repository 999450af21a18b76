"""From a job of Snakemake to attempts of Forge: most jobs have one, those that run out of memory may have more.

Snakemake is told of the last one only. See docs/how-to/retries.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from .errors import ForgeError
from .model import Backend, Done, LaunchSpec, Target, Verdict
from .publish import remove_outputs
from .retries import OomPolicy, again, raised_memory
from .units import show_bytes

Observe = Callable[[LaunchSpec, Done], Done]


@dataclass(frozen=True, slots=True)
class Order:
    """What every attempt of one job has in common."""

    backend: Backend
    payload: bytes
    is_command: bool
    done: Done
    targets: tuple[Target, ...]
    run_memory_bytes: int  # see retries.raised_memory
    policy: OomPolicy


class Attempts:
    """Starts jobs, and those that ran out of memory again."""

    def __init__(self, notice: Callable[[str], None], observe: Observe | None = None) -> None:
        """Make it at the start of a run.

        Args:
            notice: shows a sentence to the user; called in any thread.
            observe: is put around what is called at the end of each attempt.

        """
        self._notice = notice
        self.observe = observe
        self._lock = threading.Lock()
        self._count = 0
        self._current: dict[str, str] = {}  # the first attempt of a job that was run again, to the newest
        self._cancelled: set[str] = set()
        self._ending = False

    def number(self) -> int:
        """The number of the next attempt."""
        with self._lock:
            self._count += 1
            return self._count

    def start(self, order: Order, spec: LaunchSpec) -> None:
        """Start the first attempt of a job."""
        self._submit(order, spec, spec.name)

    def cancel(self, backends: Iterable[Backend], name: str, reason: str) -> None:
        """End a job, by the name of its first attempt."""
        with self._lock:
            self._cancelled.add(name)
            current = self._current.get(name, name)
        for backend in backends:
            backend.cancel(current, reason)

    def end(self) -> None:
        """Start nothing again from now on: what was started before this returns is known to its backend."""
        with self._lock:
            self._ending = True

    def _submit(self, order: Order, spec: LaunchSpec, first: str) -> None:
        def ended(verdict: Verdict) -> None:
            self._ended(order, spec, first, verdict)

        done = self.observe(spec, ended) if self.observe is not None else ended
        order.backend.submit(spec, order.payload, done, is_command=order.is_command)

    def _ended(self, order: Order, spec: LaunchSpec, first: str, verdict: Verdict) -> None:
        """In the backend's thread, in which it is not idle before this returns."""
        memory = raised_memory(order.policy, spec, verdict, order.run_memory_bytes)
        if memory is not None:
            refusal = self._start_again(order, spec, first, memory)
            if refusal is None:
                return
            verdict = replace(verdict, notes=(*verdict.notes, refusal))
        with self._lock:
            self._current.pop(first, None)
            self._cancelled.discard(first)
        order.done(verdict)

    def _start_again(self, order: Order, spec: LaunchSpec, first: str, memory_bytes: int) -> str | None:
        """Start the next attempt; else why it was not."""
        number = self.number()
        following = again(spec, number, memory_bytes)
        try:
            if not spec.files.staged:
                remove_outputs(order.targets)
            with self._lock:  # so that who ends everything comes before or after this, and never between
                if self._ending or first in self._cancelled:
                    return "it was not run again with more memory, because the run was being ended"
                self._current[first] = following.name
                self._submit(order, following, first)
        except (ForgeError, OSError) as error:
            return f"it could not be run again with {show_bytes(memory_bytes)}: {error}"
        had = show_bytes(spec.limits.memory_bytes or 0)
        self._notice(
            f"Forge: rule {spec.rule} ran out of memory with {had}; it is run again with {show_bytes(memory_bytes)}, "
            f"{following.retry} of {order.policy.retries} ({spec.name} is now {following.name})."
        )
        return None
