"""A run of Snakemake in which no job has to run."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..spec.paths import STAGING, STATE


def complete_interrupted(settings: Any, say: Callable[[str], None]) -> None:
    """Complete what an earlier run was publishing when it was killed: by now Snakemake has taken it for complete.

    Where there is nothing, this lists a directory.

    Raises:
        ForgeError: if that cannot be done, or Snakemake has to take outputs for incomplete.
    """
    workdir, names = os.path.realpath(os.getcwd()), list[str]()
    with suppress(OSError):
        names = os.listdir(f"{workdir}/{STAGING}")
    if not names:
        return
    from ..kernel.imports import OwnImports

    with OwnImports():
        from ..run.engine import recover
    scratch = str(getattr(settings, "scratch_dir", None) or "")
    if recover(f"{workdir}/{STATE}", workdir, "a run without jobs", scratch, say):
        say("Forge: Snakemake had chosen its jobs before that. Give the same command again: it may find some to run.")
