"""The story of a run and of each of its jobs, from Snakemake's request to the verdict. See docs/explanation/job.md."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from .attempts import Attempts, Order
from .backends.nursery import Orders, Render
from .backends.places import Places
from .catalog import Runtime, dress, for_runtime
from .errors import HostError, UsageError
from .faults import reached
from .files import PRIVATE_DIRECTORIES, STAGING, below
from .model import RECORD_SCHEMA, Config, Done, Host, JobRequest, RunContext
from .plan import GPU_RESOURCES, check_group, check_requirement, isolation_line, plan, stages
from .priority import check_priority, priority_of_run
from .record.identity import boot_id, start_time, user_name
from .record.jobdir import now
from .record.jsonfile import replace_file
from .record.reader import RUN
from .record.software import software_versions
from .recovery import recover_dead_runs
from .retries import OomPolicy
from .runtimes.registry import Runtimes
from .runtimes.store import Report
from .sandbox.audit import refusal as audit_refusal
from .sandbox.gpus import find
from .sandbox.inside import Execute
from .sandbox.mounts import mount_points
from .sandbox.syscalls import spread_subdirectories

STATE_DIRECTORY = ".snakemake/forge"


class Engine:
    """One run: owns the backends, plans every job, brings every verdict back."""

    def __init__(
        self,
        config: Config,
        prepare: Callable[[], None],
        execute: Execute,
        render: Render,
        exposed: list[str],
        declared: tuple[str, ...],
        notice: Callable[[str], None],
        runtimes: Runtimes,
        local_cores: int = 1,
        workflow: Mapping[str, object] | None = None,
        started_in: str | None = None,
        cores: int | None = None,
    ) -> None:
        """Start the backends and open the record of the run.

        Args:
            prepare: called in the nursery right after the fork.
            execute: what a job does: see :data:`.sandbox.inside.Execute`.
            render: called in the nursery for jobs that may come down to a command.
            exposed: paths that every job must see (workflow sources, environments, caches).
            declared: variables that the workflow wants in its jobs' environment.
            notice: shows a sentence to the user; called in any thread.
            runtimes: of the catalog; closed with this.
            workflow: what is to be kept of the workflow in the record of the run; JSON.
            local_cores: how many cores of this host jobs may use that stay here while others run elsewhere.
            cores: how many jobs may use; None: all that this host has.
            started_in: the directory in which the command of this process was given, for the record.

        Raises:
            ForgeError: if this host cannot do what the settings ask for, or the record cannot be written.

        """
        if config.audit and (refusal := audit_refusal()):
            notice(f"Forge: without --forge-audit: {refusal}")
            config = replace(config, audit=False)
        self.config = config
        self._runtimes = runtimes
        self._started = now()
        workdir = os.path.realpath(os.getcwd())
        state = f"{workdir}/{STATE_DIRECTORY}"
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}-{secrets.token_hex(2)}"
        self._run_dir = f"{state}/runs/{run_id}"
        self._make_run_dir()
        restart = {"python": sys.executable, "arguments": sys.orig_argv[1:], "directory": started_in}
        self._facts = self._known_facts(run_id, workdir, workflow or {}) | {"restart": restart}
        self._write_facts()  # so that whatever happens from here on can be repeated
        self._recover(state, workdir, run_id, notice)
        reached("recovered", "")
        gpus = find(config.gpus, os.environ)
        orders = Orders(
            run_id, workdir, config.run_memory, config.run_pids, gpus, declared, prepare, execute, render,
            priority_of_run(config),
        )  # fmt: skip
        self._places = Places(config, orders, self._run_dir, local_cores, notice, cores or os.cpu_count() or 1)
        self._run = RunContext(
            run_id=run_id,
            workdir=workdir,
            state_dir=state,
            exposed=tuple(_below_private([workdir, *exposed])),
            home=_home(),
            mount_points=mount_points(),
            visible=tuple(path for path in _real(exposed) if not below(workdir, path)),
        )
        self._attempts = Attempts(notice)
        self._metrics: Any = None
        try:
            check_requirement(config.require, self._places.local.host, config.io_weight)
        except HostError:
            self._places.close()
            raise
        self._write_run()
        reached("run written", "")
        if config.metrics_file is not None:
            self._start_metrics(config.metrics_file, notice)

    def _start_metrics(self, path: str, notice: Callable[[str], None]) -> None:
        # Imported here: few want it, and it brings a library.
        from .record.metrics import MetricsFile

        try:
            self._metrics = MetricsFile(path, notice)
            self._attempts.observe = self._metrics.observe
        except UsageError:
            self.close()
            raise

    def _recover(self, state: str, workdir: str, run_id: str, notice: Callable[[str], None]) -> None:
        try:
            recovered = recover_dead_runs(state, workdir, run_id)
        except OSError as error:
            raise HostError(
                f"an earlier run was ended while it published outputs, and that cannot be finished: {error}. "
                f"Mend that and run again; the journals are in {workdir}/{STAGING}."
            ) from error
        if recovered.published:
            notice(f"Forge: an earlier run was ended while it published; done now: {', '.join(recovered.published)}")

    def _make_run_dir(self) -> None:
        try:
            runs = os.path.dirname(self._run_dir)
            os.makedirs(runs, exist_ok=True)
            spread_subdirectories(runs)
            os.mkdir(self._run_dir)
        except OSError as error:
            raise HostError(
                f"the record of this run cannot be written to {self._run_dir}: {error.strerror}. "
                "Make the working directory writable, or start Snakemake in another one with --directory."
            ) from error

    @property
    def host(self) -> Host:
        """The host as probed, or what is known of the hosts of another backend."""
        return self._places.host

    @property
    def has_remote(self) -> bool:
        """Whether there is a backend beside this host."""
        return self._places.remote is not None

    def isolation_line(self) -> str:
        """What this run's jobs are enclosed in, in one line."""
        asked = priority_of_run(self.config).io_weights
        here = isolation_line(self._places.local.host, self.config.network, self.config.files, io_weights=asked)
        remote = self._places.remote
        if remote is None:
            return here
        local = f"{here.removeprefix('Forge: ').removesuffix('.')}"
        return f"Forge: backend {remote.name} {remote.host.cgroup_note}; rules in localrules run here: {local}."

    def check(self, rule: str, resources: dict[str, object], *, stays_here: bool) -> None:
        """Refuse a rule's resources before anything runs.

        Args:
            stays_here: whether its jobs run on this host whatever the backend is.

        Raises:
            UsageError: names the rule, the resource and its value.

        """
        backend = self._places.of(stays_here=stays_here)
        backend.check(rule, resources)
        check_priority(rule, resources, self.config.require, backend.host)

    def stages(self, request: JobRequest, runtime: Runtime) -> bool:
        """Whether the outputs of a job are kept apart until it has succeeded."""
        host = self._places.of(stays_here=request.stays_here).host
        return stages(request, for_runtime(self.config, runtime), host, self._run)

    def open_runtimes(self, runtimes: Iterable[Runtime], report: Callable[[Runtime], Report]) -> None:
        """Have runtimes ready before the first job that needs them.

        Raises:
            ForgeError: see :meth:`.runtimes.registry.Runtimes.open`.

        """
        self._runtimes.open(runtimes, report)
        self.record_runtimes()

    def record_runtimes(self) -> None:
        """Describe in ``run.json`` what is in use by now."""
        self._write_run()

    def check_group(self, members: Iterable[tuple[str, Mapping[str, object]]]) -> None:
        """Refuse a group whose members could wait for each other for ever.

        Raises:
            UsageError: see :func:`.plan.check_group`.

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
            is_command: see :class:`.model.Backend`.
            runtime: whose limits hold where the rule has none.
            identity: of its environment, as in ``run.json``.
            root: of its image.

        Returns:
            The attempt's name.

        Raises:
            UsageError: for resources that cannot be met; nothing has been started then.

        """
        backend = self._places.of(stays_here=request.stays_here)
        if backend is self._places.remote:  # its GPUs are not those of this host, and it counts them itself
            asked = replace(request, resources=_without(request.resources, GPU_RESOURCES))
        else:
            asked = request
        config = for_runtime(self.config, runtime)
        planned = plan(asked, self._attempts.number(), by_hand, how, config, backend.host, self._run)
        planned = replace(planned, backend=backend.name, resources=_plain(request.resources))
        if backend is self._places.remote:
            planned = replace(planned, adoptable=False, goes_on=False)
        spec = dress(planned, runtime, identity, root)
        # Of a group the others have seen it die; a shadow directory has in it what the first attempt left.
        policy = OomPolicy() if request.together or request.shadow else OomPolicy.of(config)
        most = backend.host.run_memory_bytes
        self._attempts.start(Order(backend, payload, is_command, done, request.targets, most, policy), spec)
        reached("submitted", spec.rule)
        return spec.name

    def cancel(self, name: str, reason: str) -> None:
        """End one attempt."""
        self._attempts.cancel(self._places.both, name, reason)

    def cancel_all(self, reason: str) -> None:
        """End every attempt, TERM first, and wait until all are dead. A second Ctrl-C cuts the grace short."""
        patience = self.config.grace_seconds + 30
        self._end_all(reason, grace=True)
        try:
            self._wait_idle(patience)
        except KeyboardInterrupt:
            self._end_all(f"{reason}, twice", grace=False)
            self._wait_idle(patience)

    def leave(self, reason: str) -> None:
        """Let those jobs go that go on without Snakemake, and end the others as :meth:`cancel_all`."""
        self._attempts.end()
        if self._places.remote is not None:
            self._places.remote.cancel_all(reason, True)
        self._places.local.leave(reason)
        self._wait_idle(self.config.grace_seconds + 30)

    def _end_all(self, reason: str, *, grace: bool) -> None:
        self._attempts.end()
        for backend in self._places.both:
            backend.cancel_all(reason, grace)

    def _wait_idle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for backend in self._places.both:
            backend.wait_idle(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End the run: no process, cgroup or temporary directory of it is left."""
        reached("closing", "")
        self._attempts.end()
        self._places.close()
        reached("closed", "")
        self._write_run(ended=now())
        self._runtimes.close()
        if self._metrics is not None:
            self._metrics.close()

    def _known_facts(self, run_id: str, workdir: str, workflow: Mapping[str, object]) -> dict[str, object]:
        """What of ``run.json`` is known before the host is."""
        return {
            "schema": RECORD_SCHEMA,
            "run": run_id,
            "pid": os.getpid(),
            "start_time": start_time(os.getpid()),
            "boot_id": boot_id(),
            "host": socket.gethostname(),
            "command": sys.argv,
            "workdir": workdir,
            "isolation": "",
            "backend": self.config.backend,
            "cgroup": "",
            "memory_bytes": 0,
            "runtimes": {},
            "versions": software_versions(),
            "user": user_name(),
            "workflow": workflow,
            "started": self._started,
            "ended": None,
        }

    def _write_run(self, ended: str | None = None) -> None:
        self._facts |= {
            "isolation": self.isolation_line(),
            "cgroup": self._places.local.host.cgroup_note,
            "memory_bytes": self._places.local.host.run_memory_bytes,
            "runtimes": self._runtimes.describe(),
            "adopted": self._places.local.adopted,
            "ended": ended,
        }
        self._write_facts()

    def _write_facts(self) -> None:
        replace_file(f"{self._run_dir}/{RUN}", json.dumps(self._facts, indent=1), durable=True)


def _below_private(paths: list[str]) -> list[str]:
    """Those of the paths that a private directory would cover; the others are visible anyway."""
    return [p for p in _real(paths) if p.startswith(tuple(d + "/" for d in PRIVATE_DIRECTORIES))]


def _real(paths: list[str]) -> list[str]:
    """The paths as they are named, and as they are without links."""
    return sorted({os.path.realpath(p) for p in paths if p} | {os.path.abspath(p) for p in paths if p})


def _home() -> str | None:
    home = os.path.realpath(os.path.expanduser("~"))
    return home if os.path.isdir(home) else None


def _without(resources: Mapping[str, object], names: Iterable[str]) -> dict[str, object]:
    return {key: value for key, value in resources.items() if key not in names}


def _plain(resources: Mapping[str, object]) -> dict[str, object]:
    """Those that are numbers and words: they travel to other processes and hosts."""
    return {key: value for key, value in resources.items() if isinstance(value, str | int | float)}
