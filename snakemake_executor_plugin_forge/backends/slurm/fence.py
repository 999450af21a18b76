"""The fence: at most one of several copies of an attempt may publish, and none after the controller forbids it.

A scheduler that loses sight of a node starts the job again elsewhere, while the old copy continues and writes to the
same file system. So every copy *claims* its attempt when it starts, and *takes* it once, right before it publishes:

::

    <attempt>/claims/1        a copy has started; made with O_EXCL, its number is one more than the highest
    <attempt>/claims/2        a later copy: from now on the first one is stale
    <attempt>/taken           the owner of the attempt, for ever; linked into place, so that it is whole or missing

A controller that waits for the attempt forbids it by taking it too: no copy can publish any more. Creation with O_EXCL
and link(2) are atomic on NFS as well (NFSv3 and later): open(2). A link whose answer the network lost is recognised by
the content of the file.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass

from ...record.jsonfile import load, read_object

CLAIMS, TAKEN = "claims", "taken"


@dataclass(frozen=True, slots=True)
class CopyClaim:
    """The claim of one copy to an attempt."""

    directory: str  # the attempt directory
    number: int  # from 1; a later copy has a higher one
    token: str  # unique


def claim(directory: str, who: str) -> CopyClaim | None:
    """Announce a copy of the attempt in ``directory``; earlier ones are stale from now on.

    Args:
        who: says for people who it is.

    Returns:
        None if the attempt is taken: this copy must run nothing.

    Raises:
        OSError: if the directory cannot be written.
    """
    claims = f"{directory}/{CLAIMS}"
    os.makedirs(claims, exist_ok=True)
    token = _token()
    number = latest(directory)
    while True:
        number += 1
        try:
            fd = os.open(f"{claims}/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            continue
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump({"who": who, "token": token}, file)
        return None if holder(directory) is not None else CopyClaim(directory, number, token)


def latest(directory: str) -> int:
    """The number of the newest claim; 0 if no copy has claimed the attempt."""
    with suppress(FileNotFoundError):
        return max(
            (int(name) for name in os.listdir(f"{directory}/{CLAIMS}") if name.isascii() and name.isdigit()), default=0
        )
    return 0


def take(mine: CopyClaim) -> bool:
    """Take the attempt for a copy, right before it publishes.

    Returns:
        False if a later copy has claimed it, or somebody else has taken it.

    Raises:
        OSError: if the directory cannot be written.
    """
    if latest(mine.directory) > mine.number:
        return holds(mine)
    return _take(mine.directory, mine.token, f"copy {mine.number}")


def forbid(directory: str, who: str) -> bool:
    """Take an attempt that is presumed dead, so that no copy of it ever publishes.

    Returns:
        False if a copy has taken it: that copy is not dead, or was not when it published.

    Raises:
        OSError: if the directory cannot be written.
    """
    return _take(directory, _token(), f"forbidden by {who}", forbidden=True)


def is_forbidden(directory: str) -> bool:
    """Whether a controller has taken the attempt."""
    return bool((_read(directory) or {}).get("forbidden"))


def holder(directory: str) -> str | None:
    """The owner of the attempt, in words; None if nobody has taken it."""
    found = _read(directory)
    return str(found["who"]) if found is not None else None


def is_current(mine: CopyClaim) -> bool:
    """Whether no later copy has claimed the attempt, and nobody has taken it. A moment later it may be different."""
    return latest(mine.directory) == mine.number and holder(mine.directory) is None


def process_of(directory: str, number: int) -> int | None:
    """The process id of a copy, on its host; None if it cannot be read."""
    with suppress(ValueError):
        return int(str((load(f"{directory}/{CLAIMS}/{number}") or {}).get("token")).rsplit("-", 2)[1])
    return None


def holds(mine: CopyClaim) -> bool:
    """Whether this copy has taken the attempt."""
    found = _read(mine.directory)
    return found is not None and found["token"] == mine.token


def _token() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"


def _take(directory: str, token: str, who: str, *, forbidden: bool = False) -> bool:
    os.makedirs(directory, exist_ok=True)
    own = f"{directory}/.{TAKEN}.{token}"
    fd = os.open(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump({"who": who, "token": token, "forbidden": forbidden}, file)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(own, f"{directory}/{TAKEN}")
    finally:
        os.unlink(own)
    found = _read(directory)
    return found is not None and found["token"] == token


def _read(directory: str) -> dict[str, object] | None:
    """The content of ``taken``; None if it is missing. A damaged file counts as taken by somebody else."""
    try:
        found = read_object(f"{directory}/{TAKEN}")
    except FileNotFoundError:
        return None
    except ValueError:
        found = {}
    return found if {"who", "token"} <= found.keys() else {"who": "unknown", "token": ""}
