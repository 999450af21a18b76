"""Comparisons of file contents: whether two are equal, and which common parts a job may not know."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from ..kernel.long_paths import reach
from ..sandbox.filesystem.directories import attribute
from .git_index import is_refreshed_index
from .owners import MARK

MODES = 0o1777  # of a mode: what chmod(1) in a job means; set-user-ID bits are not published
_CHUNK = 1 << 20
_SQLITE = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat2.html
_DELIMITERS = (b"\t", b",", b";")


def is_equal(one: str, other: str, first: os.stat_result, second: os.stat_result) -> bool:
    """Return whether two files or links are the same but for their times."""
    if stat.S_ISLNK(first.st_mode) and stat.S_ISLNK(second.st_mode):
        return os.readlink(one) == os.readlink(other)
    same_kind = stat.S_ISREG(first.st_mode) and stat.S_ISREG(second.st_mode)
    if not same_kind or first.st_size != second.st_size or (first.st_mode ^ second.st_mode) & MODES:
        return False
    try:
        with open(one, "rb", buffering=0) as left, open(other, "rb", buffering=0) as right:
            while chunk := left.read(_CHUNK):
                if chunk != right.read(_CHUNK):
                    return False
    except PermissionError:
        return False
    return True


def is_changed_under_locks(upper: str, path: str) -> bool:
    """Return whether programs change a file with a lock only: a database of SQLite, or what git calls a reference."""
    name = path.partition("/.git/")[2]
    if name.startswith(("refs/", "HEAD", "packed-refs", "index")):  # gitrepository-layout(5)
        return not is_refreshed_index(upper, path)
    return reach(os.path.isfile, upper) and _head(upper, len(_SQLITE)) == _SQLITE


def has_header_of(one: str, other: str) -> bool:
    """Return whether two tables have the same first line, and the first one another line of as many fields."""
    header, _, rest = _head(one, _CHUNK).partition(b"\n")
    line = rest.partition(b"\n")[0]
    if header in (b"", line) or header != _head(other, _CHUNK).partition(b"\n")[0]:
        return False
    return any(header.count(delimiter) == line.count(delimiter) > 0 for delimiter in _DELIMITERS)


def begin_alike(one: str, other: str, size: int) -> bool:
    """Return whether the first bytes of two files are equal (of at most 1 MiB)."""
    return _head(one, size) == _head(other, size) != b""


def _head(path: str, size: int) -> bytes:
    """Return the first bytes of a file; none if its mode denies them to its owner."""
    with suppress(PermissionError), reach(open, path, mode="rb") as file:
        head: bytes = file.read(min(size, _CHUNK))
        return head
    return b""


def is_byte_code(path: str) -> bool:
    """Return whether it is a compiled module of Python, which writes it again when it does not fit the source."""
    return path.endswith(".pyc") and os.path.basename(os.path.dirname(path)) == "__pycache__"


def is_kept(one: str, other: str, first: os.stat_result, second: os.stat_result) -> bool:
    """Return whether two files are the same, also in the attributes that a job can set."""
    return is_equal(one, other, first, second) and _kept_attributes(one) == _kept_attributes(other)


def _kept_attributes(path: str) -> dict[str, bytes]:
    """The extended attributes of a file that a job may set, and its access control list: xattr(7)."""
    names: list[str] = []
    with suppress(OSError):
        names = os.listxattr(path, follow_symlinks=False)
    kept = [n for n in names if n.startswith(("user.", "system.")) and not n.startswith(("user.overlay.", MARK))]
    return {name: attribute(path, name) or b"" for name in kept}
