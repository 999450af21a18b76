"""Forge: a Snakemake executor that runs every job contained and leaves a record of each.

This is the face that Snakemake looks for at every start: it must stay light and must never raise. Its parts are loaded
when they are asked for, so that the launcher and ``snakemake-forge`` can use this package without loading Snakemake.
"""

TYPE_CHECKING = False  # what typing defines: nothing is imported here before a process has chosen its import path
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


def __getattr__(name: str) -> "Any":
    """Load a part of the face: PEP 562."""
    if name in ("Executor", "common_settings"):
        from .plugin import executor

        return getattr(executor, name)
    if name == "ExecutorSettings":
        from .plugin.chosen import ChosenSettings

        return ChosenSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
