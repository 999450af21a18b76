"""Which backends there are: Forge's own, and those that other packages register.

A package does so with an entry point of the group :data:`GROUP`: a function that takes :class:`.services.Services` and
returns a :class:`..model.Backend`. docs/explanation/backends.md says what that has to do.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from ..errors import UsageError
from ..model import Backend
from .services import Services

GROUP = "snakemake_executor_plugin_forge.backends"

LOCAL = "local"

_OWN: Mapping[str, str] = {"slurm": ".slurm", "fake": ".fake"}
"""Modules with a function ``open_backend``."""

Open = Callable[[Services], Backend]


def names() -> list[str]:
    """All that ``--forge-backend`` takes."""
    return [LOCAL, *_OWN, *sorted({entry.name for entry in entry_points(group=GROUP)} - {LOCAL, *_OWN})]


def find(name: str) -> Open:
    """What opens the backend ``name``, which is not :data:`LOCAL`.

    Raises:
        UsageError: if there is none, or it cannot be loaded.

    """
    if name in _OWN:
        own: Open = importlib.import_module(_OWN[name], __package__).open_backend
        return own
    registered = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not registered:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(names())}."
        raise UsageError(
            f"--forge-backend={name}: there is no such backend. {hint} A package registers one with an entry point of "
            f"the group {GROUP}."
        )
    try:
        found: Open = registered[0].load()
    except Exception as error:  # somebody else's module
        raise UsageError(f"--forge-backend={name}: {registered[0].value} cannot be loaded: {error}") from error
    return found
