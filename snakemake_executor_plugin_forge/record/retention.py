"""How long records are kept whole: old runs are put into an archive of one file, very old ones are removed.

The decision is pure; the hands are :func:`measure`, :func:`compact` and :func:`remove`. A run that goes on, or may
still get a verdict, is never touched.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..model import RECORD_SCHEMA
from .archive import NAME, read_entries
from .jsonfile import load
from .layout import EVENTS, SPEC, STDERR, STDOUT
from .reader import RUN, RunDirectory, read_run

_HEAD_BYTES, _TAIL_BYTES = 4096, 12288  # of a stream


class Action(StrEnum):
    """What becomes of a run."""

    COMPACT = "compact"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Policy:
    """How long, and how much. None: without end."""

    compact_after_seconds: float | None = 30 * 86400.0
    remove_after_seconds: float | None = None
    max_bytes: int | None = None  # of all records together
    keep_runs: int = 3  # the newest: never touched


@dataclass(frozen=True, slots=True)
class RunSize:
    """A run as retention sees it."""

    path: str
    age_seconds: float  # since its end
    size_bytes: int
    over: bool
    compacted: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do."""

    action: Action
    run: RunSize
    why: str


def decide(runs: Sequence[RunSize], policy: Policy) -> list[Step]:
    """What to do, oldest run first. Pure.

    Args:
        runs: oldest first.

    """
    candidates = [run for run in runs[: max(0, len(runs) - policy.keep_runs)] if run.over]
    steps: dict[str, Step] = {}
    for run in candidates:
        if policy.remove_after_seconds is not None and run.age_seconds > policy.remove_after_seconds:
            steps[run.path] = Step(Action.REMOVE, run, "age")
        elif _is_older(run, policy.compact_after_seconds) and not run.compacted:
            steps[run.path] = Step(Action.COMPACT, run, "age")
    if policy.max_bytes is not None:
        _shrink(candidates, steps, sum(run.size_bytes for run in runs), policy.max_bytes)
    return [steps[run.path] for run in candidates if run.path in steps]


def _is_older(run: RunSize, limit: float | None) -> bool:
    return limit is not None and run.age_seconds > limit


def _shrink(candidates: Sequence[RunSize], steps: dict[str, Step], total: int, most: int) -> None:
    """Compact, then remove, the oldest until the rest is small enough. A compacted run counts as nothing."""
    total -= sum(step.run.size_bytes for step in steps.values())
    for run in candidates:
        if total <= most:
            return
        if run.path not in steps and not run.compacted:
            steps[run.path] = Step(Action.COMPACT, run, "size")
            total -= run.size_bytes
    for run in candidates:
        if total <= most:
            return
        if run.path not in steps:
            steps[run.path] = Step(Action.REMOVE, run, "size")
            total -= run.size_bytes


# -- hands -------------------------------------------------------------------------------------------------------------


def measure(state: str) -> list[RunSize]:
    """All runs, oldest first."""
    runs = f"{state}/runs"
    found = []
    for name in sorted(os.listdir(runs)) if os.path.isdir(runs) else []:
        run = read_run(f"{runs}/{name}")
        with suppress(OSError):
            changed = os.stat(f"{run.path}/{RUN}" if run.record else run.path).st_mtime
            compacted = os.path.exists(f"{run.path}/{NAME}") and not any(run.names())
            found.append(RunSize(run.path, time.time() - changed, size_bytes(run.path), run.over, compacted))
    return found


def size_bytes(path: str) -> int:
    """What a directory and all in it take on the disk."""
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    total += size_bytes(entry.path)
    return total


def compact(path: str) -> int:
    """Put a run's attempts into one file, and remove their directories; returns how many bytes that freed.

    The archive is complete and on the disk before anything is removed. A crash in between is made good by doing it
    again. Memory does not grow with the number of attempts.

    Raises:
        OSError: if it cannot be written; nothing is removed then.

    """
    run, before = read_run(path), size_bytes(path)
    temporary = f"{path}/.{NAME}.{os.getpid()}"
    try:
        with open(temporary, "wb") as raw:
            with gzip.open(raw, "wt", encoding="utf-8", compresslevel=6) as file:
                for entry in _entries(run):
                    file.write(json.dumps(entry) + "\n")
            raw.flush()
            os.fsync(raw.fileno())
        os.rename(temporary, f"{path}/{NAME}")
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_directory(path)
    for name in list(run.names()):
        shutil.rmtree(f"{path}/{name}", ignore_errors=True)
    return before - size_bytes(path)


def remove(path: str) -> int:
    """Remove a run; returns how many bytes that freed."""
    before = size_bytes(path)
    shutil.rmtree(path)
    return before


def _entries(run: RunDirectory) -> Iterator[dict[str, Any]]:
    """What is in the archive already, and then what is in directories, each once."""
    archived = set()
    for entry in read_entries(run.path):
        archived.add(entry["name"])
        yield entry
    for name in sorted(set(run.names()) - archived):
        attempt = run.attempt(name)
        if attempt is None:
            continue
        directory = f"{run.path}/{name}"
        yield {
            "schema": RECORD_SCHEMA,
            "name": name,
            "verdict": attempt.record,
            "spec": load(f"{directory}/{SPEC}"),
            "events": _read_lines(f"{directory}/{EVENTS}"),
            "streams": {stream: _shortened(f"{directory}/{stream}") for stream in (STDOUT, STDERR)},
        }


def _shortened(path: str) -> str:
    """A stream's beginning and end."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _HEAD_BYTES + _TAIL_BYTES:
                return file.read().decode("utf-8", "replace")
            head = file.read(_HEAD_BYTES)
            file.seek(size - _TAIL_BYTES)
            count = size - _HEAD_BYTES - _TAIL_BYTES
            mark = f"\n[… {count} bytes were given up with the directory of this attempt …]\n"
            return head.decode("utf-8", "replace") + mark + file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _read_lines(path: str) -> list[Any]:
    found = []
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError):
                found.append(json.loads(line))
    return found


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
