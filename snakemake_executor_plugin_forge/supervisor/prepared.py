"""The first stage of an attempt: its process waits in its sandbox, and everything that it needs is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

from ..record.attempt_dir import JobDirectory
from ..record.streams import Stream
from ..sandbox.cgroups.base import JobCgroup, RunCgroup, remove_patiently
from ..sandbox.fanotify import Reads
from ..sandbox.filesystem.disk_usage import Meter
from ..sandbox.inside import Inside
from ..sandbox.listener import Listener
from ..sandbox.privileges import Bounds
from ..sandbox.seccomp import can_listen
from ..sandbox.standby import Standby
from ..spec.errors import AuditUnavailable, SandboxError
from ..spec.host import POLLED
from ..spec.job import LaunchSpec
from ..spec.paths import CHECKPOINTS
from ..spec.verdict import Order, Verdict
from ..staging.attempt_files import FilesBefore, WrittenFiles
from ..staging.checkpoints import Checkpoint, take
from .detached import Detached, detached
from .process_group import Processes
from .usage import UsageTally


class Control(Protocol):
    """The way in which a supervisor learns that its attempt shall end."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when there is something to learn."""

    def order(self) -> Order | None:
        """Return the order to end the attempt; None if the descriptor was readable for something else."""

    def early(self) -> Order | None:
        """Return an order that came together with the order to start: :meth:`fileno` is not readable for it."""

    def abandoned(self) -> bool:
        """Return whether Snakemake is gone, as far as is known, and has not ordered the end of the attempt."""

    def let_go(self) -> None:
        """Close the connection: nobody waits for the verdict, and no more orders come."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a supervisor for all of its attempts."""

    group: RunCgroup | None
    standby: Standby
    control: Control
    processes_beside: int | None = None  # see backends.pool.Enclosure
    confirm: Callable[[Verdict], Verdict] = lambda verdict: verdict
    """The last word on a verdict, right before anything is published. If it says ``lost``, nothing is published."""

    @property
    def own_processes(self) -> int:
        """Return how many processes of Forge the kernel counts as a job's: the first of its PID namespace is one."""
        return int(self.standby.as_init and self.group is not None and self.group.version != POLLED)


@dataclass(frozen=True, slots=True)
class PreparedAttempt:
    """An attempt whose process waits in its sandbox."""

    spec: LaunchSpec
    tools: Tools
    record: JobDirectory
    inside: Inside
    processes: Processes
    meter: Meter
    files: FilesBefore
    streams: tuple[Stream, Stream]
    cgroup: JobCgroup | None  # None: this run has no cgroups
    checkpoint: Checkpoint | None  # None: the job wants none
    detached: Detached | None  # None: the job ends with Snakemake
    listener: Listener | None  # None: the job has no layers, or this host no such notifications
    problems: list[str]  # sentences; later stages add to them

    def locked(self) -> tuple[str, ...]:
        """Return the files that the job has locked where that keeps no other job out."""
        return self.listener.locked() if self.listener is not None else ()

    def written(self, *, failed: bool) -> WrittenFiles:
        """Find out what the job has written to its layers.

        Args:
            failed: whether it is known already that nothing of it will be published.

        Raises:
            OSError: if a layer cannot be read.
        """
        if self.listener is None:
            return self.files.written({}, {}, locks=False, failed=failed)
        appended, begun, locks = self.listener.appended(), self.listener.begun(), bool(self.listener.locked())
        return self.files.written(appended, begun, locks=locks, failed=failed)

    def launch(self, payload: bytes, stack: ExitStack) -> Reads | None:
        """Give the process its order, and watch which files it opens if the spec says so.

        Args:
            stack: closes what this opens.

        Raises:
            OSError, SandboxError: if the process is dead.
        """
        spec, inside, checkpoint = self.spec, self.inside, self.checkpoint
        environment, limits, beside = dict(spec.environment), spec.limits, self.tools.processes_beside
        if checkpoint is not None:
            environment["FORGE_CHECKPOINT_DIR"] = checkpoint.path
        most = None if limits.pids is None or beside is None else limits.pids + beside
        bounds = Bounds(limits.file_bytes, most, limits.nice)
        cgroup_files = self.cgroup.open_procs(inside.started.holder) if self.cgroup is not None else ()
        try:
            inside.order(payload, environment, bounds, spec.files.mounted_inputs, self._own(), cgroup_files,
                         listened_to=self.listener is not None)  # fmt: skip
        except BrokenPipeError as error:  # it could not enter its sandbox, and has said why
            raise SandboxError(str(self.processes.result().setup_error or error)) from error
        finally:
            for fd in cgroup_files:
                os.close(fd)
        reads = self._start_audit(stack) if spec.files.audit else None
        self.record.event("started", pid=inside.started.pid)
        return reads

    def _own(self) -> tuple[str, Mapping[str, bool]] | None:
        """Return the directories of Forge that the job shall see through its layer, and whether it may change them."""
        own, key, workdir = {}, self.inside.key, self.spec.workdir
        if self.checkpoint is not None and self.spec.files.staged:
            own[f"{CHECKPOINTS}/{os.path.basename(self.checkpoint.path)}"] = True
        if key.records:
            own[self.spec.job_dir.removeprefix(f"{workdir}/")] = False
        return (workdir, own) if own else None

    def _start_audit(self, stack: ExitStack) -> Reads | None:
        """Watch which files the job opens; its process waits for this before it executes anything."""
        layers, reads = self.spec.files.layers, None
        try:
            reads = Reads(self.inside.receive_mounts(len(layers)), layers)
            stack.callback(reads.close)
        except AuditUnavailable as error:
            self.problems.append(str(error))
        except OSError as error:  # the process could not enter its sandbox, and says so itself
            self.record.event("no audit", why=str(error))
        self.inside.release()
        return reads


def prepare(spec: LaunchSpec, tools: Tools, record: JobDirectory, stack: ExitStack, undo: ExitStack) -> PreparedAttempt:
    """Make cgroup, sandbox and streams.

    Args:
        stack: closes at the end of the attempt what this opens.
        undo: removes what this makes, if the attempt does not start.

    Raises:
        OSError, SandboxError: if that is not possible.
    """
    problems: list[str] = []
    cgroup = _make_cgroup(spec, tools, undo)
    checkpoint = take(spec)
    if checkpoint is not None:
        stack.callback(checkpoint.close)
        undo.callback(checkpoint.end, succeeded=False)
        if not checkpoint.lasting:
            problems.append(
                "another attempt of the same job is alive and has its checkpoint directory; this one had an empty one"
            )
        if checkpoint.discarded:
            problems.append("its checkpoint was not used, because its inputs, command or software have changed")
    inside = tools.standby.take(spec)
    stack.callback(inside.close)
    undo.callback(tools.standby.clear_up, inside.scratch, inside.layers, spec.exposed)
    undo.callback(inside.let_go)
    polled = tools.group is not None and tools.group.version == POLLED
    processes = Processes(inside, cgroup, record, UsageTally(), polled=polled)
    undo.callback(processes.end)
    inside.scratch.begin(spec.name)
    meter = inside.scratch.meter(spec.limits.disk_bytes, tuple((layer.upper, layer.root) for layer in inside.layers))
    files = FilesBefore.begin(spec, inside)
    without = detached(spec)
    if without is not None:
        stack.callback(without.close)
        undo.callback(without.end, staged=False)
    cap = spec.stream_bytes
    streams = (Stream(inside.stdout, record.stdout, 1, cap), Stream(inside.stderr, record.stderr, 2, cap))
    record.event("prepared")
    return PreparedAttempt(
        spec, tools, record, inside, processes, meter, files, streams, cgroup, checkpoint, without,
        _listener(spec, inside), problems,
    )  # fmt: skip


def _listener(spec: LaunchSpec, inside: Inside) -> Listener | None:
    """Prepare for the notifications of a job, but not of one that starts containers, whose engines have their own."""
    files = spec.files
    if not files.staged or not files.layers or files.nested or not can_listen():
        return None
    return Listener(inside.layers[: len(files.layers)], files.targets)


def _make_cgroup(spec: LaunchSpec, tools: Tools, undo: ExitStack) -> JobCgroup | None:
    if tools.group is None:
        return None
    limits = spec.limits
    if limits.pids is not None:
        limits = replace(limits, pids=limits.pids + tools.own_processes)
    cgroup = tools.group.create_job(spec.name, limits, spec.cpu_mode)
    undo.callback(remove_patiently, cgroup.remove)
    if spec.files.nested and os.geteuid() == 0:  # others may not write there
        cgroup.keep_settings()
    return cgroup
