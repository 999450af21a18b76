"""The progress of a run above which no message is lost: ``snakemake --logger forge``, with any executor.

Snakemake imports this face at every start: its parts are loaded when they are asked for.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["LogHandler", "LogHandlerSettings"]


def __getattr__(name: str) -> "Any":
    """Load a part of the face: PEP 562."""
    if name in __all__:
        from . import handler

        return getattr(handler, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
