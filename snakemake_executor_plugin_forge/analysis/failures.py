"""The jobs of a run that failed in the end, for the end of Snakemake's output."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable

from ..record import sound
from ..record.codec import encode
from ..record.jsonfile import VERDICT, load
from ..spec.printable import shell_words
from ..spec.verdict import EndedBy, Outcome, Verdict
from .attempt_log import read_telling, with_context
from .explain import MOST_FAILURES, UNFIT, Told, explain, summary_after_failure

_MOST_READ = 1000  # records at the end of a run: a third of a second


class Failures:
    """The verdicts on failed jobs, without jobs that succeeded in a later try. For several threads."""

    def __init__(self, user_is_in: str) -> None:
        """Begin in the working directory of the run; ``user_is_in``: the directory where Snakemake was started."""
        here = os.getcwd()
        self._directory = "" if os.path.realpath(user_is_in) == os.path.realpath(here) else here
        self._lock = threading.Lock()
        self._cancelled = 0  # by the user
        self._found: dict[Hashable, Verdict | str] = {}  # of most only the directory, which takes less memory

    def add(self, job: Hashable, verdict: Verdict) -> None:
        """Note that a job failed. One that the user stopped, or Forge because another one failed, is none."""
        if verdict.outcome is Outcome.CANCELLED and verdict.ended_by in (EndedBy.USER, EndedBy.FORGE):
            self._cancelled += verdict.ended_by is EndedBy.USER
            return
        with self._lock:
            whole = len(self._found) < MOST_FAILURES or job in self._found
            self._found[job] = verdict if whole else verdict.directory

    def discard(self, job: Hashable) -> None:
        """Note that a job has succeeded now."""
        with self._lock:
            self._found.pop(job, None)

    def text(self) -> str:
        """Return the summary; "" if nothing failed and the user cancelled nothing."""
        with self._lock:
            found = list(self._found.values())
        where = f" --directory {shell_words([self._directory])}" if self._directory else ""
        stopped = f"Forge: {self._cancelled} job(s) were cancelled. To continue: snakemake-forge resume{where}"
        if not found:
            return stopped if self._cancelled else ""
        known = []
        for one in found[:_MOST_READ]:
            if not isinstance(one, str):
                known.append(_record(one))
            elif (record := _read(one)) is not None:
                known.append(with_context(record))
        failed = summary_after_failure(known, len(found) - len(known), self._directory)
        return f"{failed}\n{stopped}" if self._cancelled else failed


def _read(directory: str) -> dict[str, object] | None:
    """Return the record of an attempt; None without a sound one."""
    found = sound.verdict(load(f"{directory}/{VERDICT}") or {})
    return None if sound.DAMAGED in found or not found["rule"] else found


def _record(verdict: Verdict) -> dict[str, object]:
    """Return the record of an attempt or, if there is none that can be used, the facts in its verdict."""
    rule = os.path.basename(verdict.directory).partition("-")[2]
    known = {**encode(verdict), "rule": rule or "?", "wildcards": {}}
    told = read_telling(verdict.directory)
    told = told if told.text else Told(verdict.stderr_tail)
    found = _read(verdict.directory)
    record: dict[str, object] = {**known, **(with_context(found, told) if found else {}), "told": told}
    try:
        explain(record, told)
    except UNFIT:
        return known | {"told": told}
    return record
