"""Symbolic links on the way to a job's files: where they lead must be as visible as they are themselves."""

from __future__ import annotations

import os
from collections.abc import Iterable

_PATIENCE = 40  # as the kernel's: path_resolution(7)


class Links:
    """Follows links, and remembers those among directories: the files of a run lie in few of them."""

    def __init__(self, workdir: str) -> None:
        self._workdir = workdir
        self._directories: dict[str, tuple[str, ...]] = {}

    def targets(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Where the links on the way to ``paths`` lead, as whole paths; none for paths without links."""
        found: list[str] = []
        for path in paths:
            whole = path if path.startswith("/") else f"{self._workdir}/{path}"
            found += self._rewritten(whole, _PATIENCE)[1:]
        return tuple(found)

    def place(self, path: str) -> str:
        """The same without links in its directory: where a file of that name is made or replaced."""
        whole = os.path.normpath(path if path.startswith("/") else f"{self._workdir}/{path}")
        parent, _, name = whole.rpartition("/")
        return f"{self._directory(parent, _PATIENCE)[-1]}/{name}"

    def real(self, path: str) -> str:
        """The same without any links."""
        whole = os.path.normpath(path if path.startswith("/") else f"{self._workdir}/{path}")
        return self._rewritten(whole, _PATIENCE)[-1]

    def _rewritten(self, path: str, patience: int) -> list[str]:
        """``path``, and then what each link makes of it; the last one is without links."""
        parent, _, name = path.rpartition("/")
        found = [f"{directory}/{name}" for directory in self._directory(parent, patience)]
        try:
            target = os.readlink(found[-1])
        except OSError:  # no link, or nothing there yet
            return found
        if patience == 0:
            return found
        return found + self._rewritten(os.path.join(os.path.dirname(found[-1]), target), patience - 1)

    def _directory(self, path: str, patience: int) -> tuple[str, ...]:
        """The same of a directory; the root is the empty string."""
        known = self._directories.get(path)
        if known is not None:
            return known
        whole = os.path.normpath(path or "/")
        steps = [] if whole in ("/", "//") else self._rewritten(whole, patience)
        found = tuple(step.rstrip("/") for step in steps) or ("",)
        if os.path.isdir(whole):  # else it is still to be made, and may become a link
            self._directories[path] = found
        return found
