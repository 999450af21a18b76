"""The nouns of Forge: frozen values that pass between its parts. Nothing here does anything.

Units are in the names: ``*_bytes``, ``*_seconds``. ``None`` as a limit means "not limited by this job's own
declaration" (the limits of the run still hold).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

RECORD_SCHEMA = 1
"""Version of the JSON in ``spec.json``, ``verdict.json`` and ``events.jsonl``; see docs/reference/record.md."""


class Outcome(enum.StrEnum):
    """How an attempt ended. The strings are those of the JSON."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OOM = "oom"
    TIMEOUT = "timeout"
    PIDS = "pids"
    DISK = "disk"
    VIOLATION = "violation"
    CANCELLED = "cancelled"
    LOST = "lost"


class OomScope(enum.StrEnum):
    """Whose memory limit made the kernel kill a process of a job."""

    JOB = "job"
    RUN = "run"
    OUTSIDE = "outside"  # the host ran out of memory, or a cgroup around the run reached its limit


class CpuMode(enum.StrEnum):
    """What ``threads`` means to the kernel: a hard cap, a weight among the jobs, or nothing."""

    CAP = "cap"
    SHARE = "share"
    OFF = "off"


class Network(enum.StrEnum):
    """Whether a job sees the host's network (``on``) or only a loopback of its own (``off``)."""

    ON = "on"
    OFF = "off"


class KeepScratch(enum.StrEnum):
    """Whose scratch directories stay after the end of an attempt."""

    NEVER = "never"
    FAILED = "failed"
    ALWAYS = "always"


class Require(enum.StrEnum):
    """The isolation below which Forge refuses to start."""

    NONE = "none"
    LIMITS = "limits"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel lets one job have."""

    memory_bytes: int | None
    cpus: int
    pids: int | None
    wall_seconds: float | None
    disk_bytes: int | None = None
    gpus: tuple[int, ...] = ()  # the numbers in the names of its devices

    def as_json(self) -> dict[str, object]:
        """The ``limits`` object of the record."""
        return {
            "memory_bytes": self.memory_bytes,
            "cpus": self.cpus,
            "pids": self.pids,
            "seconds": self.wall_seconds,
            "disk_bytes": self.disk_bytes,
            "gpus": list(self.gpus),
        }


@dataclass(frozen=True, slots=True)
class Isolation:
    """The isolation that a job really got, for the record and for the line at the start of a run."""

    limits: str  # "cgroup-v2", "cgroup-v1" or "soft"
    files: str  # the file policy in force
    mechanisms: tuple[str, ...]
    network: Network
    not_enforced: tuple[str, ...] = ()  # of "memory", "cpu", "run"

    def as_json(self) -> dict[str, object]:
        """The ``isolation`` object of the record."""
        return {
            "limits": self.limits,
            "files": self.files,
            "mechanisms": list(self.mechanisms),
            "network": str(self.network),
            "not_enforced": list(self.not_enforced),
        }


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What Snakemake wants done, in Forge's words. Built by the executor, decided upon by the plan."""

    rule: str
    wildcards: Mapping[str, str]
    attempt: int
    threads: int
    resources: Mapping[str, object]
    command: str | None  # the rendered shell command, where the rule has one
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    benchmark: str | None = None  # the file of a rule's benchmark:
    linked: tuple[str, ...] = ()  # where symbolic links on the way to those lead
    interactive: bool = False  # --debug and --edit-notebook need the terminal


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a run, checked and in the units of the kernel. See settings.py for the flags."""

    require: Require = Require.NONE
    cpu: CpuMode = CpuMode.CAP
    network: Network = Network.ON
    keep_scratch: KeepScratch = KeepScratch.NEVER
    scratch_dir: str | None = None
    memory_bytes: int | None = None
    pids: int | None = 4096
    wall_seconds: float | None = None
    grace_seconds: float = 10.0
    run_memory: str = "90%"
    run_pids: int | None = 16384
    gpus: tuple[str, ...] | None = None  # device nodes; None: those that are found


@dataclass(frozen=True, slots=True)
class Rung:
    """One place of the ladder that was tried."""

    name: str  # such as "systemd scope"; docs/reference/doctor.md lists them
    refusal: str | None  # None: it was taken

    def as_json(self) -> dict[str, object]:
        """For ``snakemake-forge doctor --json``."""
        return {"rung": self.name, "refusal": self.refusal}


@dataclass(frozen=True, slots=True)
class Host:
    """What this host has and lets Forge do, as probed once at the start of the run."""

    run_memory_bytes: int  # what all jobs together may use of its memory: --forge-run-memory
    cpus: int
    cgroup: str  # "cgroup-v2", "cgroup-v1" or "soft"
    cgroup_note: str  # where, or why not
    namespaces: str  # "root", "user" or "none"
    namespaces_note: str  # why not
    mechanisms: tuple[str, ...]
    gpus: tuple[str, ...] = ()  # device nodes that this run may give to its jobs
    tried: tuple[Rung, ...] = ()  # in their order, up to the one that was taken
    not_enforced: tuple[str, ...] = ()  # see Isolation


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all jobs of a run share."""

    run_id: str
    workdir: str
    state_dir: str  # <workdir>/.snakemake/forge
    exposed: tuple[str, ...]  # paths that must stay visible although they lie below a private directory


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything that the supervisor needs to run one attempt. Decided by plan.py; carried out by supervisor.py."""

    name: str  # unique in the run; names the cgroup, the scratch and the job directory
    rule: str
    wildcards: Mapping[str, str]
    attempt: int
    command: str | None
    by_hand: str  # shell text that runs the same job by hand
    how: str  # "launcher", "nursery" or "inner snakemake", with the reason
    limits: Limits
    cpu_mode: CpuMode
    network: Network
    grace_seconds: float
    keep_scratch: KeepScratch
    workdir: str
    job_dir: str
    scratch_base: str
    exposed: tuple[str, ...]
    carried: tuple[str, ...]  # outputs that lie directly in a private directory: moved out after success
    environment: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    isolation: Isolation
    benchmark: str | None = None
    runtime: str = "host"
    backend: str = "local"
    interactive: bool = False
    gpu_count: int = 0  # how many it asks for
    gpus: tuple[str, ...] = ()  # device nodes that it has for itself: assigned by the backend when they are free


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt used, from the kernel's counters; 0 or None where a counter is missing on this host.

    docs/reference/record.md says of each field where it comes from.
    """

    memory_peak_bytes: int = 0
    memory_anon_peak_bytes: int = 0
    cpu_seconds: float = 0.0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    pids_peak: int = 0
    scratch_peak_bytes: int = 0
    cpu_user_seconds: float = 0.0
    cpu_system_seconds: float = 0.0
    throttled_seconds: float = 0.0
    throttled_periods: int = 0
    memory_pressure_seconds: float | None = None
    cpu_pressure_seconds: float | None = None
    io_pressure_seconds: float | None = None

    def as_json(self) -> dict[str, object]:
        """The ``usage`` object of the record."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Oom:
    """What is known of a kill for memory."""

    scope: OomScope
    process: str | None = None  # the name of the one that was killed
    where: str | None = None  # outside: "the host", or the cgroup that reached its limit


@dataclass(frozen=True, slots=True)
class Excess:
    """More in a scratch directory than its limit, and the largest single thing in it."""

    total_bytes: int
    name: str  # as the job sees it
    name_bytes: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the supervisor saw of an attempt, before anything is concluded from it."""

    exit_code: int | None  # of the job's own command
    signal: int | None
    error: str | None  # Snakemake's own words for a failed rule
    summary: str | None = None  # the exception of a rule's Python code, in one line
    timed_out: bool = False
    cancelled: str | None = None  # why
    setup_error: str | None = None  # nothing of the job was run
    supervisor_error: str | None = None  # what Forge failed to do after the job had started, in a sentence
    oom_kills: int = 0
    oom: Oom | None = None
    excess: Excess | None = None
    full_file: str | None = None  # as large as RLIMIT_FSIZE lets it be
    pids_hits: int = 0
    leftover: tuple[str, ...] = ()  # processes that the job left behind, killed by Forge
    unkillable: tuple[str, ...] = ()  # those that did not die
    problems: tuple[str, ...] = ()  # what Forge could not measure or write, in sentences
    stderr_tail: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an attempt ended, in one word, in one sentence and in numbers."""

    outcome: Outcome
    reason: str
    exit_code: int | None
    signal: int | None
    usage: Usage
    started: str  # ISO 8601, UTC
    seconds: float
    notes: tuple[str, ...] = ()
    error: str | None = None
    stderr_tail: str = ""
    directory: str = ""
    remedy: str = ""  # what to do about it, in one sentence
    evidence: Mapping[str, object] = field(default_factory=dict)  # see docs/reference/record.md

    @property
    def ok(self) -> bool:
        """Whether the outputs may be believed."""
        return self.outcome is Outcome.SUCCEEDED


Done = Callable[[Verdict], None]


class Backend(Protocol):
    """Where jobs run. ``done`` is called once for every submitted job, from a thread of the backend's own."""

    name: str

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        """Start one attempt; returns at once.

        Args:
            payload: what the job executes, opaque to the backend.
            is_command: whether the payload may come down to a command, without any Python of the workflow.
        """

    def cancel(self, name: str, reason: str) -> None:
        """End the attempt ``name`` (TERM, grace, kill); its ``done`` is still called."""

    def cancel_all(self, reason: str, grace: bool) -> None:
        """End every attempt; without ``grace`` at once."""

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until no attempt is left; False if some are after the time."""

    def close(self) -> None:
        """Give back everything: processes, cgroups, files."""
