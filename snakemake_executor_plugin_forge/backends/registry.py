"""The registry of backends: Forge's own, and backends that other packages register.

A package registers one with an entry point of the group :data:`GROUP`: a function that takes :class:`Services` and
returns a :class:`..spec.backend.Backend`. docs/explanation/backends.md says what a backend has to do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points

from ..kernel.imports import OwnImports
from ..spec.backend import Backend
from ..spec.errors import UsageError, near_miss
from ..spec.job import Config
from ..workers.launcher import Command

ToCommand = Callable[[bytes, str], tuple[Command, str]]
"""Returns the command of a payload, given its $TMPDIR, and how the command came about (for the record)."""


@dataclass(frozen=True, slots=True)
class Services:
    """The facts and functions of a run that a backend may use."""

    run_id: str
    run_dir: str  # the record of the run; a backend may keep files in a directory of its own name there
    config: Config
    to_command: ToCommand
    notice: Callable[[str], None]  # shows a sentence to the user; called in any thread


GROUP = "snakemake_executor_plugin_forge.backends"

LOCAL = "local"

_OWN: Mapping[str, str] = {"slurm": ".slurm.backend"}
"""Modules with a function ``open_backend``."""

Open = Callable[[Services], Backend]


def names() -> list[str]:
    """Return the values that ``--forge-backend`` takes."""
    return [LOCAL, *_OWN, *sorted({entry.name for entry in entry_points(group=GROUP)} - {LOCAL, *_OWN})]


def find(name: str) -> Open:
    """Return the function that opens the backend ``name``, which is not :data:`LOCAL`.

    Raises:
        UsageError: if there is none, or it cannot be loaded.
    """
    if name in _OWN:
        with OwnImports():
            own: Open = importlib.import_module(_OWN[name], __package__).open_backend
        return own
    registered = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not registered:
        raise UsageError(
            f"--forge-backend={name}: there is no such backend.{near_miss(name, names())} A package registers one with "
            f"an entry point of the group {GROUP}."
        )
    try:
        found: Open = registered[0].load()
    except Exception as error:  # a module of another package
        raise UsageError(f"--forge-backend={name}: {registered[0].value} cannot be loaded: {error}") from error
    return found
