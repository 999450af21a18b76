"""Requested resources of rules, compared with the use of their jobs, and better values. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..spec.units import MEBIBYTE

COLUMNS = (
    *("rule", "outcome", "seconds", "cpus", "cpu_seconds", "memory_peak_bytes", "memory_anon_peak_bytes"),
    *("threads_asked", "memory_limit_bytes", "wall_limit_seconds", "disk_limit_bytes"),
)
FEWEST_JOBS = 5
"""The number of succeeded jobs below which a rule gets no suggestion."""

_MEMORY_MARGIN, _MEMORY_REST_BYTES = 1.25, 16 * MEBIBYTE
_WALL_MARGIN = 2.0
_TENTATIVE = 2.0  # times the margins, where few jobs are known
_CACHE_SHARE = 0.9  # of its limit: a peak above it is most likely page cache, which the kernel would have freed
_GROWTH = 2
_SHORT_SECONDS = 1.0  # the CPU use of shorter jobs says nothing


@dataclass(frozen=True, slots=True)
class Spread:
    """The use of one resource over all succeeded attempts of all runs."""

    median: float
    p95: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The spread of values; None if there are none."""
        if not values:
            return None
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1], ordered[-1])


@dataclass(slots=True)
class _Seen:
    """The attempts of one rule."""

    succeeded: int = 0
    memory_bytes: list[int] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory_limit_bytes: int | None = None  # the newest
    cpus: int = 1
    wall_limit_seconds: float | None = None
    disk_limit_bytes: int | None = None
    ooms: int = 0
    oom_limit_bytes: int = 0
    timeouts: int = 0
    timeout_limit_seconds: float = 0.0
    disk_needed_bytes: int = 0  # more than this: the highest limit that a job reached
    disk_sufficed_bytes: int = 0  # the highest limit with which a job succeeded
    core_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Advice:
    """Advice for one rule. A suggestion is None where nothing should change or too little is known."""

    rule: str
    jobs: int  # that succeeded
    enough: bool
    ooms: int
    timeouts: int
    memory_limit_bytes: int | None
    memory_bytes: Spread | None
    cpus: int
    cores: Spread | None
    wall_limit_seconds: float | None
    seconds: Spread | None
    mem_mb: int | None
    threads: int | None
    runtime: int | None  # minutes
    disk_mb: int | None
    frees_memory_bytes: int  # of each job; negative: it needs more
    frees_memory_byte_seconds: float  # of all jobs on record
    frees_core_seconds: float
    tentative: Mapping[str, int]  # resources, from fewer jobs than a suggestion needs

    def resources(self) -> dict[str, int]:
        """The suggestions, as Snakemake's resources."""
        found = {"mem_mb": self.mem_mb, "runtime": self.runtime, "disk_mb": self.disk_mb}
        return {name: value for name, value in found.items() if value is not None}


def advise(
    rows: Iterable[Mapping[str, Any]], fewest: int = FEWEST_JOBS, run_memory_bytes: int | None = None
) -> list[Advice]:
    """Advise, rule by rule, in the order of their names.

    Args:
        rows: with :data:`COLUMNS`, oldest first.
        fewest: how many jobs must have succeeded for a suggestion.
        run_memory_bytes: what a run may use, which refuses a rule that asks for more.
    """
    seen: dict[str, _Seen] = {}
    for row in rows:
        _take(seen.setdefault(row["rule"], _Seen()), row)
    return [_conclude(rule, found, fewest, run_memory_bytes) for rule, found in sorted(seen.items())]


def memory_of_newest(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> int | None:
    """Return what the jobs of the newest run could use together, in bytes; None without such a limit, as on Slurm.

    Args:
        runs: names and ``run.json``, oldest first.
    """
    record = runs[-1][1] if runs else {}
    return int(record.get("memory_bytes") or 0) or None if record.get("backend", "local") == "local" else None


def _take(seen: _Seen, row: Mapping[str, Any]) -> None:
    limit, outcome = row["memory_limit_bytes"], row["outcome"]
    seen.memory_limit_bytes, seen.cpus = limit, row["cpus"] or 1
    seen.wall_limit_seconds, seen.disk_limit_bytes = row["wall_limit_seconds"], row["disk_limit_bytes"]
    match outcome:
        case "oom":
            seen.ooms += 1
            seen.oom_limit_bytes = max(seen.oom_limit_bytes, limit or 0)
        case "timeout":
            seen.timeouts += 1
            seen.timeout_limit_seconds = max(seen.timeout_limit_seconds, row["wall_limit_seconds"] or 0)
        case "disk" if row["disk_limit_bytes"]:  # else a file system was full
            seen.disk_needed_bytes = max(seen.disk_needed_bytes, row["disk_limit_bytes"])
        case "succeeded":
            peak, seconds = row["memory_peak_bytes"] or 0, row["seconds"]
            cached = limit is not None and peak > _CACHE_SHARE * limit
            seen.succeeded += 1
            seen.disk_sufficed_bytes = max(seen.disk_sufficed_bytes, row["disk_limit_bytes"] or 0)
            seen.memory_bytes.append((row["memory_anon_peak_bytes"] or 0) if cached else peak)
            seen.seconds.append(seconds)
            seen.core_seconds += seconds
            whole = row["threads_asked"] is not None and row["threads_asked"] <= seen.cpus  # not scaled to --cores
            if seconds >= _SHORT_SECONDS and whole:
                seen.cores.append((row["cpu_seconds"] or 0) / seconds)


def _conclude(rule: str, seen: _Seen, fewest: int, most_bytes: int | None) -> Advice:
    enough = seen.succeeded >= fewest
    memory, cores, seconds = (Spread.of(v) for v in (seen.memory_bytes, seen.cores, seen.seconds))
    mem_mb = _memory(seen, memory, enough, most_bytes)
    threads = _threads(seen, cores) if enough and len(seen.cores) >= fewest else None
    limit = seen.memory_limit_bytes
    freed = 0 if mem_mb is None or limit is None else limit - mem_mb * MEBIBYTE
    return Advice(
        **{name: getattr(seen, name) for name in ("ooms", "timeouts", "cpus", "memory_limit_bytes")},
        rule=rule,
        jobs=seen.succeeded,
        enough=enough,
        memory_bytes=memory,
        cores=cores,
        wall_limit_seconds=seen.wall_limit_seconds,
        seconds=seconds,
        mem_mb=mem_mb,
        threads=threads,
        runtime=_runtime(seen, seconds, enough),
        disk_mb=_disk(seen),
        frees_memory_bytes=freed,
        frees_memory_byte_seconds=freed * sum(seen.seconds),
        frees_core_seconds=0.0 if threads is None else (seen.cpus - threads) * seen.core_seconds,
        tentative={} if enough else _tentative(seen, memory, seconds, mem_mb),
    )


def _tentative(seen: _Seen, used: Spread | None, seconds: Spread | None, mem_mb: int | None) -> dict[str, int]:
    """Values from few jobs, with larger margins; only such that differ from the limits by a factor of two."""
    found = {}
    if used is not None and mem_mb is None and not seen.oom_limit_bytes:
        wanted = used.most * _MEMORY_MARGIN * _TENTATIVE + _MEMORY_REST_BYTES
        found["mem_mb"] = (round_up(wanted / MEBIBYTE), (seen.memory_limit_bytes or 0) / MEBIBYTE)
    if seconds is not None and not seen.timeouts:
        minutes = round_up(seconds.most * _WALL_MARGIN * _TENTATIVE / 60)
        found["runtime"] = (minutes, (seen.wall_limit_seconds or 0) / 60)
    return {name: value for name, (value, limit) in found.items() if limit and not limit / 2 < value < limit * 2}


def _memory(seen: _Seen, used: Spread | None, enough: bool, most_bytes: int | None) -> int | None:
    """MB of 1024² bytes that suffice for every job on record."""
    after_oom = seen.oom_limit_bytes * _GROWTH
    limit = seen.memory_limit_bytes or 0
    wanted = 0.0 if used is None else used.most * _MEMORY_MARGIN + _MEMORY_REST_BYTES
    if seen.oom_limit_bytes and (seen.oom_limit_bytes >= limit or wanted <= seen.oom_limit_bytes):
        wanted = max(wanted, after_oom)  # their need is unknown: no attempt with more memory is on record
    elif not enough or used is None:
        return None
    megabytes = round_up(wanted / MEBIBYTE)
    if most_bytes is not None:
        megabytes = min(megabytes, most_bytes // MEBIBYTE)
    return None if megabytes * MEBIBYTE == limit else megabytes


def _threads(seen: _Seen, cores: Spread | None) -> int | None:
    """Fewer threads, where not even the busiest job used more than half of them."""
    if cores is None or seen.cpus == 1 or cores.most > seen.cpus / 2:
        return None
    return max(1, math.ceil(cores.most))


def _runtime(seen: _Seen, seconds: Spread | None, enough: bool) -> int | None:
    limit = seen.wall_limit_seconds
    if seen.timeouts and (seconds is None or seconds.most <= seen.timeout_limit_seconds):
        return round_up(seen.timeout_limit_seconds * _GROWTH / 60)
    if limit is None or seconds is None or not enough:
        return None
    minutes = round_up(seconds.most * _WALL_MARGIN / 60)
    return None if minutes * 60 == limit else minutes


def _disk(seen: _Seen) -> int | None:
    """More disk after a job that needed more. Never less: disk_mb also limits single files of unknown sizes."""
    limit, needed = seen.disk_limit_bytes, seen.disk_needed_bytes
    if limit is None or not needed or (limit > needed and seen.disk_sufficed_bytes > needed):  # raised since
        return None
    return round_up(max(limit, needed) * _GROWTH / MEBIBYTE)


def round_up(value: float) -> int:
    """Round up to two significant digits: 213 becomes 220, 21.3 becomes 22, 0.2 becomes 1."""
    whole = max(1, math.ceil(value))
    step = int(10 ** max(0, len(str(whole)) - 2))
    return math.ceil(whole / step) * step


def profile_block(advice: Iterable[Advice]) -> str:
    """The block for ``config.yaml`` of a profile; "" without a suggestion."""
    found = list(advice)
    resources = [
        f"  {item.rule}: {{{', '.join(f'{k}: {v}' for k, v in item.resources().items())}}}"
        for item in found
        if item.resources()
    ]
    threads = [f"  {item.rule}: {item.threads}" for item in found if item.threads is not None]
    few = [
        f"#   {item.rule}: {{{', '.join(f'{k}: {v}' for k, v in item.tentative.items())}}}  # {item.jobs} job(s)"
        for item in found
        if item.tentative
    ]
    parts = [
        *(["set-resources:", *resources] if resources else []),
        *(["set-threads:", *threads] if threads else []),
        *(["# Tentative, from few jobs:", "# set-resources:", *few] if few else []),
    ]
    return "".join(f"{line}\n" for line in parts)
