"""The way of a run and of each of its jobs, from Snakemake's request to the verdict: docs/explanation/job.md."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ..kernel.failpoints import reached
from ..record.attempt_dir import now
from ..sandbox.fanotify import refusal as audit_refusal
from ..sandbox.filesystem.homes import home_directory, kept_directories
from ..sandbox.filesystem.mounts import MountTable
from ..sandbox.filesystem.overlay import may_cover
from ..sandbox.gpus import find
from ..sandbox.job_process import Execute
from ..software.registry import Runtimes
from ..software.store import Report
from ..spec.backend import Done, RunsGroups
from ..spec.catalog import Runtime, for_runtime, with_runtime
from ..spec.errors import HostError, UsageError, located
from ..spec.file_policy import PRIVATE_DIRECTORIES, below
from ..spec.host import Host, check_requirement, isolation_line
from ..spec.job import Config, JobRequest, RunContext
from ..spec.oom_retry import OomPolicy
from ..spec.paths import STAGING, STATE
from ..spec.plan import plan, stages
from ..spec.printable import few
from ..spec.resources import check_group, priority_of_run
from ..spec.verdict import Order, Verdict
from ..staging.confines import in_words
from ..staging.journal import undecided
from ..staging.recovery import clear_after_own, recover_dead_runs
from ..workers.nursery import NurserySetup, Render
from .attempts import Attempts, Submission
from .backends import Backends
from .resource_checks import RefusedError, ResourceChecks, plain, without_gpus
from .run_file import RunFile

_UNLIMITED = 1 << 20  # cores; Snakemake's own number for that does not fit into all readers of JSON


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The facts about a run that the program knows which starts it."""

    config: Config
    prepare: Callable[[], None]  # called in the nursery right after its fork
    execute: Execute  # called in the process of a job
    render: Render  # called in the nursery for a job that may come down to a command
    exposed: tuple[str, ...]  # paths that every job must see (workflow sources, environments, caches)
    declared: tuple[str, ...]  # variables that the workflow wants in its jobs' environment
    notice: Callable[[str], None]  # shows a sentence to the user; called in any thread
    runtimes: Runtimes  # of the catalog; the run closes them
    local_cores: int = 1  # cores of this host for jobs that stay here while others run elsewhere
    cores: int | None = None  # cores for all jobs; None: all that this host has
    workflow: Mapping[str, object] = field(default_factory=dict)  # JSON values for the record of the run
    started_in: str | None = None  # the directory in which the user gave the command, for the record


class Engine:
    """One run: owns the backends, plans every job, brings every verdict back."""

    def __init__(self, request: RunRequest) -> None:
        """Start the backends and open the record of the run.

        Raises:
            ForgeError: if this host cannot do what the settings ask for, or Forge cannot write the record.
        """
        config, notice = request.config, request.notice
        self._notice = notice
        if config.audit and (refusal := audit_refusal()):
            notice(f"Forge: without --forge-audit: {refusal}")
            config = replace(config, audit=False)
        self.config = config
        self._runtimes = request.runtimes
        workdir = os.path.realpath(os.getcwd())
        state = f"{workdir}/{STATE}"
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}-{secrets.token_hex(2)}"
        run_dir = f"{state}/runs/{run_id}"
        self._cores = min(request.cores or os.cpu_count() or 1, _UNLIMITED)
        self._record = RunFile(run_dir, workdir, config.backend, request.workflow, request.started_in, notice)
        self._scratch = config.scratch_dir or PRIVATE_DIRECTORIES[0]
        recover(state, workdir, run_id, self._scratch, notice)
        reached("recovered", "")
        gpus = find(config.gpus, os.environ)
        setup = NurserySetup(
            run_id, workdir, config.run_memory, config.run_pids, gpus, request.declared,
            request.prepare, request.execute, request.render, priority_of_run(config), self._scratch,
        )  # fmt: skip
        with self._record.starting():
            self._places = _open_backends(config, setup, run_dir, request.local_cores, notice, self._cores)
        self._mounts = MountTable(_inside(workdir, request.runtimes.environments()))
        self._run = RunContext(
            run_id, workdir, state,
            exposed=tuple(_below_private([workdir, *request.exposed])),
            home=home_directory(),
            caches=kept_directories(workdir),
            mount_points=self._mounts.points(),
            may_cover=may_cover,
            visible=tuple(path for path in _real(request.exposed) if not below(workdir, path)),
        )  # fmt: skip
        self._attempts = Attempts(notice)
        self._resources = ResourceChecks(config, self._run, self._attempts.number, notice)
        self._metrics: Any = None
        self.write_record()
        reached("run written", "")
        if config.metrics_file is not None:
            self._start_metrics(config.metrics_file)

    def _start_metrics(self, path: str) -> None:
        try:
            self._metrics = _metrics_file(path, self._run, self._places.local.host, self._cores, self._notice)
            self._attempts.observe = self._metrics.observe
        except UsageError:
            self.close()
            raise

    @property
    def directory(self) -> str:
        """The directory with the record of this run."""
        return self._record.directory

    @property
    def has_remote(self) -> bool:
        """Whether there is a backend beside this host."""
        return self._places.remote is not None

    @property
    def groups(self) -> RunsGroups | None:
        """The backend beside this host, if it runs the members of a group on one host."""
        return self._places.remote if isinstance(self._places.remote, RunsGroups) else None

    def isolation_line(self) -> str:
        """The line that says what encloses the jobs of this run."""
        asked = priority_of_run(self.config).io_weights
        here = isolation_line(self._places.local.host, self.config.network, self.config.files, io_weights=asked)
        remote = self._places.remote
        if remote is None:
            return here
        local = f"{here.removeprefix('Forge: ').removesuffix('.')}"
        return f"Forge: backend {remote.name} {remote.host.cgroup_note}; rules in localrules run here: {local}."

    def check(self, rule: str, resources: dict[str, object], *, stays_here: bool, place: str) -> None:
        """Refuse a rule's resources before anything runs.

        Args:
            stays_here: whether its jobs run on this host, whatever the backend is.
            place: file and line of the rule.

        Raises:
            UsageError: names the rule, its place, the resource and its value.
        """
        backend = self._places.of(stays_here=stays_here)
        self._resources.check(rule, resources, backend, place, remote=backend is self._places.remote)

    def refuse(self, request: JobRequest, by_hand: str, error: UsageError) -> Verdict:
        """Put on record that a job was refused."""
        return self._resources.refuse(request, self._places.of(stays_here=request.stays_here), by_hand, error)

    def _context(self) -> RunContext:
        """The values that all jobs share now: a mount may have come or gone."""
        if (points := self._mounts.points()) is not self._run.mount_points:
            self._run = replace(self._run, mount_points=points)
        return self._run

    def stages(self, request: JobRequest, runtime: Runtime) -> bool:
        """Whether Forge keeps the outputs of a job apart until it has succeeded."""
        host = self._places.of(stays_here=request.stays_here).host
        return stages(request, for_runtime(self.config, runtime), host, self._context())

    def open_runtimes(self, runtimes: Iterable[Runtime], report: Callable[[Runtime], Report]) -> None:
        """Make runtimes ready before the first job that needs them.

        Raises:
            ForgeError: see :meth:`..software.registry.Runtimes.open`.
        """
        self._runtimes.open(runtimes, report)
        self.write_record()

    def check_group(self, members: Iterable[tuple[str, Mapping[str, object]]]) -> None:
        """Refuse a group whose members could wait for each other without end.

        Raises:
            UsageError: see :func:`..spec.resources.check_group`.
        """
        check_group(members, self._places.local.host.gpus)

    def submit(
        self,
        request: JobRequest,
        payload: bytes,
        by_hand: str,
        how: str,
        done: Done,
        *,
        is_command: bool,
        runtime: Runtime,
        identity: str | None,
        root: str | None = None,
    ) -> str:
        """Plan one attempt and start it; ``done`` gets its verdict, in another thread.

        Args:
            is_command: see :class:`..spec.backend.Backend`.
            runtime: the runtime whose limits hold where the rule sets none.
            identity: the key of its environment in ``run.json``.

        Returns:
            The attempt's name.

        Raises:
            RefusedError: for resources that the host cannot provide; no process has started then.
        """
        backend = self._places.of(stays_here=request.stays_here)
        remote = backend is self._places.remote
        asked = request
        if remote:  # the GPUs are not those of this host, and the scheduler counts them
            asked = replace(request, resources=without_gpus(request.resources))
        asked = self._resources.fitted(asked, backend)
        config = for_runtime(self.config, runtime)
        context = self._context()
        try:
            planned = plan(asked, self._attempts.number(), by_hand, how, config, backend.host, context, remote=remote)
        except UsageError as error:
            error = located(error, request.rule, request.declared_at)
            raise RefusedError(str(error), self.refuse(request, by_hand, error)) from None
        if "gpu" in planned.isolation.not_enforced:
            self._resources.warn_of_gpus(request.rule, asked.resources, backend.host.gpus)
        planned = replace(planned, backend=backend.name, resources=plain(request.resources), submitted=now())
        spec = replace(with_runtime(planned, runtime, identity, root), asked=request.asked, planned=time.monotonic())
        # The other members of a group have seen it die; a shadow directory holds what the first attempt left.
        policy = OomPolicy() if request.together or request.shadow else OomPolicy.of(config)
        most = backend.host.run_memory_bytes
        self._attempts.start(Submission(backend, payload, is_command, done, request.targets, most, policy), spec)
        reached("submitted", spec.rule)
        return spec.name

    def cancel(self, name: str, order: Order) -> None:
        """End one attempt."""
        self._attempts.cancel(self._places.both, name, order)

    def cancel_all(self, order: Order) -> None:
        """End every attempt, TERM first, and wait until all are dead. A second Ctrl-C cuts the grace short."""
        patience = self.config.grace_seconds + 30
        try:
            self._end_all(order)
            self._wait_idle(patience)
        except KeyboardInterrupt:
            self._end_all(replace(order, words=f"{order.words}, twice", grace=False))
            self._wait_idle(patience)

    def leave(self, order: Order) -> None:
        """Leave the jobs that continue without Snakemake to themselves, and end all others as :meth:`cancel_all`."""
        self._attempts.end()
        if self._places.remote is not None:
            self._places.remote.cancel_all(order)
        self._places.local.leave(order)
        self._wait_idle(self.config.grace_seconds + 30)

    def _end_all(self, order: Order) -> None:
        self._attempts.end()
        for backend in self._places.both:
            backend.cancel_all(order)

    def _wait_idle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for backend in self._places.both:
            backend.wait_idle(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End the run, and remove all its processes, cgroups and temporary directories."""
        reached("closing", "")
        self._attempts.end()
        if self._metrics is not None:
            self._metrics.sample()
        self._places.close()
        clear_after_own(self._run.state_dir, self._run.workdir, self._run.run_id, self._scratch)
        for directory in undecided(f"{self._run.workdir}/{STAGING}"):
            if f"-{self._run.run_id}-" in directory:  # those of earlier runs were named when this one began
                self._notice(f"Forge: {in_words(directory, self._run.workdir)}")
        reached("closed", "")
        try:
            self.write_record(ended=now())
        except OSError as error:  # a full disk must not fail a run whose jobs have all succeeded
            self._notice(f"Forge: the record of this run is incomplete: {error.strerror}")
        self._runtimes.close()
        self._mounts.close()
        if self._metrics is not None:
            self._metrics.close()

    def write_plan(self, plan: dict[str, object]) -> None:
        """Put the numbers of jobs into the record of the run: plugin/run_plan.py. Called in any thread."""
        if self._metrics is not None:
            self._metrics.plan(plan)
        self._record.update(cores=self._cores, plan=plan)

    def write_record(self, ended: str | None = None) -> None:
        """Write ``run.json`` with all that is known now; ``ended``: the time at which the run ended."""
        host = self._places.local.host
        self._record.update(
            isolation=self.isolation_line(),
            cgroup=host.cgroup_note,
            memory_bytes=host.run_memory_bytes,
            runtimes=self._runtimes.describe(),
            adopted=self._places.local.adopted,
            ended=ended,
        )


def _open_backends(
    config: Config, setup: NurserySetup, run_dir: str, local_cores: int, notice: Callable[[str], None], cores: int
) -> Backends:
    places = Backends(config, setup, run_dir, local_cores, notice, cores)
    try:
        check_requirement(config.require, places.local.host, config.io_weight)
    except HostError:
        places.close()
        raise
    return places


def _metrics_file(path: str, run: RunContext, host: Host, cores: int, notice: Callable[[str], None]) -> Any:
    # Imported here: few runs want it, and it loads a library.
    from ..analysis.metrics_file import MetricsFile, RunFacts

    return MetricsFile(path, notice, RunFacts(run.run_id, run.workdir, host.cgroup_note, cores))


def recover(state: str, workdir: str, run_id: str, scratch: str, notice: Callable[[str], None]) -> bool:
    """Complete what dead runs were publishing, remove what else is left of them, and say so.

    Returns:
        Whether any output was published.

    Raises:
        HostError: if that cannot be done, or Snakemake has to take outputs for incomplete.
    """
    try:
        recovered = recover_dead_runs(state, workdir, run_id, scratch)
    except OSError as error:
        raise HostError(
            f"an earlier run was ended while it published outputs, and Forge cannot complete that: {error}. "
            f"Remove the cause and run again; the journals are in {workdir}/{STAGING}."
        ) from error
    if recovered.others:
        pids = ", ".join(map(str, recovered.others))
        notice(
            f"Forge: another Snakemake (pid {pids}) is at work in this directory. Each leaves the other's jobs alone; "
            "of two jobs that make the same file at the same time, the later one fails."
        )
    for directory in recovered.undecided:
        notice(f"Forge: {in_words(directory, workdir)}")
    for host, directory in recovered.elsewhere:
        notice(
            f"Forge: a run on host {host} was publishing outputs when it was last seen ({directory}), and whether it "
            "is alive cannot be seen from here. If it is not, they may be half new and half old: complete them there "
            f"or, if that host is down for good, with: snakemake-forge resume --dead-host {host}"
        )
    if recovered.marked:  # by now, Snakemake has taken them for complete
        raise HostError(
            f"Nothing was run: {few(recovered.marked)} may be half new and half old (see above), and Snakemake takes "
            "them for incomplete from now on. Give the same command again with --rerun-incomplete, or: "
            "snakemake-forge resume"
        )
    if recovered.published:
        notice(f"Forge: completed the publication of an interrupted run: {', '.join(recovered.published)}")
    return bool(recovered.published)


def _below_private(paths: Iterable[str]) -> list[str]:
    """The paths that a private directory would cover; all others are visible anyway."""
    return [p for p in _real(paths) if p.startswith(tuple(d + "/" for d in PRIVATE_DIRECTORIES))]


def _inside(workdir: str, environments: Iterable[str]) -> tuple[str, ...]:
    """Environments below the working directory: below its layer, jobs could write into them as if they were data."""
    return tuple(path for path in _real(environments) if below(path, workdir) and path != workdir)


def _real(paths: Iterable[str]) -> list[str]:
    """The paths as their user names them, and without links."""
    return sorted({os.path.realpath(p) for p in paths if p} | {os.path.abspath(p) for p in paths if p})
