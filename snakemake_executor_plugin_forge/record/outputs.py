"""Outputs as they were published against what they are now: for ``snakemake-forge verify``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..checksum import SAMPLES, digest, measure
from ..units import show_bytes

Record = dict[str, Any]


class State(StrEnum):
    """What an output is now."""

    SOUND = "sound"
    CHANGED = "changed"
    MISSING = "missing"
    USED_UP = "used up"  # temp(), or the local copy of what is in a storage: gone, as it should be
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Published:
    """An output as the newest attempt that wrote it left it."""

    path: str  # as its rule has it: relative to the working directory, or absolute
    rule: str
    wildcards: dict[str, str]
    directory: str  # of the attempt
    kind: str
    size_bytes: int
    checksum: str | None
    covers: str | None
    temporary: bool

    @classmethod
    def of(cls, record: Record, output: Record) -> Published:
        """From a verdict and one of its ``outputs``."""
        return cls(
            path=str(output["path"]),
            rule=str(record["rule"]),
            wildcards=dict(record["wildcards"]),
            directory=str(record["directory"]),
            kind=str(output["kind"]),
            size_bytes=int(output["bytes"]),
            checksum=output.get("checksum"),
            covers=output.get("covers"),
            temporary=bool(output.get("temporary")),
        )


@dataclass(frozen=True, slots=True)
class Found:
    """One output, compared."""

    published: Published
    state: State
    why: str = ""


def newest(records: Iterable[Record]) -> list[Published]:
    """Each output once, as the newest attempt that succeeded has left it; sorted by path. Pure.

    Args:
        records: whole verdicts, oldest first.

    """
    found: dict[str, Published] = {}
    for record in records:
        if record.get("outcome") != "succeeded" or record.get("staged") or record.get("discarded"):
            continue  # the last two were never brought to their places
        for output in record.get("outputs") or ():
            found[os.path.normpath(output["path"])] = Published.of(record, output)
    return [found[path] for path in sorted(found)]


def compare(workdir: str, published: Published) -> Found:
    """Look at one output: as much of it is read as was read when it was published."""
    try:
        now = measure(os.path.join(workdir, published.path))
        if now is None:
            return Found(published, State.USED_UP if published.temporary else State.MISSING)
        if now.kind != published.kind:
            return Found(published, State.CHANGED, f"it is a {now.kind} now, and was a {published.kind}")
        if now.size_bytes != published.size_bytes:
            sizes = f"{show_bytes(now.size_bytes)} now, {show_bytes(published.size_bytes)} when it was published"
            if show_bytes(now.size_bytes) == show_bytes(published.size_bytes):
                sizes = f"{now.size_bytes} bytes now, {published.size_bytes} when it was published"
            return Found(published, State.CHANGED, sizes)
        if published.checksum is None or published.covers is None:
            return Found(published, State.SOUND, "size only, no checksum is on record")
        if digest(now, published.covers) != published.checksum:
            return Found(published, State.CHANGED, "other content, of the same size")
    except OSError as error:
        return Found(published, State.UNREADABLE, error.strerror or str(error))
    return Found(published, State.SOUND, "samples only" if published.covers == SAMPLES else "")


def compare_all(workdir: str, published: Iterable[Published]) -> Iterator[Found]:
    """Look at all, several at a time (hashlib lets other threads run meanwhile); in their order."""
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        yield from pool.map(lambda output: compare(workdir, output), published)
