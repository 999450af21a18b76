"""What a job has used, as Slurm's accounting tells it. Pure: text in, values out.

For jobs that left no figures of their own. MaxRSS is sampled (JobAcctGatherFrequency) and is blank or too small for
short jobs and those that were killed for memory: sacct(1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from ..model import Usage

USAGE_FORMAT = "JobID,ElapsedRaw,Start,UserCPU,SystemCPU,TotalCPU,MaxRSS,MaxDiskRead,MaxDiskWrite"
USAGE_TIME_FORMAT = "%s"
"""SLURM_TIME_FORMAT of that call: seconds since 1970, where other forms are the local time of that host."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


@dataclass(frozen=True, slots=True)
class Used:
    """One job."""

    usage: Usage
    started: str  # ISO 8601, UTC; "" if it is not known
    seconds: float


def parse_usage(text: str) -> dict[str, Used]:
    """By job id (12, or 12_3 in an array), of the output of ``sacct --parsable2 --noheader --duplicates``.

    A job is one line, and one more for each of its steps, of which the batch script is one; a requeued job is there
    several times, and its newest one counts.
    """
    jobs: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != len(USAGE_FORMAT.split(",")):
            continue
        job_id, dot, _ = fields[0].partition(".")
        if not dot:
            jobs[job_id] = []
        jobs.setdefault(job_id, []).append(fields)
    return {job_id: _used(lines) for job_id, lines in jobs.items()}


def _used(lines: list[list[str]]) -> Used:
    """Of a job, whose first line is its sum where Slurm makes one."""
    steps = lines[1:] or lines
    memory = max(_bytes(fields[6]) for fields in lines)
    user, system, total = (max(_seconds(lines[0][n]), sum(_seconds(f[n]) for f in steps)) for n in (3, 4, 5))
    start = lines[0][2]
    return Used(
        usage=Usage(
            memory_peak_bytes=memory,
            memory_anon_peak_bytes=memory,
            cpu_seconds=max(total, user + system),
            cpu_user_seconds=user,
            cpu_system_seconds=system,
            io_read_bytes=sum(_bytes(fields[7]) for fields in steps),
            io_write_bytes=sum(_bytes(fields[8]) for fields in steps),
        ),
        started=datetime.fromtimestamp(int(start), UTC).isoformat() if start.isdigit() and int(start) else "",
        seconds=float(lines[0][1]) if lines[0][1].isdigit() else 0.0,
    )


def _bytes(text: str) -> int:
    """``1234K``, ``1.50M``, ``0``, or nothing."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)", text)
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0


def _seconds(text: str) -> float:
    """``01:02.345``, ``1:01:02``, ``2-03:04:05``, or nothing."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+(?:\.\d+)?)", text)
    if match is None:
        return 0.0
    days, hours, minutes, seconds = match.groups(default="0")
    return ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + float(seconds)
