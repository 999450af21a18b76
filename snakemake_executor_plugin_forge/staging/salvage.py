"""Files that a job wrote in vain, kept in its job directory under numbers, with an index.

No pattern of a workflow or of a tool shall find them: ``glob_wildcards("{path}/{sample}.bam")`` searches hidden
directories too. So each file has a number for a name, whatever directory it was in, and ``index`` says its real one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from ..kernel.long_paths import reach
from ..kernel.tree import walk
from ..record.jsonfile import write_file
from ..sandbox.filesystem.overlay import Layer
from ..spec.job import Files
from ..spec.paths import STAGING_ELSEWHERE
from ..spec.printable import printable

INCOMPLETE, UNDECLARED, INDEX = "incomplete", "undeclared", "index"
MOST_BYTES, MOST_FILES = 64 << 20, 100
"""Bounds on the undeclared files of one attempt. The smallest are kept: logs rather than core dumps."""


@dataclass(frozen=True, slots=True)
class Salvaged:
    """The files that were kept, in the order of their numbers, and those that were too many."""

    directory: str
    places: tuple[str, ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()  # the largest first, each with its size in bytes


def keep(
    found: Iterable[tuple[str, str]], directory: str, most_bytes: float = inf, most_files: float = inf
) -> Salvaged:
    """Move files, and those in directories, to numbers in a directory.

    Args:
        found: where each is, and what place it was written for.
        directory: is made if there is something to keep.
        most_bytes: of all files together.
        most_files: their number.

    Raises:
        OSError: if one cannot be moved.
    """
    import shutil  # few jobs need it, and every fork copies the mappings of its libraries

    files = sorted((reach(os.lstat, source).st_size, source, place) for source, place in _files(found))
    kept: list[str] = []
    left_out: list[tuple[str, int]] = []
    total = 0
    for size, source, place in files:
        total += size
        if total > most_bytes or len(kept) >= most_files:
            left_out.append((place, size))
            continue
        os.makedirs(directory, exist_ok=True)
        mode = reach(os.lstat, source).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            reach(os.chmod, source, mode=stat.S_IMODE(mode) & 0o777)
        reach(shutil.move, source, f"{directory}/{len(kept) + 1}")
        kept.append(place)
    if kept:
        lines = (f"{number}\t{printable(place)}\n" for number, place in enumerate(kept, 1))
        write_file(f"{directory}/{INDEX}", "".join(lines))
    return Salvaged(directory, tuple(kept), tuple(reversed(left_out)))


def _files(found: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for source, place in found:
        mode = reach(os.lstat, source).st_mode
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            yield source, place
        for here in walk(source, open_up=True, lasting=True, quiet=True) if stat.S_ISDIR(mode) else ():
            for name in here.files:
                mode = os.stat(name, dir_fd=here.fd, follow_symlinks=False).st_mode
                if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                    path = f"{here.path}/{name}"
                    yield path, place + path.removeprefix(source)


def undeclared(files: Files, layers: Sequence[Layer]) -> Iterator[tuple[str, str]]:
    """Yield the files that a job has written beside its outputs: where each is in a layer, and its place.

    Args:
        files: of the job.
        layers: those over the directories of its outputs.
    """
    others = {target.path for target in files.targets} | {*files.inputs, *files.visible}
    for layer in layers:
        others.add(f"{layer.root}/.snakemake")
    for layer in layers:
        for here in walk(layer.upper, open_up=True, lasting=True, quiet=True):
            place = layer.root + here.path.removeprefix(layer.upper)
            here.directories[:] = [
                n for n in here.directories if f"{place}/{n}" not in others and n != STAGING_ELSEWHERE
            ]
            for name in here.files:
                if f"{place}/{name}" not in others and not _is_unchanged(here.near(name), f"{place}/{name}"):
                    yield f"{here.path}/{name}", f"{place}/{name}"


def _is_unchanged(path: str, place: str) -> bool:
    """Return whether a file in a layer is only a copy of what is at its place: the overlay keeps its times."""
    here = os.lstat(path)
    try:
        there = reach(os.lstat, place)
    except OSError:
        return False
    return (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)
