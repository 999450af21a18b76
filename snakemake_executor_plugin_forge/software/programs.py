"""Checks whether the programs of an environment can start: shared libraries, and interpreters of scripts.

The check runs no program of the environment, only the system's loader by ldd(1).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress

from ..kernel.tree import walk
from .damage import Damage, Problem

_BATCH = 100
_MISSING = re.compile(r"^\s+(?P<library>\S+) => not found", re.MULTILINE)


def broken(prefix: str) -> Iterator[Problem]:
    """Programs and libraries of an environment that cannot be loaded."""
    scripts, binaries, names = _sort(prefix)
    for path, interpreter in scripts:
        if not os.path.exists(interpreter):
            yield Problem(path, Damage.INTERPRETER, interpreter)
    if shutil.which("ldd") is None:
        return
    for start in range(0, len(binaries), _BATCH):
        for path, library in _missing_libraries(binaries[start : start + _BATCH]):
            # A library may be found by way of the program that loads it, which ldd cannot know.
            if library not in names:
                yield Problem(path, Damage.LIBRARY, library)


def _sort(prefix: str) -> tuple[list[tuple[str, str]], list[str], set[str]]:
    """Scripts with their interpreters, binaries, and the names of all files."""
    scripts: list[tuple[str, str]] = []
    binaries: list[str] = []
    names: set[str] = set()
    for here in walk(prefix, quiet=True, through_link=True):
        directory = here.path
        names.update(here.files)
        for name in here.files:
            path = f"{directory}/{name}"
            if os.path.islink(path) or not (directory == f"{prefix}/bin" or ".so" in name):
                continue
            start = _start_of(path)
            if start.startswith(b"#!/"):
                scripts.append((path, start[2:].split()[0].decode("utf-8", "surrogateescape")))
            elif start.startswith(b"\x7fELF"):
                binaries.append(path)
    return scripts, binaries, names


def _start_of(path: str) -> bytes:
    with suppress(OSError), open(path, "rb") as file:
        return file.readline(4096)
    return b""


def _missing_libraries(binaries: list[str]) -> Iterator[tuple[str, str]]:
    done = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False, errors="replace")
    path = binaries[0]
    for line in done.stdout.splitlines():
        if not line.startswith((" ", "\t")):
            path = line.removesuffix(":")
        elif (match := _MISSING.match(line)) is not None:
            yield path, match["library"]
