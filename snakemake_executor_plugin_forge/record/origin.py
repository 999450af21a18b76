"""The origin of a state directory: whether Forge has made it here for this user, or a job has left it.

::

    <state>/origin                                          a random token, and the inode of <state>
    ~/.local/state/snakemake-forge/directories.jsonl        token, path and inode of each: no job can write to it

A ``.snakemake`` inside another working directory of Forge may be a job's: it counts only if it is in that file or,
where that cannot be kept, if the inode is right, which no archive can know. One that stands alone is taken for the
user's own.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from ..spec.paths import STATE
from .jsonfile import replace_file

ORIGIN = "origin"
_FILE = "snakemake-forge/directories.jsonl"
_MOST_BYTES = 4 << 20
_IN_JOB = "FORGE_JOB_DIR"
_ASIDE = ".not-made-here-"

Entry = tuple[str, str, int]  # token, path, inode


def claim(state: str) -> str | None:
    """Make a state directory that of this user's runs, at the start of one.

    Returns:
        The path to which the present one was moved, because Forge has not made it; None if it counts.

    Raises:
        OSError: if it cannot be made or moved.
    """
    aside = None
    if _has_records(state) and not is_believed(state):
        aside = next(path for n in range(1, 10_000) if not os.path.lexists(path := f"{state}{_ASIDE}{n}"))
        os.rename(state, aside)
    os.makedirs(state, exist_ok=True)
    inode = os.stat(state).st_ino
    found = _origin(state)
    if found is None or found[1] != inode:  # new, or a copy
        found = (os.urandom(16).hex(), inode)
        replace_file(f"{state}/{ORIGIN}", f"{found[0]} {inode}\n")
    _register((found[0], state, inode))
    return aside


def _has_records(state: str) -> bool:
    """Whether there is anything but what another process is just making in :func:`claim`."""
    if not os.path.isdir(state) or os.path.islink(state):
        return os.path.lexists(state)
    return any(not name.lstrip(".").startswith(ORIGIN) for name in os.listdir(state))


def is_believed(state: str) -> bool:
    """Whether the records in a state directory count; those of another user are that user's."""
    try:
        status = os.lstat(state)
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        return False
    if status.st_uid != os.geteuid() or not _is_inside_another(state):
        return True
    found = _origin(state)
    if found is None:
        return False
    if found[1] == status.st_ino:  # claimed or moved; also where this host or home has another list, or a full disk
        return True
    return any(token == found[0] and path == state for token, path, _ in _registered())


def _is_inside_another(state: str) -> bool:
    """Whether it is below another working directory of Forge; of another user's none counts."""
    above = os.path.dirname(state.removesuffix(f"/{STATE}"))
    while True:
        with suppress(OSError):
            is_public = os.stat(above).st_mode & stat.S_IWOTH  # as /tmp, which is nobody's project
            if not is_public and os.lstat(f"{above.rstrip('/')}/{STATE}/{ORIGIN}").st_uid == os.geteuid():
                return True
        if above in ("/", ""):
            return False
        above = os.path.dirname(above)


def _origin(state: str) -> tuple[str, int] | None:
    with suppress(OSError, ValueError):
        fd = os.open(f"{state}/{ORIGIN}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            token, inode = os.read(fd, 200).decode("ascii").split()
            return token, int(inode)
        finally:
            os.close(fd)
    return None


def _place() -> str:
    base = os.environ.get("XDG_STATE_HOME", "")
    return f"{base if os.path.isabs(base) else os.path.expanduser('~/.local/state')}/{_FILE}"


def _registered() -> list[Entry]:
    """Return the claims of this user's runs; none if there is no such file, or this is a process of a job."""
    if _IN_JOB not in os.environ:
        with suppress(OSError), open(_place(), encoding="utf-8", errors="surrogateescape") as file:
            return list(_entries(file.read(_MOST_BYTES)))
    return []


def _entries(text: str) -> Iterator[Entry]:
    for line in text.splitlines():
        with suppress(ValueError, TypeError):
            token, path, inode = json.loads(line)
            yield str(token), str(path), int(inode)


def _register(entry: Entry) -> None:
    """Note a state directory; where that is impossible, its inode has to do."""
    if _IN_JOB in os.environ or entry in _registered():
        return
    with suppress(OSError):
        place = _place()
        os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
        if os.path.exists(place) and os.stat(place).st_size > _MOST_BYTES // 2:
            there = [known for known in _registered() if os.path.lexists(known[1])]
            replace_file(place, "".join(f"{json.dumps(known)}\n" for known in there))
        with open(place, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(json.dumps(entry) + "\n")
