"""The journal of a publication: its moves, written before the first of them and removed after the last.

::

    journal.json   what counts: its name appears when its content is on disk
    journal.copy   the same, in case journal.json is damaged later
    published.json what journal.json becomes if a later process has to know of it

Each file begins with the checksum of the rest. One that is cut or changed anywhere is never followed.

Of schema 2 (decision 0048), each move says what was at its place when the journal was written, and the journal where
it was written. Those of Forge before it, which a crash may have left, are read, too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import suppress
from typing import NamedTuple

from ..kernel.long_paths import reach
from ..record.jsonfile import parse, to_disk, write_file
from ..sandbox.filesystem.directories import remove_if_empty
from ..spec.file_policy import below
from ..spec.paths import STAGING, STAGING_ELSEWHERE
from .file_version import FileVersion, as_path, status_of

JOURNAL, COPY_OF_JOURNAL = "journal.json", "journal.copy"
PUBLISHED = "published.json"
"""The journal of what is published, where a later process has to know that."""

UNDECIDED = "undecided-"
"""Begins the names of directories whose journal is damaged: nobody but a person can say what is to become of them."""

_MOST_BYTES = 1 << 30
_SCHEMA = 2
_OF_DELETIONS = (".forge-trash-", ".forge-copy-")  # begin the names to which schema 1 brings what is deleted


class UndecidedError(OSError):
    """Nobody can say from a journal what is to become of its files. Nothing was changed, and all versions stay."""

    half = True
    """Whether the outputs may be half new and half old, so that no job must read them."""


class DamagedError(UndecidedError):
    """Neither file of a journal is whole, so that it is unknown which of its moves were made."""


class Move(NamedTuple):
    """One rename, from staging to a place, as a JSON list in files."""

    source: str
    place: str
    inode: int
    merge: bool = False  # other jobs may publish at the place, too; or a deletion
    base: int = 0  # with merge: the inode of what was at the place when that was decided; 0: nothing
    size: int = -1  # of a file to which the job has only appended, the bytes of what was there before
    is_deletion: bool = False  # from a place into staging, where it is removed
    was: FileVersion | None = None  # at the place when the journal was written, or of what is deleted; None: unknown

    @classmethod
    def from_json(cls, data: object) -> Move:
        """Read a move in a file.

        Raises:
            TypeError, ValueError: for anything else.
        """
        if not isinstance(data, list) or not 3 <= len(data) <= len(cls._fields):
            raise TypeError(f"{data!r:.100} is no move")
        *plain, was = data if len(data) == len(cls._fields) else (*data, None)
        kinds = (str, str, int, bool, int, int, bool)
        if any(type(value) is not kind for value, kind in zip(plain, kinds, strict=False)):
            raise TypeError(f"{data!r:.100} is no move")
        source, place, *more = plain
        found = cls(as_path(source), as_path(place), *more)
        return found if was is None else found._replace(was=FileVersion.from_json(was))

    @classmethod
    def of(cls, source: str, place: str) -> Move:
        """The move of an existing file."""
        return cls(source, place, reach(os.lstat, source).st_ino)

    def is_at(self, path: str) -> bool:
        """Whether the file of this move is at ``path``.

        Raises:
            OSError: if that cannot be found out.
        """
        found = status_of(path)
        return found is not None and found.st_ino == self.inode

    @property
    def is_beside(self) -> bool:
        """Whether the staged file is a copy of Forge's beside its place: what a job has written is never there."""
        return os.path.dirname(self.source) == os.path.dirname(self.place)


class Journal(NamedTuple):
    """The content."""

    moves: tuple[Move, ...]
    lock: str = ""  # the file of a lock that recovery takes; "": none
    noted: bool = False  # whether it stays as PUBLISHED
    directory: str = ""  # where it was written; "": unknown


def write(directory: str, journal: Journal, *, durable: bool = False) -> None:
    """Write or replace the journal in a directory; it is on disk when its name appears.

    Args:
        durable: whether its name is on disk, too, when this returns. On one file system it is before the renames that
            follow; on another one, these can be on disk before it.

    Raises:
        OSError: if that is not possible.
    """
    data = _encode(journal._replace(directory=directory))
    write_file(f"{directory}/{COPY_OF_JOURNAL}", data)  # not synced: it only matters if the other one is damaged
    path, temporary = f"{directory}/{JOURNAL}", f"{directory}/{JOURNAL}.new"
    write_file(temporary, data)
    to_disk(temporary)
    os.rename(temporary, path)
    if durable:
        to_disk(directory)


def read(directory: str) -> Journal | None:
    """Return the journal in a directory; None if there is none: then nothing was begun, or all is done.

    Raises:
        DamagedError: if it is damaged, and its copy as well.
        OSError: if it cannot be read.
    """
    if not exists(directory):
        return None
    problem: Exception | None = None
    for name in (JOURNAL, COPY_OF_JOURNAL):
        try:
            with open(f"{directory}/{name}", "rb") as file:
                return _decode(file.read(_MOST_BYTES))
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError) as error:
            problem = problem or error
    raise DamagedError(errno.EUCLEAN, f"the journal of a publication is damaged ({problem})", directory)


def exists(directory: str) -> bool:
    """Whether there is a journal in a directory."""
    return os.path.lexists(f"{directory}/{JOURNAL}")


def written_ns(directory: str) -> int:
    """The time at which the journal in a directory was written (mtime), by the clock of its file system.

    Raises:
        OSError: if it cannot be seen.
    """
    return os.lstat(f"{directory}/{JOURNAL}").st_mtime_ns


def located(directory: str, journal: Journal) -> Journal:
    """A journal with the paths that its files have now, if its working directory was moved since it was written.

    Raises:
        UndecidedError: if it was moved to where it cannot tell what became of its files.
    """
    parent, name = os.path.split(directory)
    here = f"{parent}/{name.removeprefix(UNDECIDED)}"
    old = journal.directory or _directory_of(journal.moves, os.path.basename(here)) or here
    if old == here or (os.path.exists(old) and os.path.samefile(old, directory)):
        return journal
    for tail in (f"/{sign}/{os.path.basename(here)}" for sign in (STAGING, STAGING_ELSEWHERE)):
        if old.endswith(tail) and here.endswith(tail):
            return _moved(journal, old.removesuffix(tail), here.removesuffix(tail))
    raise UndecidedError(errno.ESTALE, f"the journal of a publication was written in {old}", directory)


def _directory_of(moves: tuple[Move, ...], name: str) -> str:
    """The directory in which a journal of schema 1 was written, if its files lie beside it."""
    for move in moves:
        for sign in (STAGING, STAGING_ELSEWHERE):
            root, found, _ = (move.place if move.is_deletion else move.source).partition(f"/{sign}/{name}/")
            if found:
                return f"{root}/{sign}/{name}"
    return ""


def _moved(journal: Journal, old: str, new: str) -> Journal:
    def now(path: str) -> str:
        return new + path.removeprefix(old) if path and below(path, old) else path

    moves = (move._replace(source=now(move.source), place=now(move.place)) for move in journal.moves)
    return journal._replace(moves=tuple(moves), lock=now(journal.lock), directory=now(journal.directory))


def end(directory: str, *, noted: bool = False) -> None:
    """Remove the journal, or keep it as PUBLISHED; no error if there is none."""
    with suppress(FileNotFoundError):
        if noted:
            os.rename(f"{directory}/{JOURNAL}", f"{directory}/{PUBLISHED}")
        else:
            os.unlink(f"{directory}/{JOURNAL}")
    with suppress(FileNotFoundError):
        os.unlink(f"{directory}/{COPY_OF_JOURNAL}")
    if not noted:
        remove_if_empty(directory)


def set_aside(directory: str) -> str:
    """Rename a directory of staging, so that nothing but a person removes it, and return its new path.

    Raises:
        OSError: if that is not possible.
    """
    parent, name = os.path.split(directory)
    aside = f"{parent}/{UNDECIDED}{name}"
    os.rename(directory, aside)
    return aside


def undecided(staging: str) -> list[str]:
    """Return the directories that :func:`set_aside` has left in a directory of staging."""
    with suppress(OSError):
        return [f"{staging}/{name}" for name in sorted(os.listdir(staging)) if name.startswith(UNDECIDED)]
    return []


def _encode(journal: Journal) -> bytes:
    body = json.dumps({"schema": _SCHEMA, **journal._asdict()}).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _of_schema_1(move: Move) -> Move:
    """The move with what only the name at its place said: that it deletes."""
    return move._replace(is_deletion=move.is_deletion or os.path.basename(move.place).startswith(_OF_DELETIONS))


def _decode(data: bytes) -> Journal:
    checksum, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise ValueError("its checksum is another one" if data else "it is empty")
    found = parse(body.decode())
    lock, noted, directory = found["lock"], found["noted"], found.get("directory", "")
    if type(noted) is not bool:
        raise TypeError(f"{noted!r:.100}")
    schema, moves = found.get("schema", 1), tuple(map(Move.from_json, found["moves"]))
    if schema not in (1, _SCHEMA):
        raise ValueError("another version of Forge has written it")
    if schema == 1:
        moves = tuple(_of_schema_1(move) for move in moves)
    return Journal(moves, as_path(lock) if lock else "", noted, as_path(directory) if directory else "")
