"""A reader of job directories: one run, one attempt at a time. record/index.py keeps the results.

It ignores damaged files, because a crash may leave a partial directory.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..spec.errors import UsageError
from ..spec.paths import STATE
from . import sound
from .identity import lives, process_number
from .jsonfile import ADOPTABLE, CLOSED, LEFT, SPEC, VERDICT, load, read_object, replace_file
from .origin import is_believed

RUNNING = "running"
_OF_THE_SPEC = (
    *("rule", "wildcards", "attempt", "retry", "retry_of", "submitted", "limits", "isolation", "runtime", "backend"),
    *("declared_at", "by_default", "threads_asked", "slurm_job"),
)
_NAME = re.compile(r"\d{5,}-(.+?)(?:\.copy\d+)?(?:\.submission\d+)?")
"""The name of a job directory: spec/plan.py, and of a copy on Slurm: backends/slurm/."""
_UNDESCRIBED = (
    "it has no spec.json, because Forge's processes were killed or the host crashed before that was written. The name "
    "of the directory tells its rule; its wildcards are not known"
)
RUN = "run.json"
SETTLED_SECONDS = 600.0
"""Seconds after the death of a run in which its last supervisors may still write a verdict; far more than they need."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A run: its ``run.json`` and whether its Snakemake is alive."""

    path: str
    record: dict[str, Any]
    alive: bool

    @property
    def over(self) -> bool:
        """Whether the run is final."""
        if self.alive or self._has_adoptable():
            return False
        if self.record.get("ended") and not os.path.exists(f"{self.path}/{LEFT}"):
            return True
        if os.path.isdir(os.path.dirname(f"{self.path}/{CLOSED}")):  # jobs on nodes continue without Snakemake
            return os.path.exists(f"{self.path}/{CLOSED}")
        try:
            changed = max(os.stat(self.path).st_mtime, os.stat(f"{self.path}/{RUN}").st_mtime)
        except OSError:
            changed = os.stat(self.path).st_mtime if os.path.isdir(self.path) else 0.0
        return time.time() - changed > SETTLED_SECONDS

    def names(self) -> Iterator[str]:
        """The names of its job directories, in arbitrary order."""
        with os.scandir(self.path) as entries:
            yield from (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def attempt(self, name: str) -> dict[str, Any] | None:
        """The record of one attempt: its verdict, or the known facts without one; None if it cannot be read."""
        entry = load(f"{self._adoptable}/{os.path.basename(self.path)}.{name}")
        return read_attempt(f"{self.path}/{name}", self.alive or (entry is not None and is_alive(entry)))

    @property
    def _adoptable(self) -> str:
        """The directory with an entry for each job that runs, or waits, without Snakemake: staging/pending.py."""
        return f"{os.path.dirname(os.path.dirname(self.path))}/{ADOPTABLE}"

    def _has_adoptable(self) -> bool:
        name = os.path.basename(self.path)
        with suppress(OSError):
            return any(entry.startswith(f"{name}.") for entry in os.listdir(self._adoptable))
        return False


def state_directory(workdir: str) -> str:
    """The state directory of ``workdir``.

    Raises:
        UsageError: if Forge has never run there, or if this is a process of a job, which sees only its own record.
    """
    path = os.path.join(os.path.abspath(workdir), STATE)
    if not os.path.isdir(path):
        if not os.path.isdir(workdir):
            raise UsageError(f"There is no directory {os.path.abspath(workdir)}.")
        raise UsageError(
            f"There is no record of Forge in {os.path.abspath(workdir)} (no {path}). "
            "Name the directory in which snakemake --executor forge was run with --directory DIR."
        )
    if not is_believed(os.path.realpath(path)):
        raise UsageError(
            f"{path} is ignored: Forge has not made it. It is inside another working directory, so that a job may have "
            "left it. If you have put it there yourself, move its directory elsewhere; else remove it."
        )
    if f"{path}/runs/" in os.environ.get("FORGE_JOB_DIR", "") and os.path.ismount(f"{path}/runs"):
        raise UsageError(
            "A job sees no records but its own. If a rule shall read all of them, add to it: "
            'resources: forge_files="open"'
        )
    return path


def run_directories(state: str, without: Iterable[str] = ()) -> Iterator[RunDirectory]:
    """The runs of a state directory, oldest first, except the names in ``without``."""
    runs, known = f"{state}/runs", set(without)
    for name in sorted(os.listdir(runs)) if os.path.isdir(runs) else []:
        if name not in known and os.path.isdir(f"{runs}/{name}"):
            yield read_run(f"{runs}/{name}")


def read_run(path: str) -> RunDirectory:
    """One run."""
    found = load(f"{path}/{RUN}")
    record = {} if found is None else sound.run(found) | {"run": os.path.basename(path)}
    return RunDirectory(path, record, is_alive(record))


def living_run(state: str, pid: int) -> dict[str, Any] | None:
    """The ``run.json`` of the run that the Snakemake ``pid`` leads. The names of runs have the pid in them.

    Raises:
        OSError: if there are no runs.
    """
    for name in sorted(os.listdir(f"{state}/runs"), reverse=True):
        if f"-{pid}-" in name:
            run = read_run(f"{state}/runs/{name}")
            if run.alive and run.record.get("pid") == pid:
                return run.record
    return None


def read_attempt(directory: str, alive: bool) -> dict[str, Any] | None:
    """Read the record of a job directory; None if it has only just been made, or is none.

    Args:
        alive: whether its run is alive: an attempt without a verdict is then running, otherwise lost.
    """
    problems: list[str] = []
    found = _read(f"{directory}/{VERDICT}", problems)
    if found is not None:
        verdict = sound.verdict(found)
        told = sound.damage(verdict, f"{directory}/{VERDICT}")
        return verdict | {"directory": directory, "notes": [*verdict["notes"], *([told] if told else [])]}
    described = _read(f"{directory}/{SPEC}", problems)
    if described is None:
        described = _told_by_name(directory)
        if not problems:
            if alive or not described:
                return None
            problems.append(_UNDESCRIBED)
    spec = sound.spec(described)
    problems += filter(None, [sound.damage(spec, f"{directory}/{SPEC}")])
    reason = "still running" if alive else "lost: no verdict was written, and the run that started it is over"
    if problems and not alive:
        reason = f"lost: {'; '.join(problems)}"
    seconds = (time.time() if alive else _last_sign(directory)) - datetime.fromisoformat(spec["created"]).timestamp()
    record = {key: spec[key] for key in _OF_THE_SPEC}
    return record | {
        "outcome": RUNNING if alive else "lost",
        "reason": reason,
        "happened": reason,
        "remedy": "",
        **dict.fromkeys(("cause", "ended_by", "error")),
        "evidence": {},
        "outputs": [],
        "refusals": [],
        "exit_code": None,
        "signal": None,
        "started": spec["created"],
        "seconds": round(max(0.0, seconds), 3),
        "usage": {},
        "undeclared_writes": [],
        "undeclared_reads": None,
        "notes": problems if alive else [],
        "staged": False,
        "adopted": None,
        "discarded": None,
        "process": spec["process"] if alive else None,
        "directory": directory,
    }


def _told_by_name(directory: str) -> dict[str, Any]:
    """The facts that a job directory tells without a spec.json that can be read; nothing if it is none."""
    named = _NAME.fullmatch(os.path.basename(directory))
    with suppress(OSError):
        made = datetime.fromtimestamp(os.stat(directory).st_mtime, UTC)
        return {"rule": named[1], "created": made.isoformat()} if named else {}
    return {}


def _read(path: str, problems: list[str]) -> dict[str, Any] | None:
    """Read a JSON object; None if there is none. Damage is added to ``problems``."""
    try:
        return read_object(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{path} cannot be read: {error}")
        return None


def _last_sign(directory: str) -> float:
    """The time of the newest file of a lost job, in seconds since the epoch: until then the job ran."""
    with suppress(OSError), os.scandir(directory) as entries:
        return max((entry.stat().st_mtime for entry in entries), default=0.0)
    return 0.0


def is_alive(run: dict[str, Any]) -> bool:
    """Whether the Snakemake that wrote ``run.json`` is alive: boot, process id and start time agree."""
    if not run or run.get("ended"):
        return False
    try:
        return lives(process_number(run["pid"]), int(run["start_time"]), str(run["boot_id"]))
    except (ValueError, TypeError, KeyError, OverflowError):
        return False


def run_outcome(run: dict[str, Any], outcomes: Collection[str]) -> str:
    """The end of a run in one word.

    Args:
        run: its ``run.json``.
        outcomes: those of the last attempts of its jobs.
    """
    if is_alive(run):
        return RUNNING
    if not run.get("ended") or run.get("declared_dead"):
        return "interrupted"
    if not outcomes:
        return "no jobs"
    return "succeeded" if set(outcomes) == {"succeeded"} else "failed"


def save_run(directory: str, record: dict[str, Any]) -> None:
    """Replace the ``run.json`` of a run that is over.

    Raises:
        OSError: if it cannot be written.
    """
    replace_file(f"{directory}/{RUN}", json.dumps(record, indent=1))
