"""Merging: what a job has done undeclared, made ready to be published together with its outputs.

One job of a working directory does this at a time, in whatever run and on whatever host: the lock is held from the
decision until all renames are made. Jobs that have only written their outputs do not take it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ..kernel.failpoints import reached
from ..kernel.long_paths import reach
from ..kernel.plain_paths import near
from ..kernel.tree import remove_tree
from ..sandbox.filesystem.directories import waited_lock
from ..spec.verdict import Harm
from .journal import Move
from .layer_files import append, remove_file
from .owners import entry_of, mark
from .publish import beside, near_place, remove_copies
from .scene import Scene
from .undeclared import Append, Decided, decide
from .writable import writable


class ContestedError(Exception):
    """Raised if an undeclared change of a job cannot be carried out."""

    def __init__(self, harms: Sequence[Harm]) -> None:
        """Name what cannot."""
        super().__init__(", ".join(f"{harm.path} ({harm.kind})" for harm in harms))
        self.harms = tuple(harms)


def lock_of(scene: Scene) -> str:
    """The file that whoever publishes undeclared files has locked."""
    return f"{scene.state}/publish.lock"


@contextmanager
def merging(scene: Scene) -> Iterator[Sequence[Move]]:
    """Decide what becomes of it and give the moves, while no other job publishes.

    Raises:
        ContestedError: if something cannot be carried out; nothing is changed then.
        OSError: if a file cannot be read, copied or noted.
    """
    with waited_lock(lock_of(scene)):
        decided = decide(scene)
        if decided.harms:
            raise ContestedError(decided.harms)
        reached("merging")
        ready: list[Move] = []
        try:
            for path in decided.dropped:
                if not stat.S_ISDIR(reach(os.lstat, path).st_mode):
                    remove_file(path)
                elif not remove_tree(path):
                    raise OSError(errno.EACCES, "it cannot be removed, and must not be published", path)
            for move in (*decided.moves, *map(_appended, decided.appends)):
                ready.append(near_place(move))  # noqa: PERF401 - if one fails, the copies before it are removed
            _note(scene, decided, ready)
            removals = [_on_one_file_system(move) for move in decided.removals]
            ready += removals
            with writable(ready):
                yield [*removals, *ready[: len(ready) - len(removals)]]
            for path, mode in reversed(decided.modes):  # those in a directory before it
                with suppress(FileNotFoundError), near(f"{path}/.") as short:  # if nothing was published in it
                    os.chmod(short, mode)
        finally:
            remove_copies(ready)


def _appended(found: Append) -> Move:
    """Append, in the layer, to what is at the place now."""
    now = reach(os.lstat, found.place)
    os.makedirs(os.path.dirname(found.result), exist_ok=True)
    with near(found.place) as short:
        append(found.source, found.size, short, found.result)
    inode = os.lstat(found.result).st_ino
    return Move(found.result, found.place, inode, merge=True, base=now.st_ino, size=now.st_size)


def _on_one_file_system(removal: Move) -> Move:
    """Move what is to be deleted beside its place, if its layer is elsewhere."""
    here, layer = reach(os.lstat, os.path.dirname(removal.source)), os.path.dirname(os.path.dirname(removal.place))
    if here.st_dev == os.stat(layer).st_dev:
        os.makedirs(os.path.dirname(removal.place), exist_ok=True)
        return removal
    return removal._replace(place=beside(removal.source, removal.inode))


def _note(scene: Scene, decided: Decided, moves: Sequence[Move]) -> None:
    """Note that this rule has made the files; those of other rules that it changes are its own from now on."""
    unmarked = mark(moves, scene.rule)
    proven = [entry_of(path, path) for path in decided.proven]
    scene.owners().note([*unmarked, *proven])
