"""The nouns of Forge: frozen values that pass between its parts. Nothing here does anything.

Units are in the names: ``*_bytes``, ``*_seconds``. ``None`` as a limit means "not limited by this job's own
declaration" (the limits of the run still hold).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

DEFAULT_IO_WEIGHT = 100
"""What a cgroup has that nobody has given one: ``io.weight`` of cgroup-v2.rst."""

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


class FilePolicy(enum.StrEnum):
    """What a job may see and change of the file system; docs/explanation/files.md."""

    GUARD = "guard"
    STRICT = "strict"
    OPEN = "open"


class Undeclared(enum.StrEnum):
    """What becomes of new files in the working directory that the rule does not declare."""

    KEEP = "keep"
    DISCARD = "discard"
    FAIL = "fail"


class Nested(enum.StrEnum):
    """Whether a job may make containers and sandboxes of its own, which takes away a part of its own sandbox."""

    OFF = "off"
    ON = "on"


class KeepScratch(enum.StrEnum):
    """Whose scratch directories stay after the end of an attempt."""

    NEVER = "never"
    FAILED = "failed"
    ALWAYS = "always"


class Checksums(enum.StrEnum):
    """How much of a job's outputs is read for their checksums; see checksum.py."""

    AUTO = "auto"
    OFF = "off"
    FULL = "full"


class CheckFormats(enum.StrEnum):
    """What an output of a known format that is not whole is to a job: a note, a failure, or not looked for."""

    WARN = "warn"
    FAIL = "fail"
    OFF = "off"


class Require(enum.StrEnum):
    """The isolation below which Forge refuses to start."""

    NONE = "none"
    LIMITS = "limits"
    FULL = "full"


class OnDisconnect(enum.StrEnum):
    """What becomes of a job when Snakemake dies or loses its terminal."""

    KILL = "kill"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel lets one job have."""

    memory_bytes: int | None
    cpus: int
    pids: int | None
    wall_seconds: float | None
    disk_bytes: int | None = None
    gpus: tuple[int, ...] = ()  # the numbers in the names of its devices
    nice: int = 0  # 0 to 19: setpriority(2), and the weight of its cgroup
    io_weight: int = DEFAULT_IO_WEIGHT  # 1 to 10000

    def as_json(self) -> dict[str, object]:
        """The ``limits`` object of the record."""
        return {
            "memory_bytes": self.memory_bytes,
            "cpus": self.cpus,
            "pids": self.pids,
            "seconds": self.wall_seconds,
            "disk_bytes": self.disk_bytes,
            "gpus": list(self.gpus),
            "nice": self.nice,
            "io_weight": self.io_weight,
        }


@dataclass(frozen=True, slots=True)
class Priority:
    """How far all of a run stands back behind the rest of the host."""

    nice: int = 0
    io_weight: int = DEFAULT_IO_WEIGHT
    io_weights: bool = False  # whether any of its jobs may have another one than that of the kernel


ORDINARY = Priority()
"""It does not stand back."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """The isolation that a job really got, for the record and for the line at the start of a run."""

    limits: str  # "cgroup-v2", "cgroup-v1" or "soft"
    files: str  # the file policy in force
    mechanisms: tuple[str, ...]
    network: Network
    not_enforced: tuple[str, ...] = ()  # of "cpu", "run", "files", "io_weight"

    def as_json(self) -> dict[str, object]:
        """The ``isolation`` object of the record."""
        return {
            "limits": self.limits,
            "files": self.files,
            "mechanisms": list(self.mechanisms),
            "network": str(self.network),
            "not_enforced": list(self.not_enforced),
        }


class TargetKind(enum.StrEnum):
    """What a file that a rule names on its output side is to it."""

    OUTPUT = "output"
    LOG = "log"
    BENCHMARK = "benchmark"


@dataclass(frozen=True, slots=True)
class Target:
    """A file or directory that a job is to write, and its place once it is published."""

    path: str  # absolute; no link in its directory
    name: str  # as the rule has it
    kind: TargetKind = TargetKind.OUTPUT
    directory: bool = False
    update: bool = False  # the job sees the version that is there, and changes it
    optional: bool = False  # touch(): Snakemake makes it, if the job does not
    live: bool = False  # pipe(), service(): other jobs use it while it is being written
    non_empty: bool = False  # ensure()
    checksum: str | None = None  # ensure(): an algorithm of hashlib, a colon, and the digest in hexadecimal


@dataclass(frozen=True, slots=True)
class Product:
    """A declared output, for its checksum."""

    name: str  # as the rule has it
    path: str  # absolute: its place, or where it is in a shadow directory when the job ends
    temporary: bool = False  # temp(), or the local copy of what is in a storage: it may be gone later


@dataclass(frozen=True, slots=True)
class Checks:
    """What is looked at before a job's outputs are published: inspection.py."""

    checksums: Checksums = Checksums.AUTO
    formats: CheckFormats = CheckFormats.WARN
    outputs: tuple[Product, ...] = ()
    inputs: tuple[str, ...] = ()  # absolute; the same after the job as before, or its outputs are not believed
    may_change_inputs: bool = False  # forge_files="open" was asked for: then that is a note


@dataclass(frozen=True, slots=True)
class Files:
    """What one job may see and change of the file system. Decided by files.py; carried out by sandbox/view.py.

    All paths are absolute and have no links in them.
    """

    policy: FilePolicy = FilePolicy.OPEN
    undeclared: Undeclared = Undeclared.KEEP
    layers: tuple[str, ...] = ()  # directories whose changes are staged
    apart: bool = False  # in the scratch, because their own file system cannot be a layer
    targets: tuple[Target, ...] = ()
    inputs: tuple[str, ...] = ()  # those below a layer, which would not protect them
    mounts: tuple[str, ...] = ()  # other file systems below a layer
    live: tuple[str, ...] = ()  # below a layer, and written without it
    home: str | None = None  # a directory whose changes nobody keeps
    visible: tuple[str, ...] = ()  # strict: all that is to be seen beside the system
    hidden: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()  # beside targets and scratch
    keep_incomplete: bool = False  # put what a failed job has written into its job directory
    nested: bool = False  # leave out what keeps a job from making sandboxes of its own
    audit: bool = False  # note which files of the layers it opens
    expected: tuple[str, ...] = ()  # files that it may open without being noted, beside inputs and targets

    @property
    def staged(self) -> bool:
        """Whether targets appear at their places after success only."""
        return self.policy is not FilePolicy.OPEN


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
    targets: tuple[Target, ...] = ()
    products: tuple[Product, ...] = ()
    real_inputs: tuple[str, ...] = ()  # absolute, all links followed
    sources: tuple[str, ...] = ()  # what a job reads without declaring it: its script or notebook
    live: tuple[str, ...] = ()  # what Snakemake or other jobs use while the job runs: shadow directory, FIFOs
    keep_incomplete: bool = False
    nested: bool = False  # Snakemake itself starts a container for it
    interactive: bool = False  # --debug and --edit-notebook need the terminal
    stays_here: bool = False  # on this host, whatever the backend is
    together: bool = False  # a member of a pipe or service group, in which all run at the same time
    shadow: bool = False  # it works in a directory that Snakemake has made for this try alone
    recipe: str = ""  # what it does, but for its inputs: another recipe is another job


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a run, checked and in the units of the kernel. See settings.py for the flags."""

    require: Require = Require.NONE
    cpu: CpuMode = CpuMode.CAP
    network: Network = Network.ON
    files: FilePolicy = FilePolicy.GUARD
    undeclared: Undeclared = Undeclared.KEEP
    nested: Nested = Nested.OFF
    audit: bool = False
    hidden: tuple[str, ...] = ()  # paths that no job sees
    writable: tuple[str, ...] = ()  # paths that jobs may change in place
    readable: tuple[str, ...] = ()  # strict: paths that jobs see beside their inputs
    keep_scratch: KeepScratch = KeepScratch.NEVER
    scratch_dir: str | None = None
    memory_bytes: int | None = None
    pids: int | None = 4096
    wall_seconds: float | None = None
    grace_seconds: float = 10.0
    run_memory: str = "90%"
    run_pids: int | None = 16384
    gpus: tuple[str, ...] | None = None  # device nodes; None: those that are found
    disk_bytes: int | None = None  # of a job without disk_mb
    metrics_file: str | None = None
    stream_bytes: int | None = 100 * 1024 * 1024  # what is kept of each stream of a job
    backend: str = "local"
    oom_retries: int = 0  # of a job that was killed at its own memory limit
    oom_factor: float = 2.0
    oom_max_bytes: int | None = None
    checksums: Checksums = Checksums.AUTO
    check_formats: CheckFormats = CheckFormats.WARN
    on_disconnect: OnDisconnect = OnDisconnect.KILL
    nice: int = 0
    io_weight: int = DEFAULT_IO_WEIGHT
    io_weights: bool = False  # whether a rule of the workflow has one of its own


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
    layers_note: str = ""  # why changes cannot be staged in layers; "" if they can
    layers_apart: bool = False  # whether what is written has to be kept on the scratch's file system
    home_layer: bool = True  # whether $HOME can have one
    not_enforced: tuple[str, ...] = ()  # see Isolation
    io_weight_note: str = ""  # why a weight for I/O has no effect; "" if it has
    io_devices: tuple[str, ...] = ()  # where it has


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all jobs of a run share."""

    run_id: str
    workdir: str
    state_dir: str  # <workdir>/.snakemake/forge
    exposed: tuple[str, ...]  # paths that must stay visible although they lie below a private directory
    home: str | None = None
    mount_points: tuple[str, ...] = ()  # of this host, at the start of the run
    visible: tuple[str, ...] = ()  # strict: what every job sees beside its inputs


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
    files: Files = Files()
    checks: Checks = Checks()
    benchmark: str | None = None
    runtime: str = "host"
    runtime_id: str | None = None  # its key in run.json
    root: str | None = None  # of the image that it runs in
    shown: tuple[str, ...] = ()  # paths of the host that are seen in there
    backend: str = "local"
    interactive: bool = False
    gpu_count: int = 0  # how many it asks for
    stream_bytes: int | None = None  # see Config
    logs: tuple[str, ...] = ()  # of the rule's log:
    gpus: tuple[str, ...] = ()  # device nodes that it has for itself: assigned by the backend when they are free
    resources: Mapping[str, object] = field(default_factory=dict)  # as Snakemake has them: for other backends
    retry: int = 0  # the how manieth time it is run again by Forge, within one try of Snakemake
    retry_of: str | None = None  # the name of the attempt before
    together: bool = False  # see JobRequest
    checkpoint: str | None = None  # FORGE_CHECKPOINT_DIR
    recipe: str = ""  # see JobRequest
    sources: tuple[str, ...] = ()  # see JobRequest
    adoptable: bool = False  # whether the result of an earlier run's job may be taken for it: see sameness.py
    goes_on: bool = False  # without Snakemake: --forge-on-disconnect=finish


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
    missing: tuple[str, ...] = ()  # declared outputs that it has not written
    rejected: tuple[str, ...] = ()  # outputs that cannot be published, and why
    undeclared: tuple[str, ...] = ()  # new files that the rule does not declare
    read: tuple[str, ...] | None = None  # files that it opened and does not declare; None: nobody looked
    changed: tuple[str, ...] = ()  # existing files that it changed or deleted, which was undone
    inputs_changed: tuple[str, ...] = ()  # by somebody else, while it ran
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
    undeclared_writes: tuple[str, ...] = ()
    undeclared_reads: tuple[str, ...] | None = None
    evidence: Mapping[str, object] = field(default_factory=dict)  # see docs/reference/record.md
    outputs: tuple[Mapping[str, object], ...] = ()  # size and checksum of each; not passed on beyond the record
    in_place: bool = False  # it wrote its outputs at their places, although they were to be staged
    staged: bool = False  # it succeeded without Snakemake, and its outputs wait for a run that adopts it

    @property
    def ok(self) -> bool:
        """Whether the outputs may be believed."""
        return self.outcome is Outcome.SUCCEEDED


Done = Callable[[Verdict], None]


@runtime_checkable
class Leaves(Protocol):
    """A backend whose jobs can go on without Snakemake."""

    def leave(self, reason: str) -> None:
        """Let those go that do, and have the others ended, with their grace.

        Of those that go on nothing is heard any more: their ``done`` is not called.
        """


class Backend(Protocol):
    """Where jobs run. ``done`` is called once for every submitted job, from a thread of the backend's own.

    docs/explanation/backends.md says what a backend promises; tests/contract tries it.
    """

    name: str
    host: Host  # what the plan may count on

    def check(self, rule: str, resources: dict[str, object]) -> None:
        """Refuse a rule's resources before anything runs.

        Raises:
            UsageError: names the rule, the resource and its value.

        """

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
