"""The end of an attempt as values: orders, evidence, outcome, cause, usage and verdict. Nothing here decides anything.

Units are in the names: ``*_bytes``, ``*_seconds``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .quick_pickle import quick_to_pickle


class Outcome(enum.StrEnum):
    """The end of an attempt in one word. The strings are those of the JSON."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OOM = "oom"
    TIMEOUT = "timeout"
    PIDS = "pids"
    DISK = "disk"
    VIOLATION = "violation"
    CANCELLED = "cancelled"
    LOST = "lost"


class Cause(enum.StrEnum):
    """The reason for an outcome, where the outcome alone does not say it. The strings are those of the JSON."""

    # failed
    SETUP = "setup"  # nothing of the job was run
    SUPERVISOR = "supervisor"  # Forge failed to do its part
    SIGNAL = "signal"
    BROKEN_PIPE = "broken pipe"  # a program wrote to one that had ended: SIGPIPE, with bash's pipefail
    EXIT_CODE = "exit code"
    EXCEPTION = "exception"  # of a rule's Python code
    ERROR = "error"  # Snakemake's own words are all that is known
    COMMAND_NOT_FOUND = "command not found"
    HEAP_FULL = "heap full"  # of Java: its own limit, below that of the job
    REFUSED = "refused"  # the sandbox refused it something: see Refusal
    FILE_SYSTEM_FULL = "file system full"
    INPUTS_CHANGED = "inputs changed"
    REJECTED = "rejected"  # an output that cannot be published
    STILL_WRITTEN = "still written"  # a process that the command left behind did not finish an output
    MISSING = "missing"  # an output that was not written
    UNPUBLISHED = "unpublished"  # staged outputs that could not be published
    SBATCH_REFUSED = "sbatch refused"
    RESOURCES = "resources"  # the rule asks for what cannot be had
    # cancelled
    NEVER_STARTED = "never started"
    STILL_WAITING = "still waiting"
    SCANCELLED = "scancelled"  # by Forge, and the node has said nothing
    # lost
    SUPERVISOR_KILLED = "supervisor killed"
    KILLED_WHILE_PUBLISHING = "killed while publishing"
    SUPERVISOR_FAILED = "supervisor failed"
    REAPER_KILLED = "reaper killed"
    NURSERY_KILLED = "nursery killed"
    START_REFUSED = "start refused"
    ADOPTION_FAILED = "adoption failed"
    SUPERSEDED = "superseded"  # Slurm ran the job again as another copy
    FENCED = "fenced"  # this copy of a Slurm job may not publish
    UNKNOWN_TO_SLURM = "unknown to Slurm"
    PROCESS_KILLED = "process killed"  # of one attempt, in a Slurm job that runs on
    NOT_BEGUN = "not begun"  # of one attempt, in a Slurm job that runs on
    # any outcome
    SLURM_LIMIT = "Slurm limit"
    SLURM_STATE = "Slurm state"  # the state of the Slurm job is all that is known


class OomScope(enum.StrEnum):
    """The owner of the memory limit at which the kernel killed a process of a job."""

    JOB = "job"
    RUN = "run"
    OUTSIDE = "outside"  # the host ran out of memory, or a cgroup around the run reached its limit


class EndedBy(enum.StrEnum):
    """The party that asked for the end of an attempt. The strings are those of the JSON."""

    USER = "user"  # stopped Snakemake: Ctrl-C, or a signal
    CONTROLLER = "controller"  # Snakemake died, or a process between it and the supervisor
    LATER_RUN = "later run"  # a run that found the job, or snakemake-forge resume --stop
    SLURM = "slurm"  # scancel, preemption, or the time limit of the Slurm job
    FORGE = "forge"  # another job of its group failed, or the run is over


@dataclass(frozen=True, slots=True)
class Order:
    """An order to end an attempt."""

    ended_by: EndedBy
    words: str  # for people
    grace: bool = True  # whether the job has its grace between SIGTERM and SIGKILL


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Usage:
    """The resources that an attempt used, by the kernel's counters; 0 or None where this host lacks a counter.

    docs/reference/record.md names the source of each field.
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


@dataclass(frozen=True, slots=True)
class Oom:
    """A kill for memory, by the kernel's log."""

    scope: OomScope
    process: str | None = None  # name of the killed process
    where: str | None = None  # outside: "the host", or the cgroup that reached its limit


@dataclass(frozen=True, slots=True)
class Excess:
    """A scratch directory that grew beyond its limit, and its largest entry."""

    total_bytes: int
    name: str  # as the job sees it
    name_bytes: int


class HarmKind(enum.StrEnum):
    """The kinds of harm to a file that the job may not change, or reasons against keeping one: parts of sentences."""

    WRITTEN = "wrote"  # a new file, at the place of another rule's output
    CHANGED = "changed"
    DELETED = "deleted"
    REPLACED = "replaced"  # a file by a directory, or a directory by a file
    CONTESTED = "changed by somebody else while the job ran"
    LOCKED = "changed by another job while this one ran, and its lock did not keep that job out"
    LINKED = "changed, but it has other names (hard links), and with these the job saw its old content"
    BEGUN = "begun by another job while this one ran, with the same first line, perhaps a header"
    LEADS_OUT = "made a link to a directory, or to nothing, outside the working directory"
    CARRIES = "made a link that would carry outputs of the workflow to another place"
    STEERS = "wrote a file that programs look for by themselves"
    UNMERGED = "made by another job while this one ran, as a file here and as a directory there"


class Owner(NamedTuple):
    """The rule to which a file belongs alone."""

    rule: str
    what: str = "an output"  # of the rule, in words


class Harm(NamedTuple):
    """An undeclared act of a job that Forge does not carry out."""

    path: str
    kind: HarmKind
    owner: Owner | None = None  # another rule


class WritesTo(enum.Enum):
    """The meaning of a file that a process has open for writing after its job's command has ended."""

    OUTPUT = "output"
    LOG = "log"
    UNDECLARED = "undeclared"  # a file beside the outputs


@dataclass(frozen=True, slots=True)
class Writer:
    """A process that writes to a file of its job, although the job's command has ended."""

    process: str
    file: str  # as the author of the rule would write it
    to: WritesTo


class RefusalKind(enum.StrEnum):
    """The kind of thing that a job of this sandbox cannot have. The strings are those of the JSON."""

    FULL = "full"  # a file system without space, which is no matter of the sandbox
    INPUT = "input"  # to change, move, remove or hard-link an input
    OUTSIDE = "outside"  # to write outside the places for its files
    LAYER = "layer"  # to rename a directory that was there before, or something else that an overlay cannot do
    PRIVATE = "private"  # a file of the host below a private directory, or one that strict does not show
    UNDECLARED = "undeclared"  # a file of the working directory that the rule does not declare, under strict
    HIDDEN = "hidden"  # a path of protect: or hide:
    COMMAND = "command"  # a program of PATH below a private directory
    SOCKET = "socket"  # a service of the host
    VARIABLE = "variable"  # a variable of Snakemake's environment that looks like a secret or a service
    NETWORK = "network"
    CAPABILITIES = "capabilities"  # of root
    NAMESPACES = "namespaces"  # sandboxes of its own


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Refusal:
    """A thing that a job did not get, by its own messages, and confirmed by its specification and the host."""

    kind: RefusalKind
    subject: str = ""  # the path, program, variable or mount point
    error: int = 0  # errno; 0: not known
    place: str = ""  # the existing directory to allow, where a path is the matter


@dataclass(frozen=True, slots=True)
class Evidence:
    """The observations of a supervisor about one attempt."""

    exit_code: int | None  # of the job's own command
    signal: int | None
    error: str | None  # Snakemake's own words for a failed rule
    summary: str | None = None  # the exception of a rule's Python code, in one line
    timed_out: bool = False
    cancelled: Order | None = None
    setup_error: str | None = None  # nothing of the job was run
    supervisor_error: str | None = None  # a sentence: what Forge failed to do after the start
    oom_kills: int = 0
    oom: Oom | None = None
    excess: Excess | None = None
    full_file: str | None = None  # a file as large as RLIMIT_FSIZE allows
    pids_hits: int = 0
    writers: tuple[Writer, ...] = ()  # processes that were killed while they had a file of the job open for writing
    truncated: bool = False  # because of them, outputs are not whole
    leftover: tuple[str, ...] = ()  # processes that the job left behind, killed by Forge
    unkillable: tuple[str, ...] = ()  # processes that survived SIGKILL
    problems: tuple[str, ...] = ()  # sentences: what Forge could not measure or write
    missing: tuple[str, ...] = ()  # declared outputs that the job did not write
    rejected: tuple[str, ...] = ()  # outputs that cannot be published, and why
    undeclared: tuple[str, ...] = ()  # new and changed files that the rule does not declare
    directories: frozenset[str] = frozenset()  # those of them that are new directories
    deleted: tuple[str, ...] = ()  # files of this workflow that it deleted
    harms: tuple[Harm, ...] = ()  # what it did to files that are nobody's
    left_out: tuple[str, ...] = ()  # FIFOs and the like, which cannot be kept
    left_in_tmp: tuple[tuple[str, int], ...] = ()  # paths and bytes of what its private /tmp loses
    read: tuple[str, ...] | None = None  # files that it opened undeclared; None: not audited
    locked: tuple[str, ...] = ()  # files in layers that it locked, where a lock keeps no other job out
    inputs_changed: tuple[str, ...] = ()  # inputs that somebody else changed meanwhile
    stderr_tail: str = ""
    log_tail: str = ""  # the ends of the rule's logs, after a failure
    refusals: tuple[Refusal, ...] = ()  # looked for after a failure


@dataclass(frozen=True, slots=True)
class Decision:
    """A conclusion from the evidence of an attempt, without words."""

    outcome: Outcome
    cause: Cause | None = None
    signal: str | None = None  # the name of the signal that ended the job, also if a shell reported it as 128 + N
    scope: OomScope | None = None  # of outcome OOM
    process: str | None = None  # killed for memory, as the kernel or the job's shell names it
    command: str | None = None  # the command that the shell did not find


@dataclass(frozen=True, slots=True)
class Words:
    """Sentences about an end, made in spec/words.py."""

    happened: str
    remedy: str = ""
    joined: bool = True  # whether the reason ends with the remedy

    @property
    def reason(self) -> str:
        """The sentence about the end of the attempt and, where that helps on the spot, the remedy."""
        if not self.remedy or not self.joined:
            return self.happened
        return f"{self.happened}; {self.remedy[0].lower()}{self.remedy[1:]}"


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of an attempt in one word, one sentence and numbers."""

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
    remedy: str = ""  # advice, in one sentence
    happened: str = ""  # the reason without the remedy
    cause: Cause | None = None
    undeclared_writes: tuple[str, ...] = ()
    undeclared_reads: tuple[str, ...] | None = None
    evidence: Mapping[str, object] = field(default_factory=dict)  # see docs/reference/record.md
    outputs: tuple[Mapping[str, object], ...] = ()  # size and checksum of each; not passed on beyond the record
    ended_by: EndedBy | None = None  # who asked for its end, if somebody did
    in_place: bool = False  # it wrote its outputs at their places, although they were to be staged
    staged: bool = False  # it succeeded without Snakemake, and its outputs wait for a run that adopts it
    refusals: tuple[Refusal, ...] = ()  # of the sandbox, to a failed job

    @property
    def ok(self) -> bool:
        """Whether the outputs are complete."""
        return self.outcome is Outcome.SUCCEEDED
