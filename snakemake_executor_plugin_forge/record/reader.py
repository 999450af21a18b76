"""Reading job directories again: one run, one attempt at a time. index.py keeps what was read.

Damaged files are passed over, never an error: a crash may leave half a directory.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..errors import UsageError
from .identity import lives
from .jsonfile import load, replace_file
from .layout import ADOPTABLE, CLOSED, SPEC, VERDICT

RUNNING = "running"
RUN = "run.json"
SETTLED_SECONDS = 600.0
"""How long after the death of a run its last supervisors may still write a verdict; far more than they need."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt as the record has it: a verdict, or what can be said without one."""

    record: dict[str, Any]

    @property
    def rule(self) -> str:
        """The rule's name."""
        return str(self.record["rule"])

    @property
    def wildcards(self) -> dict[str, str]:
        """Wildcard to value."""
        return dict(self.record["wildcards"])

    @property
    def outcome(self) -> str:
        """An outcome, or "running"."""
        return str(self.record["outcome"])

    @property
    def directory(self) -> str:
        """The job directory."""
        return str(self.record["directory"])


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A run as found: its ``run.json`` and whether its Snakemake lives."""

    path: str
    record: dict[str, Any]
    alive: bool

    @property
    def over(self) -> bool:
        """Whether nothing in it will change any more."""
        if self.alive or self._entries():
            return False
        if self.record.get("ended"):
            return True
        if os.path.isdir(os.path.dirname(f"{self.path}/{CLOSED}")):  # jobs on nodes go on without Snakemake
            return os.path.exists(f"{self.path}/{CLOSED}")
        try:
            changed = max(os.stat(self.path).st_mtime, os.stat(f"{self.path}/{RUN}").st_mtime)
        except OSError:
            changed = os.stat(self.path).st_mtime if os.path.isdir(self.path) else 0.0
        return time.time() - changed > SETTLED_SECONDS

    def names(self) -> Iterator[str]:
        """The names of its job directories, in no order."""
        with os.scandir(self.path) as entries:
            yield from (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def attempt(self, name: str) -> Attempt | None:
        """One attempt; None if nothing of it can be read."""
        return read_attempt(f"{self.path}/{name}", self.alive or self._goes_on(name))

    def _entries(self) -> list[str]:
        """Of its jobs that go on, or wait, without Snakemake: ..staged."""
        name = os.path.basename(self.path)
        with suppress(OSError):
            return [entry for entry in os.listdir(_adoptable(self.path)) if entry.startswith(f"{name}.")]
        return []

    def _goes_on(self, name: str) -> bool:
        entry = load(f"{_adoptable(self.path)}/{os.path.basename(self.path)}.{name}")
        return entry is not None and is_alive(entry)


def _adoptable(run: str) -> str:
    return f"{os.path.dirname(os.path.dirname(run))}/{ADOPTABLE}"


def state_directory(workdir: str) -> str:
    """Where the records of ``workdir`` are.

    Raises:
        UsageError: if Forge has never run there.

    """
    path = os.path.join(os.path.abspath(workdir), ".snakemake", "forge")
    if not os.path.isdir(path):
        raise UsageError(
            f"There is no record of Forge in {os.path.abspath(workdir)} (no {path}). "
            "Name the directory in which snakemake --executor forge was run with --directory DIR."
        )
    return path


def run_directories(state: str, without: Iterable[str] = ()) -> Iterator[RunDirectory]:
    """The runs of a state directory, oldest first, but for those whose names are in ``without``."""
    runs, known = f"{state}/runs", set(without)
    for name in sorted(os.listdir(runs)) if os.path.isdir(runs) else []:
        if name not in known and os.path.isdir(f"{runs}/{name}"):
            yield read_run(f"{runs}/{name}")


def read_run(path: str) -> RunDirectory:
    """One run."""
    record = load(f"{path}/{RUN}") or {}
    return RunDirectory(path, record, is_alive(record))


def read_attempt(directory: str, alive: bool) -> Attempt | None:
    """What a job directory says; None if it says nothing.

    Args:
        alive: whether its run is: an attempt without a verdict is then running, else lost.

    """
    verdict = load(f"{directory}/{VERDICT}")
    if verdict is not None:
        return Attempt(verdict | {"directory": directory})
    spec = load(f"{directory}/{SPEC}")
    if spec is None:
        return None
    reason = "still running" if alive else "lost: no verdict was written, and the run that started it is over"
    seconds = (time.time() if alive else _last_sign(directory)) - datetime.fromisoformat(spec["created"]).timestamp()
    record = {key: spec[key] for key in ("rule", "wildcards", "attempt", "limits", "isolation", "runtime", "backend")}
    return Attempt(
        record
        | {
            "retry": spec.get("retry", 0),
            "retry_of": spec.get("retry_of"),
            "outcome": RUNNING if alive else "lost",
            "reason": reason,
            "exit_code": None,
            "signal": None,
            "started": spec["created"],
            "seconds": round(max(0.0, seconds), 3),
            "usage": {},
            "undeclared_writes": [],
            "undeclared_reads": None,
            "notes": [],
            "staged": False,
            "adopted": None,
            "discarded": None,
            "process": spec.get("process") if alive else None,
            "directory": directory,
        }
    )


def _last_sign(directory: str) -> float:
    """When the newest of a lost job's files was written: for so long it has run at least. Of the epoch, in seconds."""
    with suppress(OSError), os.scandir(directory) as entries:
        return max((entry.stat().st_mtime for entry in entries), default=0.0)
    return 0.0


def is_alive(run: dict[str, Any]) -> bool:
    """Whether the Snakemake that wrote ``run.json`` still lives: same boot, same process, same start."""
    if not run or run.get("ended"):
        return False
    try:
        return lives(int(run["pid"]), int(run["start_time"]), str(run["boot_id"]))
    except (ValueError, TypeError, KeyError):
        return False


def save_run(directory: str, record: dict[str, Any]) -> None:
    """Replace the ``run.json`` of a run that is over.

    Raises:
        OSError: if it cannot be written.

    """
    replace_file(f"{directory}/{RUN}", json.dumps(record, indent=1))
