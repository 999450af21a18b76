"""Symbolic links on the way to a job's files: their targets must be as visible as the links."""

from __future__ import annotations

import os
from collections.abc import Iterable

_PATIENCE = 40  # as many links as the kernel follows: path_resolution(7)


class Links:
    """Follows links, and remembers where links to directories lead: the files of a run lie in few directories."""

    def __init__(self, workdir: str) -> None:
        self._workdir = workdir
        self._directories: dict[str, tuple[str, ...]] = {}

    def targets(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Targets of the links on the way to ``paths``, as whole paths; empty for paths without links."""
        found: list[str] = []
        for path in paths:
            whole = path if path.startswith("/") else f"{self._workdir}/{path}"
            found += self._rewritten(whole, _PATIENCE)[1:]
        return tuple(found)

    def targets_on_the_way(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Targets of the links in the directories of outputs: an output that is a link itself is replaced."""
        found: list[str] = []
        for path in paths:
            parent, _, name = (path if path.startswith("/") else f"{self._workdir}/{path}").rpartition("/")
            found += (f"{directory}/{name}" for directory in self._directory(parent, _PATIENCE)[1:])
        return tuple(found)

    def links(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The links themselves on the way to ``paths``, as whole paths without other links before them."""
        found: dict[str, None] = {}
        for path in paths:
            whole = path if path.startswith("/") else f"{self._workdir}/{path}"
            steps = self._rewritten(whole, _PATIENCE)
            for step in steps if len(steps) > 1 else ():
                parts = step.split("/")
                places = ("/".join(parts[: number + 1]) for number in range(1, len(parts)))
                found.update((self.place(place), None) for place in places if os.path.islink(place))
        return tuple(found)

    def place(self, path: str) -> str:
        """Resolve the links in the directory of ``path``: the place at which a program makes or replaces the file."""
        whole = os.path.normpath(path if path.startswith("/") else f"{self._workdir}/{path}")
        parent, _, name = whole.rpartition("/")
        return f"{self._directory(parent, _PATIENCE)[-1]}/{name}"

    def real(self, path: str) -> str:
        """Resolve all links of ``path``."""
        whole = os.path.normpath(path if path.startswith("/") else f"{self._workdir}/{path}")
        return self._rewritten(whole, _PATIENCE)[-1]

    def _rewritten(self, path: str, patience: int) -> list[str]:
        """``path``, and then the path after each link; the last one is without links."""
        parent, _, name = path.rpartition("/")
        found = [f"{directory}/{name}" for directory in self._directory(parent, patience)]
        try:
            target = os.readlink(found[-1])
        except OSError:  # no link, or no such file yet
            return found
        if patience == 0:
            return found
        return found + self._rewritten(os.path.join(os.path.dirname(found[-1]), target), patience - 1)

    def _directory(self, path: str, patience: int) -> tuple[str, ...]:
        """The paths of :meth:`_rewritten` for a directory; the root is the empty string."""
        known = self._directories.get(path)
        if known is not None:
            return known
        whole = os.path.normpath(path or "/")
        steps = [] if whole in ("/", "//") else self._rewritten(whole, patience)
        found = tuple(step.rstrip("/") for step in steps) or ("",)
        if os.path.isdir(whole):  # else it does not exist yet, and may become a link
            self._directories[path] = found
        return found
