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


def read_entries(run_dir: str, problems: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Return the archived data of each attempt; nothing if the run has no archive. Format: docs/reference/record.md.

    Args:
        problems: gets a sentence at the end if the archive is damaged. What can be read of it counts.
    """
    path = f"{run_dir}/{NAME}"
    if not os.path.exists(path):
        return
    count, unread, why = 0, 0, ""
    try:
        with gzip.open(path, "rb") as file:
            for line in file:
                entry = _entry(line)
                if entry is None:
                    unread += 1
                else:
                    count += 1
                    yield {**entry, "verdict": _verdict(entry["verdict"], path)}
    except (OSError, EOFError, zlib.error) as error:
        why = str(error)
    if problems is not None and (unread or why):
        why = why or f"{unread} of its lines are no records"
        problems.append(f"{path} is damaged: {why}. {count} attempt(s) are read from it; the others in it are lost")


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return the attempt in a line; None if it is damaged."""
    with suppress(ValueError):
        entry = parse(line.decode("utf-8", "surrogateescape"))
        if isinstance(entry, dict) and isinstance(entry.get("verdict"), dict) and _is_name(entry.get("name")):
            return entry
    return None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and "/" not in value and "\0" not in value


def _verdict(data: dict[str, Any], path: str) -> dict[str, Any]:
    found = sound.verdict(data)
    told = sound.damage(found, path)
    return found | {"notes": [*found["notes"], told]} if told else found
