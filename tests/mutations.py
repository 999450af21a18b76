"""Damaged and hostile versions of files that Forge reads: a small mutator with a seed, which it prints.

``make test`` reads a fixed sample, ``make soak`` another one each time; ``FORGE_FUZZ_SEED`` repeats a run.
"""

from __future__ import annotations

import copy
import os
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

SEED = int(os.environ.get("FORGE_FUZZ_SEED") or (random.SystemRandom().randrange(1 << 32) if "soak" in sys.argv else 20261129))

FEW_OR_MANY = pytest.mark.parametrize(
    "count", [300, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])], ids=["few", "many"]
)
"""The number of damaged versions that a test reads: in ``make test``, in ``make soak``."""

_NASTY = (
    b"", b"\0", b"\n", b"\xff", b"\x1b]52;c;QQ==\x07", b"{", b"}", b"[", b"]", b'"', b":", b",", b"-", b"null", b"true", b"NaN",
    b"Infinity", b"1e999", b"-1", b"0", b"9" * 30, b"9" * 5000, b'"\\ud800"', b"[" * 3000, b'{"a":' * 3000, b"[]", b"{}", b'""',
    b"x" * 100_000, b"|", b"=", b"\t", b" ", b"&a ", b"*a", b"!!int ", b"<<: *a", b"../" * 50, b"\xed\xa0\x80", b"\r", b"\x85",
)  # fmt: skip


def damaged(examples: Sequence[bytes], count: int) -> Iterator[bytes]:
    """Yield ``count`` versions of the examples, each with one to four damages. The same seed yields the same versions."""
    print(f"FORGE_FUZZ_SEED={SEED}")  # pytest shows it if the test fails
    rng = random.Random(SEED)
    for _ in range(count):
        yield damaged_once(rng, rng.choice(examples))


def damaged_once(rng: random.Random, data: bytes) -> bytes:
    """Return a version with one to four damages."""
    for _ in range(rng.randint(1, 4)):
        data = _damage(rng, data)
    return data


def cut_and_flipped(data: bytes) -> Iterator[bytes]:
    """Yield every proper prefix, and for every byte a version in which one bit of it is flipped."""
    for place in range(len(data)):
        yield data[:place]
        yield data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


def _damage(rng: random.Random, data: bytes) -> bytes:
    place, other = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    match rng.randrange(6):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + data[other:]
        case 2:
            return data[:other] + data[place:]
        case 3:
            return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        case 4:  # replaces a whole value, so that the parser is more likely to accept it
            marks = [number for number, byte in enumerate(data) if byte in b' ,:[]{}"\n\t']
            place = rng.choice(marks) + 1 if marks else place
            end = next((number for number in marks if number > place), place)
            return data[:place] + rng.choice(_NASTY) + data[end:]
        case _:
            return data[:place] + rng.choice(_NASTY) + data[place:]


_WRONG: tuple[object, ...] = (
    10**30, -5, -(10**30), 0, 1.5, 1e308, float("nan"), float("inf"), True, None, "", "x", "\0", "\ud800", "../../..", "é" * 5000,
    [], {}, [[]], {"a": {}}, [None, 1, "x"], "2026-01-01", "9999-12-31T23:59:59+00:00", "1" * 5000,
)  # fmt: skip


def with_wrong_values(rng: random.Random, data: object) -> object:
    """Return JSON with one to five values, at any depth, replaced or deleted; now and then all of it is replaced."""
    for _ in range(rng.randint(1, 5)):
        places = list(_places(data))
        if not places or rng.random() < 0.02:
            return rng.choice(_WRONG)
        container, key = rng.choice(places)
        if rng.random() < 0.1:
            del container[key]
        else:
            container[key] = copy.deepcopy(rng.choice(_WRONG))
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from _places(data[key])
