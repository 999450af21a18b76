"""Facts about the rules and this run, from Forge's records of the working directory."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from snakemake_executor_plugin_forge.analysis.forecast import planned_jobs, times_of_rules
from snakemake_executor_plugin_forge.record.index import Index, open_index
from snakemake_executor_plugin_forge.record.reader import living_run
from snakemake_executor_plugin_forge.spec.errors import ForgeError

from .watched import Known

_SECONDS = 5.0  # between two updates, at least
_SHARE = 50  # of a CPU's time, the part that updates take at most


class Records:
    """The records, updated now and then; a context manager for one thread."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._index: Index | None = None
        self._next = 0.0
        self._known = Known()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._index is not None:
            self._index.__exit__(kind, error, None)

    def known(self, total: int | None) -> Known:
        """Return the facts as of now: none without readable records.

        Args:
            total: the number of jobs; another one than that of the plan means that the plan has changed.
        """
        changed = bool(self._known.plan) and total != sum(planned.jobs for planned in self._known.plan.values())
        now = time.monotonic()
        if now < self._next and not (changed and now > self._next - _SECONDS + 1):
            return self._known
        with suppress(ForgeError, OSError, ValueError, sqlite3.Error):
            if self._index is None:
                self._index = open_index(os.getcwd())
            else:
                self._index.refresh()
            run = living_run(self._index.state, os.getpid())
            self._known = Known(times_of_rules(self._index), planned_jobs(run or {}))
        took = time.monotonic() - now
        self._next = now + max(_SECONDS, took * _SHARE)
        return self._known
