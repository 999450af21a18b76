"""Which of several copies of an attempt may publish: at most one, and never one that was given up.

A scheduler that loses sight of a node starts its job again elsewhere, while the old copy goes on and writes to the
same file system. So every copy *claims* its attempt when it starts, and *takes* it once, right before it publishes:

::

    <attempt>/claims/1        a copy has started; made with O_EXCL, the number is one more than the highest
    <attempt>/claims/2        a later copy: from now on the first one is stale
    <attempt>/taken           who has the attempt, for ever; linked into place, so that it is whole or not there

Whoever waits for the attempt gives it up by taking it too: what it then calls dead cannot publish any more. Creation
with O_EXCL and link(2) are atomic on NFS as well (NFSv3 and later): open(2). A link whose answer was lost is recognised
by what is in the file.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass

CLAIMS, TAKEN = "claims", "taken"
GIVEN_UP = "given up by "


@dataclass(frozen=True, slots=True)
class Claim:
    """One copy's claim to an attempt."""

    directory: str  # of the attempt
    number: int  # from 1; a later copy has a higher one
    token: str  # of this copy alone


def claim(directory: str, who: str) -> Claim | None:
    """Announce a copy of the attempt in ``directory``; earlier ones are stale from now on.

    Args:
        who: for people who look into the directory.

    Returns:
        None if the attempt is taken: nothing of this copy is to be run.

    Raises:
        OSError: if the directory cannot be written.

    """
    claims = f"{directory}/{CLAIMS}"
    os.makedirs(claims, exist_ok=True)
    token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
    number = latest(directory)
    while True:
        number += 1
        try:
            fd = os.open(f"{claims}/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            continue
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump({"who": who, "token": token}, file)
        return None if holder(directory) is not None else Claim(directory, number, token)


def latest(directory: str) -> int:
    """The number of the newest claim; 0 if nobody has claimed the attempt."""
    with suppress(FileNotFoundError):
        return max((int(name) for name in os.listdir(f"{directory}/{CLAIMS}") if name.isdigit()), default=0)
    return 0


def take(mine: Claim) -> bool:
    """Take the attempt for the copy that has claimed it; to be called right before it publishes.

    Returns:
        False if a later copy has claimed it, or anybody has taken it. True again for the copy that has it.

    Raises:
        OSError: if the directory cannot be written.

    """
    if latest(mine.directory) > mine.number:
        return holds(mine)
    return _take(mine.directory, mine.token, f"copy {mine.number}")


def give_up(directory: str, who: str) -> bool:
    """Take an attempt that is presumed dead, so that no copy of it ever publishes.

    Returns:
        False if a copy has taken it: it is not dead, or was not when it published.

    Raises:
        OSError: if the directory cannot be written.

    """
    return _take(directory, f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}", f"{GIVEN_UP}{who}")


def holder(directory: str) -> str | None:
    """Who has taken the attempt, in words; None if nobody has."""
    found = _read(directory)
    return str(found["who"]) if found is not None else None


def is_current(mine: Claim) -> bool:
    """Whether no later copy has claimed the attempt, and nobody has taken it. It may be otherwise a moment later."""
    return latest(mine.directory) == mine.number and holder(mine.directory) is None


def process_of(directory: str, number: int) -> int | None:
    """The process id of a copy, on its host; None if it cannot be read."""
    with suppress(OSError, ValueError, KeyError), open(f"{directory}/{CLAIMS}/{number}", encoding="utf-8") as file:
        return int(json.load(file)["token"].rsplit("-", 2)[1])
    return None


def holds(mine: Claim) -> bool:
    """Whether this very copy has the attempt."""
    found = _read(mine.directory)
    return found is not None and found["token"] == mine.token


def _take(directory: str, token: str, who: str) -> bool:
    os.makedirs(directory, exist_ok=True)
    own = f"{directory}/.{TAKEN}.{token}"
    fd = os.open(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump({"who": who, "token": token}, file)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(own, f"{directory}/{TAKEN}")
    finally:
        os.unlink(own)
    found = _read(directory)
    return found is not None and found["token"] == token


def _read(directory: str) -> dict[str, str] | None:
    """What ``taken`` says; a damaged file counts as taken by somebody else."""
    try:
        with open(f"{directory}/{TAKEN}", encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    return found if isinstance(found, dict) and {"who", "token"} <= found.keys() else {"who": "unknown", "token": ""}
