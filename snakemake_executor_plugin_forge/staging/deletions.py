"""The part to delete of a directory that a job has deleted or made again: the whole, or all that need not stay."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..kernel.tree import Directory, walk


class Rules(Protocol):
    """The rules by which files stay."""

    def has_to_stay(self, directory: str) -> bool:
        """Whether outputs belong into a directory."""

    def may_enter(self, path: str) -> bool:
        """Whether anything in a directory may be deleted."""

    def is_removable(self, path: str, now: os.stat_result) -> bool:
        """Whether a file may be deleted."""


@dataclass(slots=True)
class _Level:
    inode: int
    whole: bool = True
    removable: list[tuple[str, int]] = field(default_factory=list)


def removable(path: str, inode: int, keep: frozenset[str] | None, rules: Rules) -> Iterator[tuple[str, int]]:
    """Yield files, and directories of which nothing has to stay, each with its inode.

    Args:
        path: a directory.
        inode: its inode.
        keep: names in it that the job has made again, like the directory itself; None: it has deleted the directory.
        rules: by which files stay.

    Raises:
        OSError: if a directory cannot be read.
    """
    levels: list[_Level] = []
    for here in walk(path, leave=True):
        if not here.left:
            levels.append(_level(here, levels, keep, rules))
            continue
        level = levels.pop()
        if not level.whole:
            yield from level.removable
            if levels:
                levels[-1].whole = False
        elif levels:
            levels[-1].removable.append((here.path, level.inode))
        else:
            yield path, inode


def _level(here: Directory, around: Sequence[_Level], keep: frozenset[str] | None, rules: Rules) -> _Level:
    """Decide on a directory and the files in it; nothing below it is reached if all of it has to stay."""
    path = here.path
    level = _Level(os.fstat(here.fd).st_ino, whole=not rules.has_to_stay(path))
    if not around and keep is not None:
        level.whole = False
        here.directories[:] = [name for name in here.directories if name not in keep]
        here.files[:] = [name for name in here.files if name not in keep]
    elif around and not rules.may_enter(path):
        level.whole = False
        here.directories.clear()
        return level
    for name in sorted(here.files):
        status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
        if rules.is_removable(f"{path}/{name}", status):
            level.removable.append((f"{path}/{name}", status.st_ino))
        else:
            level.whole = False
    return level


def files_below(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield all in a directory that is no directory."""
    for here in walk(directory):
        for name in here.files:
            yield f"{here.path}/{name}", os.stat(name, dir_fd=here.fd, follow_symlinks=False)
