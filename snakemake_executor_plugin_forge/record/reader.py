"""Reading the records again: every attempt of every run of a working directory, newest last."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..errors import UsageError
from .identity import boot_id, start_time
from .jobdir import SPEC, VERDICT

RUNNING = "running"


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


def read_attempts(workdir: str) -> list[Attempt]:
    """All attempts, oldest first. Damaged files are skipped over, never an error.

    Raises:
        UsageError: if Forge has never run there.

    """
    runs = os.path.join(state_directory(workdir), "runs")
    found = []
    for run in sorted(os.listdir(runs)) if os.path.isdir(runs) else []:
        run_dir = os.path.join(runs, run)
        alive = _is_alive(_load(os.path.join(run_dir, "run.json")))
        found += [a for a in (_attempt(e, alive) for e in _job_directories(run_dir)) if a is not None]
    return found


def _job_directories(run_dir: str) -> Iterator[str]:
    with os.scandir(run_dir) as entries:
        yield from sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))


def _attempt(directory: str, alive: bool) -> Attempt | None:
    verdict = _load(os.path.join(directory, VERDICT))
    if verdict is not None:
        return Attempt(verdict | {"directory": directory})
    spec = _load(os.path.join(directory, SPEC))
    if spec is None:
        return None
    reason = "still running" if alive else "lost: no verdict was written, and the run that started it is over"
    seconds = (time.time() - datetime.fromisoformat(spec["created"]).timestamp()) if alive else 0.0
    record = {key: spec[key] for key in ("rule", "wildcards", "attempt", "limits", "isolation", "runtime", "backend")}
    return Attempt(
        record
        | {
            "outcome": RUNNING if alive else "lost",
            "reason": reason,
            "exit_code": None,
            "signal": None,
            "started": spec["created"],
            "seconds": round(seconds, 3),
            "usage": {},
            "undeclared_writes": [],
            "undeclared_reads": None,
            "notes": [],
            "directory": directory,
        }
    )


def _is_alive(run: dict[str, Any] | None) -> bool:
    """Whether the Snakemake that wrote ``run.json`` still lives: same boot, same process, same start."""
    if run is None or run.get("ended"):
        return False
    try:
        return bool(run.get("boot_id") == boot_id() and run.get("start_time") == start_time(int(run["pid"])))
    except (OSError, ValueError, KeyError):
        return False


def _load(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
