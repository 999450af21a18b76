"""Retention of records: old runs are compacted into an archive of one file, very old runs are removed.

The decision is pure; :func:`measure`, :func:`compact` and :func:`remove` are its hands. Nothing touches a run that is
alive or may still get a verdict.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..kernel.tree import remove_tree, weigh
from ..spec.job import RECORD_SCHEMA
from .archive import NAME, read_entries
from .jsonfile import EVENTS, SPEC, STDERR, STDOUT, load, to_disk
from .plain_files import open_to_read, read_lines
from .reader import RUN, RunDirectory, read_run, run_directories

_HEAD_BYTES, _TAIL_BYTES = 4096, 12288  # of a stream


class Action(StrEnum):
    """An action on a run, the gentler one first."""

    COMPACT = "compact"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of age and size. None: no limit."""

    compact_after_seconds: float | None = 30 * 86400.0
    remove_after_seconds: float | None = None
    max_bytes: int | None = None  # of all records together
    keep_runs: int = 3  # the newest runs, which stay


@dataclass(frozen=True, slots=True)
class RunSize:
    """A run with its size and age."""

    path: str
    age_seconds: float  # since its end
    size_bytes: int
    over: bool
    compacted: bool


@dataclass(frozen=True, slots=True)
class RetentionStep:
    """One action on one run, with its reason."""

    action: Action
    run: RunSize
    why: str


def decide(runs: Sequence[RunSize], policy: Policy) -> list[RetentionStep]:
    """Decide the actions, oldest run first. Pure.

    Args:
        runs: oldest first.
    """
    candidates = [run for run in runs[: max(0, len(runs) - policy.keep_runs)] if run.over]
    steps: dict[str, RetentionStep] = {}
    for run in candidates:
        if _is_older(run, policy.remove_after_seconds):
            steps[run.path] = RetentionStep(Action.REMOVE, run, "age")
        elif _is_older(run, policy.compact_after_seconds) and not run.compacted:
            steps[run.path] = RetentionStep(Action.COMPACT, run, "age")
    if policy.max_bytes is not None:
        _shrink(candidates, steps, sum(run.size_bytes for run in runs), policy.max_bytes)
    return [steps[run.path] for run in candidates if run.path in steps]


def _is_older(run: RunSize, limit: float | None) -> bool:
    return limit is not None and run.age_seconds > limit


def _shrink(candidates: Sequence[RunSize], steps: dict[str, RetentionStep], total: int, most: int) -> None:
    """Compact, then remove, the oldest runs until the rest is small enough. A compacted run counts as empty."""
    total -= sum(step.run.size_bytes for step in steps.values())
    for action in Action:
        for run in candidates:
            if total <= most:
                return
            if run.path not in steps and not (action is Action.COMPACT and run.compacted):
                steps[run.path] = RetentionStep(action, run, "size")
                total -= run.size_bytes


# -- hands -------------------------------------------------------------------------------------------------------------


def measure(state: str) -> list[RunSize]:
    """All runs, oldest first."""
    found = []
    for run in run_directories(state):
        with suppress(OSError):
            changed = os.stat(f"{run.path}/{RUN}" if run.record else run.path).st_mtime
            compacted = os.path.exists(f"{run.path}/{NAME}") and not any(run.names())
            found.append(RunSize(run.path, time.time() - changed, size_bytes(run.path), run.over, compacted))
    return found


def size_bytes(path: str) -> int:
    """The disk space of a directory and its content, in bytes."""
    return weigh(path)[0]


def compact(path: str) -> int:
    """Put a run's attempts into one file and remove their directories; return the number of freed bytes.

    The archive is complete and on the disk before the first removal, so the next call repairs a crash in between.
    Memory does not grow with the number of attempts.

    Raises:
        OSError: if the archive cannot be written; then nothing is removed.
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
    to_disk(path)
    for name in list(run.names()):
        remove_tree(f"{path}/{name}")
    return before - size_bytes(path)


def remove(path: str) -> int:
    """Remove a run; return the number of freed bytes."""
    before = size_bytes(path)
    remove_tree(path)
    return before


def _entries(run: RunDirectory) -> Iterator[dict[str, Any]]:
    """Attempts in the archive, then attempts in directories, each once."""
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
            "verdict": attempt,
            "spec": load(f"{directory}/{SPEC}"),
            "events": read_lines(f"{directory}/{EVENTS}") or [],
            "streams": {stream: _shortened(f"{directory}/{stream}") for stream in (STDOUT, STDERR)},
        }


def _shortened(path: str) -> str:
    """The beginning and the end of a stream."""
    with suppress(OSError), open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _HEAD_BYTES + _TAIL_BYTES:
            return file.read().decode("utf-8", "replace")
        head = file.read(_HEAD_BYTES)
        file.seek(size - _TAIL_BYTES)
        count = size - _HEAD_BYTES - _TAIL_BYTES
        mark = f"\n[… {count} bytes were removed with the directory of this attempt …]\n"
        return head.decode("utf-8", "replace") + mark + file.read().decode("utf-8", "replace")
    return ""
