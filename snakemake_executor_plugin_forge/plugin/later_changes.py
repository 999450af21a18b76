"""Changes by code of the Snakefile in Snakemake's process, after the nursery has been forked.

``onstart:`` runs then, and input functions that wait for a checkpoint. ``local`` evaluates commands and scripts in that
process, so that jobs see such changes; a ``run:`` block, in a new process, sees those of the environment only.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FunctionType, ModuleType
from typing import Any

from .parsing import fingerprint


@dataclass(frozen=True, slots=True)
class Changes:
    """Globals and environment variables as they are now; a variable that is gone is None."""

    values: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str | None] = field(default_factory=dict)

    @contextmanager
    def applied(self, namespace: dict[str, Any]) -> Iterator[None]:
        """Make the changes in this process, and take them back."""
        values = {name: namespace[name] for name in self.values if name in namespace}
        variables = {name: os.environ.get(name) for name in self.variables}
        self.apply(namespace)
        try:
            yield
        finally:
            for name in self.values.keys() - values.keys():
                del namespace[name]
            Changes(values, variables).apply(namespace)

    def apply(self, namespace: dict[str, Any]) -> None:
        """Make the changes in this process."""
        namespace.update(self.values)
        _set(os.environ, self.variables)


NO_CHANGES = Changes()


class LaterChanges:
    """Compares globals and environment with what they were when the nursery was forked."""

    def __init__(self, workflow: Any) -> None:
        self._namespace: dict[str, Any] = workflow.globals
        self._values = {name: fingerprint(value) for name, value in self._namespace.items()}
        self._variables = dict(os.environ)
        self._changes: Changes | None = None
        self._changed: set[str] = set()  # names stay here: the nursery has the value of its start
        self._is_changing = any(rule.is_checkpoint for rule in workflow.rules)

    def now(self, *, is_run: bool) -> Changes:
        """The changes that a job sees. They are looked for before the first job, and often if there are checkpoints."""
        if self._changes is None or self._is_changing:
            self._changes = self._look()
        return replace(self._changes, values={}) if is_run and self._changes.values else self._changes

    def _look(self) -> Changes:
        now = dict(os.environ)
        variables = {n: now.get(n) for n in now.keys() | self._variables.keys() if now.get(n) != self._variables.get(n)}
        for name, value in self._namespace.items():
            if fingerprint(value) != self._values.get(name) and _travels(value):
                self._changed.add(name)
        values = {name: self._namespace[name] for name in self._changed if name in self._namespace}
        return Changes(values, variables) if values or variables else NO_CHANGES


def _travels(value: Any) -> bool:
    if isinstance(value, FunctionType | ModuleType | type):
        return False
    try:
        pickle.dumps(value)
    except Exception:  # whatever the object's own __reduce__ raises
        return False
    return True


def _set(environment: MutableMapping[str, str], variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
