"""Comparison of published outputs with the present files, for ``snakemake-forge verify``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..record.checksum import SAMPLES, digest, measure
from ..spec.units import show_bytes

Record = dict[str, Any]


class OutputState(StrEnum):
    """The present state of an output."""

    SOUND = "sound"
    CHANGED = "changed"
    MISSING = "missing"
    USED_UP = "used up"  # temp(), or the local copy of a file in a storage: its removal is normal
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Published:
    """An output, as published by the newest attempt that wrote it."""

    path: str  # as in the rule: relative to the working directory, or absolute
    rule: str
    wildcards: dict[str, str]
    directory: str  # of the attempt
    kind: str
    size_bytes: int
    checksum: str | None
    covers: str | None
    temporary: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The result of comparing one output."""

    published: Published
    state: OutputState
    why: str = ""


def newest(records: Iterable[Record]) -> list[Published]:
    """List each output once, from the newest succeeded attempt; sorted by path. Pure.

    Args:
        records: whole verdicts, oldest first.
    """
    found: dict[str, Published] = {}
    for record in records:
        if record.get("outcome") != "succeeded" or record.get("staged") or record.get("discarded"):
            continue  # staged and discarded outputs never reached their places
        for output in record.get("outputs") or ():
            found[os.path.normpath(output["path"])] = Published(
                **{name: record[name] for name in ("rule", "wildcards", "directory")},
                **{name: output.get(name) for name in ("path", "kind", "checksum", "covers")},
                size_bytes=int(output["bytes"]),
                temporary=bool(output.get("temporary")),
            )
    return [found[path] for path in sorted(found)]


def compare(workdir: str, published: Published) -> Found:
    """Compare one output; read as much of it as Forge read at publication."""
    try:
        now = measure(os.path.join(workdir, published.path))
        if now is None:
            return Found(published, OutputState.USED_UP if published.temporary else OutputState.MISSING)
        if now.kind != published.kind:
            return Found(published, OutputState.CHANGED, f"it is a {now.kind} now, and was a {published.kind}")
        if now.size_bytes != published.size_bytes:
            sizes = f"{show_bytes(now.size_bytes)} now, {show_bytes(published.size_bytes)} when it was published"
            if show_bytes(now.size_bytes) == show_bytes(published.size_bytes):
                sizes = f"{now.size_bytes} bytes now, {published.size_bytes} when it was published"
            return Found(published, OutputState.CHANGED, sizes)
        if published.checksum is None or published.covers is None:
            return Found(published, OutputState.SOUND, "size only, no checksum is on record")
        if digest(now, published.covers) != published.checksum:
            return Found(published, OutputState.CHANGED, "other content, of the same size")
    except OSError as error:
        return Found(published, OutputState.UNREADABLE, error.strerror or str(error))
    return Found(published, OutputState.SOUND, "samples only" if published.covers == SAMPLES else "")


def compare_all(workdir: str, published: Iterable[Published]) -> Iterator[Found]:
    """Compare all outputs, several at a time (hashlib releases the interpreter's lock), and yield results in order."""
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        yield from pool.map(lambda output: compare(workdir, output), published)
