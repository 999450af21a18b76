"""Recovery: completing a publication whose process was killed between its renames.

::

    recover ──► look at both ends of each move ──► decide ──► all that is left to do is done
                                                        └──► ChangedError, UndecidedError: nothing is

Since the crash, anybody may have made the same files again: a run with another executor or on another host, a user by
hand. Whatever is at a place now and was not when the journal was written is newer than what the journal would bring.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from ..kernel.failpoints import reached
from ..kernel.long_paths import reach
from ..kernel.plain_paths import Places, near
from ..kernel.tree import copy, copy_tree, remove_tree
from ..sandbox.filesystem.directories import waited_lock
from ..spec.paths import STATE
from ..spec.printable import few
from . import journal
from .confines import Confines
from .file_version import NOTHING, FileVersion, status_of
from .journal import Journal, Move, UndecidedError
from .layer_files import append
from .publish import carry_out, remove_copies, settle
from .writable import writable

_KEPT = "kept-"


class ChangedError(UndecidedError):
    """Somebody has made outputs again since the crash. Theirs stay, and those of the journal are kept aside."""

    def __init__(self, places: Sequence[str], directory: str, *, half: bool) -> None:
        """Name the outputs, and the directory of the journal.

        Args:
            half: whether others of its outputs are still, or already, those of the journal.
        """
        super().__init__(errno.EEXIST, f"another version has been made meanwhile of {few(places)}", directory)
        self.half = half


class AtSource(enum.Enum):
    """The sorts of files where one was staged."""

    NEW = "the file that was to be published"
    OLD = "what was at its place: they were exchanged"
    GONE = "nothing"
    OTHER = "something else"


class AtPlace(enum.Enum):
    """The sorts of files at a place."""

    NEW = "the file that was to be published"
    OLD = "what was there when the journal was written"
    ABSENT = "nothing"
    OTHER = "something else"


class Sort(enum.Enum):
    """The sorts of moves."""

    OUTPUT = "of an output, which nobody else has at its place"
    FILE = "undeclared: the last one wins"
    DIRECTORY = "undeclared, and a directory is there now as well: both are merged"
    APPEND = "of a file to which others may append, too"


class Fate(enum.Enum):
    """The decisions of recovery about a move."""

    DONE = "it was made"
    FOLLOW = "it is made now"
    SPARE = "what is there now is later, and stays"
    CHANGED = "what is there now is later, and the output was to be published with others"
    UNKNOWN = "nobody can tell"


def fate(sort: Sort, source: AtSource, place: AtPlace) -> Fate:
    """Decide on a move from what is at both of its ends. Pure."""
    match source, place:
        case AtSource.NEW, AtPlace.OTHER:
            return {Sort.OUTPUT: Fate.CHANGED, Sort.FILE: Fate.SPARE}.get(sort, Fate.FOLLOW)
        case AtSource.NEW, _:
            return Fate.FOLLOW
        case _, AtPlace.NEW:
            return Fate.DONE
        case AtSource.OTHER, _:
            return Fate.UNKNOWN
        case _, AtPlace.OLD:  # an exchange leaves it at the source, and a rename finds nothing
            return Fate.UNKNOWN
        case _:
            return Fate.DONE  # and since then, somebody has removed or replaced it


class _Looked(NamedTuple):
    move: Move  # with what was at its place
    fate: Fate
    is_new: bool  # whether its file is at its place


def recover(directory: str, confines: Confines | None) -> list[str]:
    """Complete the publication whose journal is in ``directory``, if there is one.

    The process that wrote the journal must be dead, and no other one may recover meanwhile: :func:`recovering`.

    Args:
        confines: of its moves; None: it may name any file.

    Returns:
        The places that the journal names.

    Raises:
        ChangedError: if somebody has made outputs again since; nothing was changed.
        UndecidedError: if the journal is damaged, forged, or of other files; nothing was changed.
        OSError: if the publication cannot be completed.
    """
    written = journal.read(directory)
    if written is None:
        return []
    found = journal.located(directory, written)
    if confines is not None:
        confines.check(directory, found)
    lock = waited_lock(found.lock) if found.lock else nullcontext()
    with lock, writable(found.moves), Places() as places:
        written_ns = journal.written_ns(directory)
        seen = [_look(move, written_ns, is_moved=found is not written) for move in found.moves]
        _refuse(seen, directory, found)
        reached("decided")
        moves = [one.move for one in seen]
        for number, one in enumerate(seen):
            if one.fate is Fate.FOLLOW:
                moves[number] = _renewed(one.move)
                if moves[number] != one.move:
                    journal.write(directory, found._replace(moves=tuple(moves)))
                    reached("renewed")
                carry_out(moves[number], places, spare=True)
                reached("followed")
        settle(moves)
        reached("all followed")
        journal.end(directory, noted=found.noted)
    remove_copies(moves)
    return [one.move.place for one in seen if not one.move.is_deletion and one.fate is not Fate.SPARE]


@contextmanager
def recovering(workdir: str, directories: Sequence[str]) -> Iterator[None]:
    """Have one process at a time recover in a working directory, from reading a journal to removing its files.

    Args:
        directories: the journal's, and others with its files; all are set aside if it cannot be decided.

    Raises:
        UndecidedError: as the body; its file name is where the journal is now.
    """
    with waited_lock(f"{workdir}/{STATE}/recovery.lock"):
        try:
            yield
        except UndecidedError as error:
            aside = {path: journal.set_aside(path) for path in directories if os.path.exists(path)}
            error.filename = aside.get(error.filename, error.filename)
            raise


def _look(move: Move, written_ns: int, *, is_moved: bool) -> _Looked:
    """See what is at both ends of a move.

    Args:
        written_ns: when its journal was written.
        is_moved: whether its directory was moved, or copied: then all inodes are other ones.

    Raises:
        OSError: if that cannot be found out.
    """
    source, place = status_of(move.source), status_of(move.place)
    if move.is_deletion:
        move = _with_was(move, source, written_ns)
        is_there = source is not None and FileVersion.of(source) == move.was
        return _Looked(move, Fate.FOLLOW if is_there else Fate.DONE, is_new=False)
    if move.was is None and source is not None and source.st_ino != move.inode and not is_moved:
        move = move._replace(was=FileVersion.of(source))  # they were exchanged
    move = _with_was(move, place, written_ns)
    assert move.was is not None
    if source is None:
        at_source = AtSource.GONE
    elif source.st_ino == move.inode:
        at_source = AtSource.NEW
    else:
        at_source = AtSource.OLD if source.st_ino == move.was.inode else AtSource.OTHER
    if place is None:
        at_place = AtPlace.ABSENT
    elif place.st_ino == move.inode:
        at_place = AtPlace.NEW
    else:
        at_place = AtPlace.OLD if FileVersion.of(place) == move.was else AtPlace.OTHER
    return _Looked(move, fate(_sort(move, source, place), at_source, at_place), at_place is AtPlace.NEW)


def _with_was(move: Move, now: os.stat_result | None, written_ns: int) -> Move:
    """Add what was there, if a journal of schema 1 does not say it: what has not been changed since (ctime)."""
    if move.was is not None:
        return move
    is_older = now is not None and now.st_ctime_ns <= written_ns
    return move._replace(was=FileVersion.of(now) if now is not None and is_older else NOTHING)


def _sort(move: Move, source: os.stat_result | None, place: os.stat_result | None) -> Sort:
    if not move.merge:
        return Sort.OUTPUT
    if place is not None and stat.S_ISREG(place.st_mode) and move.size >= 0:
        return Sort.APPEND
    both = source is not None and place is not None and stat.S_ISDIR(source.st_mode) and stat.S_ISDIR(place.st_mode)
    return Sort.DIRECTORY if both else Sort.FILE


def _refuse(seen: Sequence[_Looked], directory: str, found: Journal) -> None:
    """Leave all as it is, if anything is as nobody can have foreseen it."""
    unknown = [one.move.place for one in seen if one.fate is Fate.UNKNOWN]
    changed = [one.move.place for one in seen if one.fate is Fate.CHANGED]
    if unknown or changed:
        moves = tuple(_kept(directory, number, one) for number, one in enumerate(seen))
        if moves != found.moves:
            journal.write(directory, found._replace(moves=moves))
    if unknown:
        said = f"the files of an interrupted publication are not those that its journal names, as of {few(unknown)}"
        raise UndecidedError(errno.ESTALE, said, directory)
    if changed:
        outputs = [one for one in seen if not one.move.merge]
        replaced = all(one.fate is Fate.CHANGED or (one.fate is Fate.DONE and not one.is_new) for one in outputs)
        raise ChangedError(changed, directory, half=not replaced)


def _kept(directory: str, number: int, one: _Looked) -> Move:
    """Bring a copy that is beside its place, and that others would remove, to the rest of what is kept."""
    move = one.move
    if one.fate is Fate.DONE or move.is_deletion or not move.is_beside:
        return move
    kept = f"{directory}/{_KEPT}{number}"
    with near(move.source) as short:
        try:
            os.rename(short, kept)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            (copy_tree if os.path.isdir(short) and not os.path.islink(short) else copy)(short, kept)
            remove_tree(short)
    return move._replace(source=kept, inode=os.lstat(kept).st_ino)


def _renewed(move: Move) -> Move:
    """The move of a file to which others have appended since, with what they have appended; else the same move."""
    now = status_of(move.place) if move.size >= 0 else None
    if now is None or FileVersion.of(now) == move.was or not stat.S_ISREG(now.st_mode):
        return move
    again = f"{move.source}.again"
    with near(move.place) as short:
        append(move.source, move.size, short, again)
    inode = reach(os.lstat, again).st_ino
    return move._replace(source=again, inode=inode, base=now.st_ino, size=now.st_size, was=FileVersion.of(now))
