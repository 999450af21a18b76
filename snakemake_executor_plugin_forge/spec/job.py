"""The nouns of Forge: frozen values that pass between its parts.

Units are in the names: ``*_bytes``, ``*_seconds``. ``None`` as a limit means that the job's own declaration does not
limit it; the limits of the run still hold.
"""

from __future__ import annotations

import enum
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .job_group import JobGroup
from .quick_pickle import quick_to_pickle
from .slurm import SlurmSettings

DEFAULT_IO_WEIGHT = 100
"""The weight of a new cgroup: ``io.weight`` in Linux' cgroup-v2.rst."""

RECORD_SCHEMA = 1
"""Version of the JSON in ``spec.json``, ``verdict.json`` and ``events.jsonl``; see docs/reference/record.md."""


class CpuMode(enum.StrEnum):
    """Meaning of ``threads`` to the kernel: a hard cap, a weight among the jobs, or nothing."""

    CAP = "cap"
    SHARE = "share"
    OFF = "off"


class Network(enum.StrEnum):
    """Whether a job sees the host's network (``on``) or only a loopback of its own (``off``)."""

    ON = "on"
    OFF = "off"


class FilePolicy(enum.StrEnum):
    """A policy for the files that a job may see and change; docs/explanation/files.md."""

    GUARD = "guard"
    STRICT = "strict"
    OPEN = "open"


class Undeclared(enum.StrEnum):
    """Fate of what a job does in the working directory and its rule does not declare."""

    KEEP = "keep"
    DISCARD = "discard"
    FAIL = "fail"
    ALLOW = "allow"  # as KEEP, and changes to files that no job of the workflow has made are carried out, too


class Nested(enum.StrEnum):
    """Whether a job may make containers and sandboxes of its own, for which Forge leaves out a part of its sandbox."""

    OFF = "off"
    ON = "on"


class KeepScratch(enum.StrEnum):
    """The attempts whose scratch directories stay after the attempt."""

    NEVER = "never"
    FAILED = "failed"
    ALWAYS = "always"


class Checksums(enum.StrEnum):
    """The amount of a job's outputs that Forge reads for their checksums; see record/checksum.py."""

    AUTO = "auto"
    OFF = "off"
    FULL = "full"


class CheckFormats(enum.StrEnum):
    """Whether a truncated output makes a note or fails its job, or Forge does not check."""

    WARN = "warn"
    FAIL = "fail"
    OFF = "off"


class RunBlocks(enum.StrEnum):
    """The start of ``run:`` blocks: as forks unless that differs, always as forks, or each in a Snakemake."""

    AUTO = "auto"
    FORK = "fork"
    NEW = "new"


class Require(enum.StrEnum):
    """The isolation below which Forge refuses to start."""

    NONE = "none"
    LIMITS = "limits"
    FULL = "full"


class DefaultResources(enum.StrEnum):
    """Effect of the values of ``--default-resources`` on this host."""

    LIMIT = "limit"
    SCHEDULE = "schedule"  # Snakemake's scheduler counts them, and nothing else does


class OnDisconnect(enum.StrEnum):
    """Fate of a job when Snakemake dies or loses its terminal."""

    KILL = "kill"
    FINISH = "finish"


def file_bytes(disk_bytes: int) -> int:
    """Return the largest size of a file of a job that may write ``disk_bytes`` in all.

    One byte more, so that a file of this size is one that the kernel has cut off, whatever its program makes of that.
    """
    return disk_bytes + 1


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that the kernel enforces on one job."""

    memory_bytes: int | None
    cpus: int
    pids: int | None
    wall_seconds: float | None
    disk_bytes: int | None = None
    gpus: tuple[int, ...] = ()  # the numbers at the end of its devices' names
    nice: int = 0  # 0 to 19: setpriority(2), and the weight of its cgroup
    io_weight: int = DEFAULT_IO_WEIGHT  # 1 to 10000

    @property
    def file_bytes(self) -> int | None:
        """The size at which the kernel stops a file: RLIMIT_FSIZE."""
        return None if self.disk_bytes is None else file_bytes(self.disk_bytes)

    def as_json(self) -> dict[str, object]:
        """The ``limits`` object of the record."""
        # not asdict(), which takes ten times as long: four times for each job
        return {"seconds" if name == "wall_seconds" else name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Priority:
    """The priority of all jobs of a run against the rest of the host."""

    nice: int = 0
    io_weight: int = DEFAULT_IO_WEIGHT
    io_weights: bool = False  # whether any of its jobs may have another weight than the kernel's default


ORDINARY = Priority()
"""The priority of every other process."""


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Isolation:
    """The isolation that a job really has, for its record and for the line at the start of a run."""

    limits: str  # "cgroup-v2", "cgroup-v1" or "soft"
    files: str  # the file policy in force
    mechanisms: tuple[str, ...]
    network: Network
    not_enforced: tuple[str, ...] = ()  # of "cpu", "run", "files", "io_weight", "gpu"


class TargetKind(enum.StrEnum):
    """The keyword with which a rule names a file that its jobs write."""

    OUTPUT = "output"
    LOG = "log"
    BENCHMARK = "benchmark"


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Target:
    """A file or directory that a job is to write, and its place once Forge has published it."""

    path: str  # absolute; no link in its directory
    name: str  # as the rule has it
    kind: TargetKind = TargetKind.OUTPUT
    directory: bool = False
    update: bool = False  # update(): the job sees the present version, and changes it
    optional: bool = False  # touch(): Snakemake makes it, if the job does not
    live: bool = False  # pipe(), service(): other jobs use it while the job writes it
    non_empty: bool = False  # ensure()
    checksum: str | None = None  # ensure(): an algorithm of hashlib, a colon, and the digest in hexadecimal


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Product:
    """A declared output, for its checksum."""

    name: str  # as the rule has it
    path: str  # absolute: its place, or its path in a shadow directory when the job ends
    temporary: bool = False  # temp(), or the local copy of a file in a storage: it may be gone later


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Checks:
    """The checks that a job must pass before Forge publishes its outputs: staging/checks.py."""

    checksums: Checksums = Checksums.AUTO
    formats: CheckFormats = CheckFormats.WARN
    outputs: tuple[Product, ...] = ()
    inputs: tuple[str, ...] = ()  # absolute; if one has changed after the job, its outputs cannot be trusted
    shadow: str | None = None  # absolute: the directory from which Snakemake moves the outputs, when the job has ended
    may_change_inputs: bool = False  # the user asks for forge_files="open": a changed input makes a note only


MOST_MOUNTED_INPUTS = 1000


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Files:
    """The files that one job may see and change.

    spec/file_policy.py decides it; sandbox/filesystem/mount_plan.py applies it. All paths are absolute and have no
    links in them.
    """

    policy: FilePolicy = FilePolicy.OPEN
    undeclared: Undeclared = Undeclared.KEEP
    layers: tuple[str, ...] = ()  # directories whose changes Forge stages
    apart: bool = False  # the changes lie in the scratch, because their own file system cannot hold a layer
    targets: tuple[Target, ...] = ()
    inputs: tuple[str, ...] = ()  # inputs below a layer, which would not protect them
    mounts: tuple[str, ...] = ()  # other file systems below a layer
    live: tuple[str, ...] = ()  # paths below a layer that the job writes directly
    home: str | None = None  # its changes are kept for the workflow (strict: discarded)
    caches: tuple[str, ...] = ()  # further directories, outside of it, whose changes are kept for the workflow
    visible: tuple[str, ...] = ()  # strict: all that the job sees beside the system
    hidden: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()  # paths that the job may change beside targets and scratch
    keep_incomplete: bool = False  # put the outputs of a failed job into its job directory
    nested: bool = False  # leave out the mechanisms that keep a job from making sandboxes of its own
    audit: bool = False  # note which files of the layers it opens
    expected: tuple[str, ...] = ()  # files beside inputs and targets that the audit does not note

    @property
    def staged(self) -> bool:
        """Whether targets appear at their places only after success."""
        return self.policy is not FilePolicy.OPEN

    @property
    def mounted_inputs(self) -> tuple[str, ...]:
        """The inputs that are mounted read-only: a mount namespace holds 100,000 mounts (fs.mount-max)."""
        return self.inputs[:MOST_MOUNTED_INPUTS]

    @property
    def compared_inputs(self) -> tuple[str, ...]:
        """The others: the job changes its layer's copies of them, for which it fails."""
        return self.inputs[MOST_MOUNTED_INPUTS:]


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job of Snakemake in Forge's words. plugin/job_request.py makes it, spec/plan.py decides how it runs."""

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
    linked: tuple[str, ...] = ()  # targets of the symbolic links on the way to inputs, outputs and logs
    links: tuple[str, ...] = ()  # the symbolic links on the way to inputs
    targets: tuple[Target, ...] = ()
    products: tuple[Product, ...] = ()
    real_inputs: tuple[str, ...] = ()  # absolute, all links followed
    sources: tuple[str, ...] = ()  # files that a job reads without declaring them: its script or notebook
    live: tuple[str, ...] = ()  # paths that Snakemake or other jobs use while it runs: shadow directory, FIFOs
    keep_incomplete: bool = False
    nested: bool = False  # Snakemake itself starts a container for it
    interactive: bool = False  # --debug and --edit-notebook need the terminal
    stays_here: bool = False  # on this host, whatever the backend is
    together: bool = False  # a member of a pipe or service group, whose members run at the same time
    streamed: tuple[str, ...] = ()  # inputs that others change while it runs: files of services, FIFOs
    own_snakemake: bool = False  # it starts a Snakemake, which needs memory beside the rule's
    shadow: bool = False  # it works in a directory that Snakemake has made for this try alone
    shadow_directory: str | None = None  # absolute
    declared_at: str = ""  # file and line of its rule
    by_default: tuple[str, ...] = ()  # resources that it has from --default-resources
    threads_asked: int | None = None  # before Snakemake scaled them down to --cores; None: a function gives them
    recipe: str = ""  # all that determines its outputs beside its inputs: another recipe is another job
    asked: float = field(default=0.0, compare=False)  # when Snakemake handed it over: time.monotonic(); 0: unknown
    group: JobGroup | None = None  # in whose scheduler job it is to run


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a run, checked and in the units of the kernel. See plugin/settings.py for the flags."""

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
    limits_from: Mapping[str, str] = field(default_factory=dict)  # resource -> the flag or key that sets its default
    grace_seconds: float = 10.0
    run_memory: str = "90%"
    run_pids: int | None = 16384
    gpus: tuple[str, ...] | None = None  # device nodes; None: all that the host has
    disk_bytes: int | None = None  # of a job without disk_mb
    metrics_file: str | None = None
    stream_bytes: int | None = 100 * 1024 * 1024  # how much of each stream of a job stays on record
    backend: str = "local"
    oom_retries: int = 0  # of a job that the kernel killed at its own memory limit
    oom_factor: float = 2.0
    oom_max_bytes: int | None = None
    checksums: Checksums = Checksums.AUTO
    check_formats: CheckFormats = CheckFormats.WARN
    run_blocks: RunBlocks = RunBlocks.AUTO
    on_disconnect: OnDisconnect = OnDisconnect.KILL
    nice: int = 0
    io_weight: int = DEFAULT_IO_WEIGHT
    io_weights: bool = False  # whether a rule of the workflow sets a weight
    default_resources: DefaultResources = DefaultResources.LIMIT
    slurm: SlurmSettings = field(default_factory=SlurmSettings)


@dataclass(frozen=True, slots=True)
class RunContext:
    """The values that all jobs of a run share."""

    run_id: str
    workdir: str
    state_dir: str  # <workdir>/.snakemake/forge
    exposed: tuple[str, ...]  # paths that must stay visible although they lie below a private directory
    home: str | None = None
    caches: tuple[str, ...] = ()  # it, and directories that variables name for caches
    mount_points: tuple[str, ...] = ()  # of this host, at the start of the run
    may_cover: Callable[[str], bool] = lambda _: True  # whether layers can be kept in a directory
    visible: tuple[str, ...] = ()  # strict: paths that every job sees beside its inputs


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything that the supervisor needs to run one attempt. spec/plan.py decides, supervisor/ does it."""

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
    carried: tuple[str, ...]  # outputs directly in a private directory, which Forge moves out after success
    environment: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    isolation: Isolation
    files: Files = Files()
    checks: Checks = Checks()
    benchmark: str | None = None
    runtime: str = "host"
    runtime_id: str | None = None  # its key in run.json
    root: str | None = None  # the directory of the image that it runs in
    shown: tuple[str, ...] = ()  # paths of the host that it sees in the image
    backend: str = "local"
    interactive: bool = False
    gpu_count: int = 0  # how many it asks for
    stream_bytes: int | None = None  # see Config
    logs: tuple[str, ...] = ()  # of the rule's log:
    gpus: tuple[str, ...] = ()  # device nodes that it has for itself; the backend assigns them when they are free
    resources: Mapping[str, object] = field(default_factory=dict)  # as Snakemake has them, for other backends
    retry: int = 0  # how many times Forge has run it again within one try of Snakemake
    retry_of: str | None = None  # the name of the previous attempt
    declared_at: str = ""  # this and the next two: see JobRequest
    by_default: tuple[str, ...] = ()
    threads_asked: int | None = None
    limits_from: Mapping[str, str] = field(default_factory=dict)  # of limits that its rule does not set: see Config
    submitted: str = ""  # when Snakemake handed the job over, or Forge repeated it: ISO 8601
    together: bool = False  # see JobRequest
    checkpoint: str | None = None  # FORGE_CHECKPOINT_DIR
    recipe: str = ""  # see JobRequest
    sources: tuple[str, ...] = ()  # see JobRequest
    adoptable: bool = False  # whether it may take over the result of an earlier run: see staging/fingerprint.py
    detachable: bool = False  # whether it continues without Snakemake: --forge-on-disconnect=finish
    asked: float = field(default=0.0, compare=False)  # see JobRequest
    planned: float = field(default=0.0, compare=False)  # when it was planned: time.monotonic(); 0: unknown
    group: JobGroup | None = None  # see JobRequest
    slurm_job: str | None = None  # the id of the Slurm job in which it runs: "12", or "12_3" in an array
    copy: str = ""  # in Slurm, the name of this copy of the attempt: several may have one scratch base after another

    @property
    def layer_base(self) -> str:
        """The beginning of the names of its layers, by which recovery knows whose they are."""
        return self.copy or posixpath.basename(self.scratch_base)
