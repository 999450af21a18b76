"""Forge's scheduler: ``snakemake --scheduler forge``, with any executor.

This is the face that Snakemake looks for at every start: it must stay light and must never raise.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Scheduler"]


def __getattr__(name: str) -> "Any":
    """Load a part of the face: PEP 562."""
    if name == "Scheduler":
        from .scheduler import Scheduler

        return Scheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
