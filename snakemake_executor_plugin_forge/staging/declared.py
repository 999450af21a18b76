"""The outputs, logs and benchmark files that the DAG of a run declares: they belong to the jobs of their rules alone.

One file in the directory of the run has all of them, written when the DAG is known. Its lines are sorted, so a question
reads a few of its pages, however large the DAG is. A supervisor opens it only if its job has done something undeclared.
"""

from __future__ import annotations

import enum
import json
import mmap
import os
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from typing import NamedTuple

from ..record.jsonfile import replace_file
from ..spec.verdict import Owner

DECLARED = "declared"
"""The name of the file in the directory of a run."""


class DeclaredKind(enum.Enum):
    """The kinds of declared files: a letter in the file, and words."""

    FILE = "f", "an output"
    DIRECTORY = "d", "an output"
    LOG = "l", "the log"
    BENCHMARK = "b", "the benchmark file"


class Declaration(NamedTuple):
    """A file that a job declares, or a rule without one."""

    path: str  # absolute, no link in its directory; "\\0" for a rule alone
    rule: str
    kind: DeclaredKind = DeclaredKind.FILE


_KINDS = {kind.value[0]: kind for kind in DeclaredKind}


def write(path: str, declarations: Iterable[Declaration]) -> None:
    """Write the file, or replace it.

    Raises:
        OSError: if it cannot be written.
    """
    lines = {_line(found) for found in declarations}
    replace_file(path, "".join(sorted(lines)))


def _line(found: Declaration) -> str:
    return f"{_escaped(found.path)}\t{_escaped(found.rule)}\t{found.kind.value[0]}\n"


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]  # ASCII without tab and newline; character by character, so that prefixes stay


class Declared:
    """The declarations of a run, as they are when the first is needed; none if the file is missing."""

    def __init__(self, path: str) -> None:
        """Open nothing yet."""
        self._path = path
        self._found_around: dict[str, tuple[Owner, ...]] = {}
        self.has_below = cache(self._has_below)

    def at(self, path: str) -> tuple[Owner, ...]:
        """The rules that declare just this path."""
        return tuple(owner for owner, _ in self._at(path))

    def knows(self, rule: str) -> bool:
        """Whether the workflow has such a rule."""
        return any(found.rule == rule for found, _ in self._at("\0"))

    def around(self, directory: str) -> tuple[Owner, ...]:
        """The rules that declare the directory, or one around it, with ``directory()``."""
        passed: list[str] = []
        while directory not in self._found_around:
            passed.append(directory)
            found = tuple(owner for owner, kind in self._at(directory) if kind is DeclaredKind.DIRECTORY)
            if found or directory == "/":
                self._found_around[directory] = found
                break
            directory = os.path.dirname(directory)
        owners = self._found_around[directory]
        self._found_around.update(dict.fromkeys(passed, owners))
        return owners

    def _has_below(self, directory: str) -> bool:
        """Whether anything in a directory is declared."""
        return next(self._beginning(f"{directory.rstrip('/')}/"), None) is not None

    def _at(self, path: str) -> Iterator[tuple[Owner, DeclaredKind]]:
        for _, rule, letter in self._beginning(path, "\t"):
            kind = _KINDS[letter]
            yield Owner(rule, kind.value[1]), kind

    def _beginning(self, path: str, end: str = "") -> Iterator[tuple[str, str, str]]:
        """Yield the declarations whose path begins so: with a tab at the end, only those of the path itself."""
        data, start = self._data, f"{_escaped(path)}{end}".encode("ascii")
        low, high = 0, len(data)
        while low < high:
            middle = (low + high) // 2
            begin, stop = data.rfind(b"\n", low, middle) + 1 or low, data.find(b"\n", middle)
            low, high = (stop + 1, high) if data[begin:stop] < start else (low, begin)
        while data[low : low + len(start)] == start and low < len(data):
            stop = data.find(b"\n", low)
            place, rule, kind = data[low:stop].decode("ascii").split("\t")
            yield place, json.loads(f'"{rule}"'), kind
            low = stop + 1

    @cached_property
    def _data(self) -> mmap.mmap | bytes:
        try:
            with open(self._path, "rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # none, or an empty one
            return b""
