"""git's index: a mere ``git status`` or ``git describe`` rewrites it, with the same files and other times of them."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator

_STAT_BYTES = 40  # ctime, mtime, dev, ino, mode, uid, gid, size: gitformat-index(5)
_MODE_AT = 24
_EXTENDED, _NAME_LENGTH = 0x4000, 0xFFF


def is_refreshed_index(new: str, old: str) -> bool:
    """Return whether both are an index of git with the same entries: name, mode, flags and object of each."""
    if os.path.basename(old) != "index" or "/.git/" not in old:
        return False
    try:
        with open(new, "rb") as one, open(old, "rb") as other:
            return list(_entries(one.read())) == list(_entries(other.read()))
    except (OSError, ValueError, struct.error):
        return False


def _entries(data: bytes) -> Iterator[bytes]:
    """Yield the entries without what stat(2) says of the files.

    Raises:
        ValueError, struct.error: if it is none, or of another format (version 4 shortens names).
    """
    signature, version, count = struct.unpack_from(">4sII", data)
    if signature != b"DIRC" or version not in (2, 3):
        raise ValueError("no index of version 2 or 3")
    digest_bytes = 20 if hashlib.sha1(data[:-20], usedforsecurity=False).digest() == data[-20:] else 32
    place = 12
    for _ in range(count):
        flags_at = place + _STAT_BYTES + digest_bytes
        (flags,) = struct.unpack_from(">H", data, flags_at)
        name_at = flags_at + (4 if flags & _EXTENDED else 2)
        end = data.index(b"\0", name_at + min(flags & _NAME_LENGTH, len(data)))
        yield data[place + _MODE_AT : place + _MODE_AT + 4] + data[place + _STAT_BYTES : end]
        place += (end - place) // 8 * 8 + 8  # padded with one to eight NUL
