"""The orders of a controller to a worker (worker.py), as files that nobody else can write.

::

    <run>/slurm/orders/<batch>.<index>/     one worker
        0  1  2 …     run an attempt; each is signed
        stop.<n>      end the attempt of order n, or do not begin it
        over          no more orders come: end when nothing runs
        lease         touched while the controller lives

A job may be able to write these files, and to read all that its user can: the batch script too. So no secret is on the
node. The batch script has the fingerprint of a public key that is good for one signature; each order is signed with the
private key to the one before, and names the next (Winternitz's one-time signatures, chained; SHA-256). What is not
signed can only end attempts, which somebody who can write here could do anyway.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ...record.jsonfile import replace_file

ORDERS, OVER, LEASE, STOP = "orders", "over", "lease", "stop."

_DIGITS = 64  # of four bits, in a SHA-256
_CHECK_DIGITS = 3  # their sum, upside down: a digit that is raised lowers it
_LAST = 15
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class RunOrder:
    """Run one attempt."""

    number: int  # from 0
    place: str  # the attempt's directory, in that of its batch
    checksum: str  # of its launch
    first_only: bool = False  # a member of a pipe group: nothing to repeat when Slurm runs the worker again


def directory(state: str, batch: str, index: int) -> str:
    """Return the directory of a worker's orders."""
    return f"{state}/{ORDERS}/{batch}.{index}"


def of_attempt(attempt: str) -> tuple[str, int] | None:
    """Return the directory and the number of the order for an attempt; None if no worker runs it."""
    state, batch, place = attempt.rsplit("/", 2)
    index, _, part = place.partition(".")
    if not (index.isdigit() and part.isdigit()) or not os.path.isdir(found := directory(state, batch, int(index))):
        return None
    return found, int(part)


# -- the controller ----------------------------------------------------------------------------------------------------


class OrderBook:
    """Writes the orders for one worker."""

    def __init__(self, path: str) -> None:
        """Make the directory.

        Raises:
            OSError: if that is impossible.
        """
        self.path = path
        self.count = 0
        self._seed = secrets.token_bytes(32)
        self.public = _public(self._secrets(0)).hex()
        os.makedirs(path, exist_ok=True)
        self.renew()

    def run(self, place: str, checksum: str, *, first_only: bool) -> None:
        """Order the next attempt.

        Raises:
            OSError: if it cannot be written.
        """
        order = RunOrder(self.count, place, checksum, first_only)
        following = _public(self._secrets(order.number + 1)).hex()
        signature = _sign(self._secrets(order.number), _message(order, following))
        text = json.dumps({"place": place, "checksum": checksum, "first_only": first_only, "next": following,
                           "signature": signature.hex()})  # fmt: skip
        try:
            replace_file(f"{self.path}/{order.number}", text, durable=True)
        except OSError:
            if not os.path.lexists(f"{self.path}/{order.number}"):
                raise
        self.count += 1  # also if only fsync of the directory has failed: the worker may have read it

    def renew(self) -> None:
        """Say that the controller lives."""
        with open(f"{self.path}/{LEASE}", "w", encoding="ascii"):
            pass

    def _secrets(self, number: int) -> list[bytes]:
        names = (f"{number}.{digit}".encode() for digit in range(_DIGITS + _CHECK_DIGITS))
        return [hmac.digest(self._seed, name, "sha256") for name in names]


def stop(path: str, number: int) -> None:
    """Order the end of an attempt.

    Raises:
        OSError: if it cannot be written.
    """
    with open(f"{path}/{STOP}{number}", "w", encoding="ascii"):
        pass


def say_over(path: str) -> None:
    """Say that no more orders come."""
    with suppress(OSError), open(f"{path}/{OVER}", "w", encoding="ascii"):
        pass


def say_all_over(state: str) -> None:
    """Say so to all workers of a run."""
    with suppress(FileNotFoundError):
        for name in os.listdir(f"{state}/{ORDERS}"):
            say_over(f"{state}/{ORDERS}/{name}")


# -- the worker --------------------------------------------------------------------------------------------------------


class OrderReader:
    """Reads the orders for one worker, and believes only those that are signed."""

    def __init__(self, path: str, public: str) -> None:
        """Begin with the first order; ``public`` is the fingerprint from the batch script."""
        self._path, self._public, self._next = path, public, 0

    def new(self) -> Iterator[RunOrder]:
        """Yield the orders that have come since the last call."""
        while (data := self._read(self._next)) is not None:
            order, following, signature = data
            if _signer(signature, _message(order, following)).hex() != self._public:
                return  # not the controller's, or not all of it is here
            self._public, self._next = following, self._next + 1
            yield order

    def _read(self, number: int) -> tuple[RunOrder, str, bytes] | None:
        try:
            with open(f"{self._path}/{number}", "rb") as file:
                data = json.loads(file.read(_MOST_BYTES))
            order = RunOrder(number, str(data["place"]), str(data["checksum"]), bool(data["first_only"]))
            return order, str(data["next"]), bytes.fromhex(data["signature"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def names(self) -> set[str]:
        """Return the names of the files beside the orders."""
        with suppress(OSError):
            return set(os.listdir(self._path))
        return set()

    def lease(self) -> float | None:
        """Return the time at which the controller has last said that it lives, by the file system's clock."""
        with suppress(OSError):
            return os.stat(f"{self._path}/{LEASE}").st_mtime
        return None


# -- signatures --------------------------------------------------------------------------------------------------------


def _message(order: RunOrder, following: str) -> bytes:
    parts = [str(order.number), order.place, order.checksum, str(order.first_only), following]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def _digits(message: bytes) -> list[int]:
    digits = [half for byte in message for half in (byte >> 4, byte & 15)]
    check = sum(_LAST - digit for digit in digits)
    return [*digits, check >> 8, check >> 4 & 15, check & 15]


def _hashed(value: bytes, times: int) -> bytes:
    for _ in range(times):
        value = hashlib.sha256(value).digest()
    return value


def _public(private: list[bytes]) -> bytes:
    return hashlib.sha256(b"".join(_hashed(secret, _LAST) for secret in private)).digest()


def _sign(private: list[bytes], message: bytes) -> bytes:
    return b"".join(_hashed(secret, digit) for secret, digit in zip(private, _digits(message), strict=True))


def _signer(signature: bytes, message: bytes) -> bytes:
    """Return the fingerprint of the key that has made a signature; of another key if it was not made at all."""
    size = hashlib.sha256().digest_size
    parts = [signature[start : start + size] for start in range(0, len(signature), size)]
    digits = _digits(message)
    if len(parts) != len(digits):
        return b""
    ends = (_hashed(part, _LAST - digit) for part, digit in zip(parts, digits, strict=True))
    return hashlib.sha256(b"".join(ends)).digest()
