"""The attempts of a job of Snakemake: most jobs have one; a job that runs out of memory may have more.

Snakemake is told of the last one only. See docs/how-to/retries.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..record.attempt_dir import now
from ..spec.backend import Backend, Done
from ..spec.errors import ForgeError
from ..spec.job import LaunchSpec, Target
from ..spec.oom_retry import OomPolicy, again, raised_memory
from ..spec.units import show_bytes
from ..spec.verdict import Order, Verdict
from ..staging.publish import remove_outputs

Observe = Callable[[LaunchSpec, Done], Done]


@dataclass(frozen=True, slots=True)
class Submission:
    """The values that all attempts of one job share."""

    backend: Backend
    payload: bytes
    is_command: bool
    done: Done
    targets: tuple[Target, ...]
    run_memory_bytes: int  # see spec.oom_retry.raised_memory
    policy: OomPolicy


class Attempts:
    """Starts jobs, and starts a job again that ran out of memory."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        """Make it at the start of a run.

        Args:
            notice: shows a sentence to the user; called in any thread.
        """
        self._notice = notice
        self.observe: Observe | None = None  # wraps the function that is called at the end of each attempt
        self._lock = threading.Lock()
        self._count = 0
        self._current: dict[str, str] = {}  # by first attempt of a job that was run again: the newest
        self._cancelled: set[str] = set()
        self._ending = False

    def number(self) -> int:
        """Return the number of the next attempt."""
        with self._lock:
            self._count += 1
            return self._count

    def start(self, submission: Submission, spec: LaunchSpec) -> None:
        """Start the first attempt of a job."""
        self._submit(submission, spec, spec.name)

    def cancel(self, backends: Iterable[Backend], name: str, order: Order) -> None:
        """End a job, by the name of its first attempt."""
        with self._lock:
            self._cancelled.add(name)
            current = self._current.get(name, name)
        for backend in backends:
            backend.cancel(current, order)

    def end(self) -> None:
        """Start no job again from now on. When this returns, each backend knows all its attempts."""
        with self._lock:
            self._ending = True

    def _submit(self, submission: Submission, spec: LaunchSpec, first: str) -> None:
        def ended(verdict: Verdict) -> None:
            self._ended(submission, spec, first, verdict)

        done = self.observe(spec, ended) if self.observe is not None else ended
        submission.backend.submit(spec, submission.payload, done, is_command=submission.is_command)

    def _ended(self, submission: Submission, spec: LaunchSpec, first: str, verdict: Verdict) -> None:
        """Take a verdict, in the backend's thread: the backend is not idle before this returns."""
        memory = raised_memory(submission.policy, spec, verdict, submission.run_memory_bytes)
        if memory is not None:
            refusal = self._start_again(submission, spec, first, memory)
            if refusal is None:
                return
            verdict = replace(verdict, notes=(*verdict.notes, refusal))
        with self._lock:
            self._current.pop(first, None)
            self._cancelled.discard(first)
        submission.done(verdict)

    def _start_again(self, submission: Submission, spec: LaunchSpec, first: str, memory_bytes: int) -> str | None:
        """Start the next attempt; returns why that was impossible, or None."""
        number = self.number()
        asked = time.monotonic()
        following = replace(again(spec, number, memory_bytes, now()), asked=asked, planned=asked)
        try:
            if not spec.files.staged:
                remove_outputs(submission.targets)
            with self._lock:  # so that end() comes before or after this, and never between
                if self._ending or first in self._cancelled:
                    return "it was not run again with more memory, because the run was being ended"
                self._current[first] = following.name
                self._submit(submission, following, first)
        except (ForgeError, OSError) as error:
            return f"it could not be run again with {show_bytes(memory_bytes)}: {error}"
        had = show_bytes(spec.limits.memory_bytes or 0)
        self._notice(
            f"Forge: rule {spec.rule} ran out of memory with {had}; it is run again with {show_bytes(memory_bytes)}, "
            f"{following.retry} of {submission.policy.retries} ({spec.name} is now {following.name})."
        )
        return None
