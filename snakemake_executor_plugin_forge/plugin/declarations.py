"""The files that the DAG declares, for the supervisors: they belong to their rules. See staging/declared.py."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from ..staging.declared import DECLARED, Declaration, DeclaredKind, write
from .symlinks import Links


class Declarations:
    """Writes them once, and again when a checkpoint has changed the DAG."""

    def __init__(self, workflow: Any, directory: str) -> None:
        """Write those of the DAG as it is.

        Args:
            directory: of the run.

        Raises:
            OSError: if they cannot be written.
        """
        self._workflow, self._dag = workflow, workflow.dag
        self._path = f"{directory}/{DECLARED}"
        self._links = Links(os.path.realpath(os.getcwd()))
        self._known: frozenset[Any] = frozenset()
        self._write()

    def update(self, jobs: Iterable[Any]) -> None:
        """Write them again, if the DAG has other jobs now.

        Args:
            jobs: which are about to start.

        Raises:
            OSError: if they cannot be written.
        """
        if len(self._dag.jobs) != len(self._known) or not self._known.issuperset(_members(jobs)):
            self._write()

    def _write(self) -> None:
        self._known = frozenset(self._dag.jobs)
        write(self._path, self._declarations())

    def _declarations(self) -> Iterator[Declaration]:
        for rule in self._workflow.rules:
            yield Declaration("\0", rule.name)
        for job in self._known:
            for file in job.output:
                kind = DeclaredKind.DIRECTORY if file.is_directory else DeclaredKind.FILE
                yield Declaration(self._links.place(str(file)), job.rule.name, kind)
            for file in job.log:
                yield Declaration(self._links.place(str(file)), job.rule.name, DeclaredKind.LOG)
            if job.benchmark:
                yield Declaration(self._links.place(str(job.benchmark)), job.rule.name, DeclaredKind.BENCHMARK)


def _members(jobs: Iterable[Any]) -> Iterator[Any]:
    """Yield jobs, and the members of groups."""
    for job in jobs:
        yield from job if job.is_group() else (job,)
