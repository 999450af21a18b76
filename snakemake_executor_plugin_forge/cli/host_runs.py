"""The runs of this host side by side, as rows and as JSON: for ``top --all`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from ..analysis.host_runs import HostRun
from ..spec.units import show_bytes

HEADER = ("PID", "USER", "JOBS", "MEMORY", "PEAK", "PROCESSES", "CPUS", "CPU SHARE", "DIRECTORY")
LESS = ("PEAK", "USER", "PROCESSES", "CPU SHARE", "PID", "CPUS")
MEMORY = HEADER.index("MEMORY")
NONE = "No run of Forge that this user may see is active on this host."


def as_rows(runs: Sequence[HostRun], cores: Mapping[str, float]) -> list[tuple[str, ...]]:
    """The cells of each run, under :data:`HEADER`.

    Args:
        cores: in use, by run; of those without an entry, the mean since their start is shown.
    """
    weights = sum(run.usage.cpu_weight or 0 for run in runs)
    return [_cells(run, weights, cores.get(run.name)) for run in runs]


def _cells(run: HostRun, weights: int, cores: float | None) -> tuple[str, ...]:
    usage = run.usage
    if cores is None and usage.cpu_seconds is not None:
        cores = usage.cpu_seconds / run.seconds
    return (
        str(run.record.get("pid")),
        run.user,
        _jobs(run),
        _of(usage.memory_bytes, usage.memory_limit_bytes, show_bytes),
        "-" if usage.memory_peak_bytes is None else show_bytes(usage.memory_peak_bytes),
        _of(usage.processes, usage.processes_limit, str),
        f"{'-' if cores is None else f'{cores:.1f}'} of {run.record.get('cores') or '-'}",
        "-" if usage.cpu_weight is None else f"{usage.cpu_weight / weights:.0%}",
        run.directory,
    )


def _jobs(run: HostRun) -> str:
    progress = run.progress
    if progress is None:
        return "-"
    failed = f", {progress.failed} failed" if progress.failed else ""
    return f"{progress.running} running, {progress.done} of {progress.total} done{failed}"


def _of(used: int | None, limit: int | None, show: Callable[[int], str]) -> str:
    if used is None:
        return "-"
    return f"{show(used)} of {show(limit)}" if limit is not None else show(used)


def share_of_memory(run: HostRun) -> float:
    """The part of its memory that a run uses, from 0 to 1; 0 without a limit."""
    usage = run.usage
    return (usage.memory_bytes or 0) / usage.memory_limit_bytes if usage.memory_limit_bytes else 0.0


def as_json(runs: Sequence[HostRun]) -> list[dict[str, object]]:
    """The list ``runs`` of ``doctor --json``: docs/reference/doctor.md has its fields."""
    return [
        {
            "run": run.name,
            "directory": run.directory,
            "user": run.user,
            **{name: run.record.get(name) for name in ("pid", "started", "cores")},
            "jobs": None if (found := run.progress) is None else {
                "running": found.running, "done": found.done, "failed": found.failed, "pending": found.pending,
            },
            **asdict(run.usage),
        }
        for run in runs
    ]  # fmt: skip
