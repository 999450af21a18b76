"""The output of Slurm's commands as values. Pure.

Forge asks for tables with a separator: squeue and scontrol of 22.05 have no JSON in Debian's packages, and its form
changes between versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ...spec.paths import run_name
from ...spec.slurm import minutes_of
from ...spec.verdict import Usage
from .states import TABLE, SlurmState, parse_state

SQUEUE_FORMAT = "%A|%F|%K|%T|%r|%V|%N|%j"
"""Job id, array id, index, state, reason, time of submission, nodes, name: the only free text is at the end."""

SACCT_FORMAT = "JobIDRaw,JobID,State,Submit,NodeList,JobName"


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One job in the answer to a query."""

    job_id: str  # as scancel takes it: 12, or 12_3 in an array
    name: str
    index: int  # in its array; 0 without one
    state: SlurmState | None  # None: one that Forge does not know
    state_text: str
    reason: str
    nodes: str

    @property
    def key(self) -> tuple[str, int]:
        """The name of the job for all time: Slurm may give an id twice, after a crash of the controller."""
        return own_name(self.name), self.index

    @property
    def ended(self) -> bool:
        """Whether Slurm says that the job is over; an unknown state is taken for alive."""
        return self.state is not None and TABLE[self.state].outcome is not None

    @property
    def held(self) -> bool:
        """Whether the job waits for somebody to release it."""
        if self.state is None:
            return False
        return TABLE[self.state].held or (self.state is SlurmState.PENDING and "held" in self.reason.lower())

    @property
    def barred(self) -> bool:
        """Whether Slurm does not start the job as it is, however long it waits."""
        return self.state is SlurmState.PENDING and _BARRED.fullmatch(self.reason) is not None


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """The facts that Forge needs from ``scontrol show config``."""

    name: str
    version: str
    max_array: int  # the largest number of tasks in an array
    accounting: bool


def own_name(name: str) -> str:
    """The name that Forge gave to a Slurm job, without the prefix of ``--forge-slurm-job-prefix``."""
    return name[max(0, name.rfind(run_name(""))) :]


_BARRED = re.compile(r"Partition(Node|Time)Limit|BadConstraints|Invalid(Account|QOS)|DependencyNeverSatisfied"
                     r"|(QOS|Account)NotAllowed|(QOS|Assoc)Max\w+Per(Job|Node)\w*|QOSMin\w+")  # fmt: skip
"""Reasons for which a job waits without end where sbatch has not refused it: squeue(1), EnforcePartLimits."""

_INDEXES = re.compile(r"R(-R(:R)?)?(,R(-R(:R)?)?)*(%R)?".replace("R", "[0-9]{1,9}"))
_MOST_INDEXES = 1_000_000
_SECONDS = re.compile(r"(?:(?:([0-9]{1,6})-)?([0-9]{1,6}):)?([0-9]{1,6}):([0-9]{1,6}(?:\.[0-9]{1,9})?)")


def parse_squeue(text: str) -> list[QueueRow]:
    """The rows of ``squeue --noheader --array --format SQUEUE_FORMAT``; other lines are left out."""
    rows: list[QueueRow] = []
    for line in text.splitlines():
        fields = line.split("|", 7)
        if len(fields) != 8 or not _is_number(fields[0]):
            continue
        job_id, array_id, indexes, state, reason, _, nodes, name = fields
        for index in _indexes(indexes):
            own_id = job_id if index is None else f"{array_id}_{index}"
            rows.append(QueueRow(own_id, name, index or 0, parse_state(state), state, reason, nodes))
    return rows


def parse_sacct(text: str) -> list[QueueRow]:
    """The rows of ``sacct --parsable2 --noheader --allocations --duplicates --format SACCT_FORMAT``."""
    rows: list[QueueRow] = []
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) != 6 or not _is_number(fields[0]):
            continue
        _, job_id, state, _, nodes, name = fields
        _, _, index = job_id.partition("_")
        for number in _indexes(index.strip("[]") or "N/A"):
            own_id = job_id if number is None else f"{job_id.partition('_')[0]}_{number}"
            rows.append(QueueRow(own_id, name, number or 0, parse_state(state), state, "", nodes))
    return rows


def _indexes(text: str) -> Iterator[int | None]:
    """The indexes in ``7``, ``0-3,5`` or ``0-9:2%4``; one None for ``N/A``, a job without an array."""
    if not _INDEXES.fullmatch(text):
        yield None
        return
    for part in text.partition("%")[0].split(","):
        first, _, rest = part.partition("-")
        last, _, step = rest.partition(":")
        yield from range(int(first), int(last or first) + 1, max(1, int(step or 1)))[:_MOST_INDEXES]


def parse_config(text: str) -> ClusterFacts | None:
    """The facts in the output of ``scontrol show config``; None if it is no configuration."""
    values = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            values[key.strip()] = value.strip()
    if "SLURM_VERSION" not in values:
        return None
    return ClusterFacts(
        name=values.get("ClusterName", ""),
        version=values["SLURM_VERSION"],
        max_array=max(1, _max_array(values)),
        accounting=values.get("AccountingStorageType", "accounting_storage/none") not in
        ("accounting_storage/none", "(null)", ""),
    )  # fmt: skip


def _max_array(values: Mapping[str, str]) -> int:
    """The largest number of tasks: indexes are below MaxArraySize, and max_array_tasks counts them: slurm.conf(5)."""
    size = _first_number(values.get("MaxArraySize", ""), 1001) - 1
    tasks = re.search(r"(?:^|,)max_array_tasks=([0-9]{1,9})", values.get("SchedulerParameters", ""))
    return size if tasks is None else min(size, int(tasks[1]))


def _first_number(text: str, default: int) -> int:
    match = re.match(r"[0-9]{1,9}", text)
    return int(match[0]) if match else default


def parse_submission(text: str) -> str | None:
    """The id in the output of ``sbatch --parsable``, "12" or "12;cluster"; None if there is none.

    Some sites wrap sbatch in a script that prints greetings first.
    """
    for line in reversed(text.splitlines()):
        if match := re.fullmatch(r"([0-9]+)(;\S+)?", line.strip()):
            return match[1]
    return None


_UNREACHABLE = (
    "Unable to contact slurm controller", "Socket timed out", "Connection refused", "Connection timed out",
    "Unable to establish controller machine", "Zero Bytes were transmitted", "Communication connection failure",
    "Slurm temporarily unable to accept job", "Resource temporarily unavailable", "Transport endpoint is not connected",
    "slurm_persist_conn", "Header lengths are longer than data received", "Address already in use",
    "system call interrupted", "Job/step already completing or completed",
)  # fmt: skip


def is_outage(message: str) -> bool:
    """Whether a command failed because the controller did not answer or was busy."""
    lowered = message.lower()
    return any(text.lower() in lowered for text in _UNREACHABLE)


NODES_FORMAT = "%R|%l|%c|%m|%G|%f"
"""The format for sinfo --Node: partition, its time limit, a node's CPUs, MB of memory, generic resources, features."""


def parse_nodes(text: str) -> dict[str, dict[str, object]]:
    """The limits of each partition, as ``--forge-slurm-partitions`` reads them: what its largest node has."""
    found: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 6:
            continue
        name, time, cpus, memory, resources, features = fields
        limits = found.setdefault(name, {"max_threads": 0, "max_mem_mb": 0, "max_gpu": 0})
        if (minutes := minutes_of(time)) is not None:  # else infinite
            limits["max_runtime"] = minutes
        gpus = re.findall(r"(?:^|,)gpu(?::([A-Za-z][\w.-]*))?:([0-9]{1,6})", resources)
        numbers = {"max_threads": _first_number(cpus, 0), "max_mem_mb": _first_number(memory, 0)}
        numbers["max_gpu"] = sum(int(count) for _, count in gpus)
        limits |= {key: max(limits[key], value) for key, value in numbers.items()}
        lists = {"available_gpu_models": {model for model, _ in gpus if model}}
        lists["available_constraints"] = set() if features == "(null)" else set(features.split(","))
        for key, names in lists.items():
            if names:
                limits[key] = sorted({*limits.get(key, ()), *names})
    return {name: dict(sorted(limits.items())) for name, limits in sorted(found.items())}


_FULL = re.compile(r"(QOS|Assoc)\w*Submit\w*Limit|MaxSubmitJob|[Jj]ob submit limit(?!, user's size)"
                   "|temporarily unable to accept job|job queue full")  # fmt: skip
"""Limits to the number of jobs that a user may have in the queue; names of slurm_errno.c and of job_state_reason.

The last two are what sbatch says while the cluster has MaxJobCount jobs: sbatch.c.
"""


def is_full(message: str) -> bool:
    """Whether sbatch refused a job only because too many are in the queue."""
    return _FULL.search(message) is not None


def refusal(message: str) -> str:
    """The reason in sbatch's error messages, in one line."""
    lines = [line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in message.splitlines()]
    lines = [line for line in lines if line]
    first = [line for line in lines if not line.startswith("Batch job submission failed")]
    return "; ".join(dict.fromkeys([*first, *lines[-1:]])) or "it gave no reason"


USAGE_FORMAT = "JobID,ElapsedRaw,Start,UserCPU,SystemCPU,TotalCPU,MaxRSS,MaxDiskRead,MaxDiskWrite"
USAGE_TIME_FORMAT = "%s"
"""SLURM_TIME_FORMAT for sacct: seconds since 1970, where other forms are the local time of that host."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


@dataclass(frozen=True, slots=True)
class Used:
    """The usage of one job, by Slurm's accounting."""

    usage: Usage
    started: str  # ISO 8601, UTC; "" if it is not known
    seconds: float


def parse_usage(text: str) -> dict[str, Used]:
    """Usage by job id (12, or 12_3 in an array), from ``sacct --parsable2 --noheader --duplicates``.

    A job has one line, and one more for each of its steps, such as the batch script. A requeued job appears several
    times, and the newest one counts.
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
    """The usage of a job, whose first line is its sum where Slurm makes one."""
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
        started=datetime.fromtimestamp(int(start), UTC).isoformat() if _is_number(start) and int(start) else "",
        seconds=float(lines[0][1]) if _is_number(lines[0][1]) else 0.0,
    )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,11}", text) is not None


def _bytes(text: str) -> int:
    """Bytes in ``1234K``, ``1.50M`` or ``0``; 0 for any other text."""
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)([KMGTP]?)", text)
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0


def _seconds(text: str) -> float:
    """Seconds in ``01:02.345``, ``1:01:02`` or ``2-03:04:05``; 0 for any other text."""
    match = _SECONDS.fullmatch(text)
    if match is None:
        return 0.0
    days, hours, minutes, seconds = match.groups(default="0")
    return ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + float(seconds)
