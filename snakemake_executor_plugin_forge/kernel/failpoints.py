"""Named steps of Forge's own processes, at which a test can kill one of them.

``FORGE_FAILPOINTS`` in the environment names a Python file with a function ``open_hook`` that returns a :class:`Hook`.
Each process loads it once, by its path: the launcher has no site-packages. Without the variable the calls do nothing.
"""

from __future__ import annotations

import os
from typing import Protocol


class Hook(Protocol):
    """An observer of steps."""

    def __call__(self, step: str, rule: str | None = None, /) -> None:
        """Note that this process has reached ``step`` of a job of ``rule`` (None: the rule of :meth:`begin`)."""

    def begin(self, rule: str) -> None:
        """Note the rule whose job this process has in hand."""


class _Nothing:
    def __call__(self, step: str, rule: str | None = None, /) -> None: ...

    def begin(self, rule: str) -> None: ...


def _load() -> Hook:
    path = os.environ.get("FORGE_FAILPOINTS")
    if not path:
        return _Nothing()
    import runpy

    hook: Hook = runpy.run_path(path)["open_hook"]()
    return hook


reached: Hook = _load()
