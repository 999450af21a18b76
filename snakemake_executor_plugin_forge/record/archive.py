"""The archive of a run: what is kept of its attempts after their directories are removed. Written by retention.py."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from . import sound
from .jsonfile import parse

NAME = "attempts.jsonl.gz"


def read_entries(run_dir: str) -> Iterator[dict[str, Any]]:
    """Return the archived data of each attempt; nothing if the run has no archive. Format: docs/reference/record.md."""
    path = f"{run_dir}/{NAME}"
    if not os.path.exists(path):
        return
    with suppress(OSError, EOFError, zlib.error), gzip.open(path, "rb") as file:  # what is before the damage counts
        for line in file:
            with suppress(ValueError):
                entry = parse(line.decode("utf-8", "surrogateescape"))
                if isinstance(entry, dict) and isinstance(entry.get("verdict"), dict) and _is_name(entry.get("name")):
                    yield {**entry, "verdict": _verdict(entry["verdict"], path)}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and "/" not in value and "\0" not in value


def _verdict(data: dict[str, Any], path: str) -> dict[str, Any]:
    found = sound.verdict(data)
    told = sound.damage(found, path)
    return found | {"notes": [*found["notes"], told]} if told else found
