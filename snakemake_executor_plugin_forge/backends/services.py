"""What a backend is given when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..model import Config
from .launcher import Command

ToCommand = Callable[[bytes, str], tuple[Command, str]]
"""A payload, and the $TMPDIR that the command shall have, to the command and how it came about (for the record)."""


@dataclass(frozen=True, slots=True)
class Services:
    """Of the run that opens it."""

    run_id: str
    run_dir: str  # the record of the run; a backend may keep files in a directory of its own name there
    config: Config
    to_command: ToCommand
    notice: Callable[[str], None]  # shows a sentence to the user; called in any thread
