"""The jobs of a run that failed for good, for the end of Snakemake's output."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable

from ..model import Outcome, Verdict
from .explain import MOST_FAILURES, summary_after_failure
from .jsonfile import load
from .layout import VERDICT
from .streamfile import read_telling


class Failures:
    """Verdicts by job. A job that succeeds when it is tried again is taken out. Used from several threads."""

    def __init__(self, user_is_in: str) -> None:
        """Made in the working directory of the run; ``user_is_in``: where Snakemake was started."""
        here = os.getcwd()
        self._directory = "" if os.path.realpath(user_is_in) == os.path.realpath(here) else here
        self._lock = threading.Lock()
        self._found: dict[Hashable, Verdict | None] = {}  # None: one more, of which nothing is kept

    def add(self, job: Hashable, verdict: Verdict) -> None:
        """Note that a job failed; those that were cancelled failed for another one's sake."""
        if verdict.outcome is Outcome.CANCELLED:
            return
        with self._lock:
            kept = sum(found is not None for found in self._found.values())
            self._found[job] = verdict if kept < MOST_FAILURES or job in self._found else None

    def discard(self, job: Hashable) -> None:
        """It has succeeded now."""
        with self._lock:
            self._found.pop(job, None)

    def text(self) -> str:
        """The summary; "" if nothing failed."""
        with self._lock:
            kept = [verdict for verdict in self._found.values() if verdict is not None]
            unlisted = len(self._found) - len(kept)
        if not kept:
            return ""
        return summary_after_failure([_record(verdict) for verdict in kept], unlisted, self._directory)


def _record(verdict: Verdict) -> dict[str, object]:
    """The record of the attempt or, if that could not be written, what is known without it."""
    rule = os.path.basename(verdict.directory).partition("-")[2]
    known = {
        "rule": rule or "?",
        "wildcards": {},
        "outcome": str(verdict.outcome),
        "reason": verdict.reason,
        "remedy": verdict.remedy,
        "evidence": dict(verdict.evidence),
        "exit_code": verdict.exit_code,
        "seconds": verdict.seconds,
        "usage": verdict.usage.as_json(),
        "notes": list(verdict.notes),
        "directory": verdict.directory,
        "stderr_tail": verdict.stderr_tail,
    }
    told = read_telling(verdict.directory)
    return known | (load(f"{verdict.directory}/{VERDICT}") or {}) | ({"stderr_tail": told} if told else {})
