"""The journal of a publication: its moves, written before the first of them and removed after the last.

::

    journal.json   what counts: its name appears when its content is on disk
    journal.copy   the same, in case journal.json is damaged later
    published.json what journal.json becomes if a later process has to know of it

Each file begins with the checksum of the rest. One that is cut or changed anywhere is never followed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import suppress
from typing import NamedTuple

from ..kernel.long_paths import reach
from ..record.jsonfile import parse, write_file
from ..sandbox.filesystem.directories import remove_if_empty
from .file_version import as_path, file_version

JOURNAL, COPY_OF_JOURNAL = "journal.json", "journal.copy"
PUBLISHED = "published.json"
"""The journal of what is published, where a later process has to know that."""

UNDECIDED = "undecided-"
"""Begins the names of directories whose journal is damaged: nobody but a person can say what is to become of them."""

_MOST_BYTES = 1 << 30


class UndecidedError(OSError):
    """Neither file of a journal is whole, so that it is unknown which of its moves were made. Both versions stay."""


class Move(NamedTuple):
    """One rename, from staging to a place, as a JSON list in files."""

    source: str
    place: str
    inode: int
    merge: bool = False  # other jobs may publish at the place, too; or a deletion
    base: int = 0  # with merge: the inode of what was at the place when that was decided; 0: nothing
    size: int = -1  # of a file to which the job has only appended, the bytes of what was there before
    is_deletion: bool = False  # from a place into staging, where it is removed

    @classmethod
    def from_json(cls, data: object) -> Move:
        """Read a move in a file.

        Raises:
            TypeError, ValueError: for anything else.
        """
        if not isinstance(data, list) or not 3 <= len(data) <= len(cls._fields):
            raise TypeError(f"{data!r:.100} is no move")
        kinds = (str, str, int, bool, int, int, bool)
        if any(type(value) is not kind for value, kind in zip(data, kinds, strict=False)):
            raise TypeError(f"{data!r:.100} is no move")
        source, place, *more = data
        return cls(as_path(source), as_path(place), *more)

    @classmethod
    def of(cls, source: str, place: str) -> Move:
        """The move of an existing file."""
        return cls(source, place, reach(os.lstat, source).st_ino)

    def is_at(self, path: str) -> bool:
        """Whether the file of this move is at ``path``."""
        found = file_version(path)
        return found is not None and found.inode == self.inode

    @property
    def is_beside(self) -> bool:
        """Whether the staged file is a copy of Forge's beside its place: what a job has written is never there."""
        return os.path.dirname(self.source) == os.path.dirname(self.place)

    def is_done(self) -> bool:
        """Whether this rename has been made."""
        return not self.is_at(self.source)  # what is at the place may have been replaced or removed since


class Journal(NamedTuple):
    """The content."""

    moves: tuple[Move, ...]
    lock: str = ""  # the file of a lock that recovery takes; "": none
    noted: bool = False  # whether it stays as PUBLISHED


def write(directory: str, journal: Journal) -> None:
    """Write or replace the journal in a directory; it is on disk when its name appears.

    Raises:
        OSError: if that is not possible.
    """
    data = _encode(journal)
    write_file(f"{directory}/{COPY_OF_JOURNAL}", data)  # not synced: it only matters if the other one is damaged
    path, temporary = f"{directory}/{JOURNAL}", f"{directory}/{JOURNAL}.new"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def read(directory: str) -> Journal | None:
    """Return the journal in a directory; None if there is none: then nothing was begun, or all is done.

    Raises:
        UndecidedError: if it is damaged, and its copy as well.
        OSError: if it cannot be read.
    """
    if not os.path.lexists(f"{directory}/{JOURNAL}"):
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
    raise UndecidedError(errno.EUCLEAN, f"the journal of what was to be published is damaged ({problem})", directory)


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
    body = json.dumps(journal._asdict()).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _decode(data: bytes) -> Journal:
    checksum, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise ValueError("its checksum is another one" if data else "it is empty")
    found = parse(body.decode())
    lock, noted = found["lock"], found["noted"]
    if type(noted) is not bool:
        raise TypeError(f"{noted!r:.100}")
    return Journal(tuple(map(Move.from_json, found["moves"])), as_path(lock) if lock else "", noted)
