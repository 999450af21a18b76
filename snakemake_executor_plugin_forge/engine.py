"""The story of a run and of each of its jobs, from Snakemake's request to the verdict. See docs/explanation/job.md."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from .backends.local import LocalBackend
from .backends.nursery import Orders, Render
from .errors import HostError
from .model import RECORD_SCHEMA, Config, Done, Host, JobRequest, RunContext
from .plan import PRIVATE_DIRECTORIES, check_group, check_requirement, check_resources, isolation_line, plan
from .record.identity import boot_id, start_time
from .record.jobdir import now
from .sandbox.gpus import find
from .sandbox.inside import Execute
from .sandbox.syscalls import spread_subdirectories

STATE_DIRECTORY = ".snakemake/forge"


class Engine:
    """One run: owns the backend, plans every job, brings every verdict back."""

    def __init__(
        self,
        config: Config,
        prepare: Callable[[], None],
        execute: Execute,
        render: Render,
        exposed: list[str],
        notice: Callable[[str], None],
    ) -> None:
        """Start the backend and open the record of the run.

        Args:
            prepare: called in the nursery right after the fork.
            execute: what a job does: see :data:`.sandbox.inside.Execute`.
            render: called in the nursery for jobs that may come down to a command.
            exposed: paths that every job must see (workflow sources, environments, caches).
            notice: shows a sentence to the user; called in any thread.

        Raises:
            ForgeError: if this host cannot do what the settings ask for, or the record cannot be written.

        """
        self.config = config
        self._started = now()
        workdir = os.path.realpath(os.getcwd())
        state = f"{workdir}/{STATE_DIRECTORY}"
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}-{secrets.token_hex(2)}"
        self._run_dir = f"{state}/runs/{run_id}"
        self._make_run_dir()
        gpus = find(config.gpus, os.environ)
        orders = Orders(run_id, config.run_memory, config.run_pids, gpus, prepare, execute, render)
        self._backend = LocalBackend(orders, notice)
        host = self._backend.host
        self._run = RunContext(
            run_id=run_id,
            workdir=workdir,
            state_dir=state,
            exposed=tuple(_below_private([workdir, *exposed])),
        )
        self._count = 0
        try:
            check_requirement(config.require, host)
        except HostError:
            self._backend.close()
            raise
        self._write_run()

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
        """The host as probed."""
        return self._backend.host

    def isolation_line(self) -> str:
        """What this run's jobs are enclosed in, in one line."""
        return isolation_line(self.host, self.config.network)

    def check(self, rule: str, resources: dict[str, object]) -> None:
        """Refuse a rule's resources before anything runs.

        Raises:
            UsageError: see :func:`.plan.check_resources`.

        """
        check_resources(rule, resources, self.host)

    def check_group(self, members: Iterable[tuple[str, Mapping[str, object]]]) -> None:
        """Refuse a group whose members could wait for each other for ever.

        Raises:
            UsageError: see :func:`.plan.check_group`.

        """
        check_group(members, self.host.gpus)

    def submit(
        self, request: JobRequest, payload: bytes, by_hand: str, how: str, done: Done, *, is_command: bool
    ) -> str:
        """Plan one attempt and start it; ``done`` gets its verdict, in another thread.

        Args:
            is_command: see :class:`.model.Backend`.

        Returns:
            The attempt's name.

        Raises:
            UsageError: for resources that cannot be met; nothing has been started then.

        """
        self._count += 1
        spec = plan(request, self._count, by_hand, how, self.config, self.host, self._run)
        self._backend.submit(spec, payload, done, is_command=is_command)
        return spec.name

    def cancel(self, name: str, reason: str) -> None:
        """End one attempt."""
        self._backend.cancel(name, reason)

    def cancel_all(self, reason: str) -> None:
        """End every attempt, TERM first, and wait until all are dead. A second Ctrl-C cuts the grace short."""
        patience = self.config.grace_seconds + 30
        self._backend.cancel_all(reason, grace=True)
        try:
            self._backend.wait_idle(patience)
        except KeyboardInterrupt:
            self._backend.cancel_all(f"{reason}, twice", grace=False)
            self._backend.wait_idle(patience)

    def close(self) -> None:
        """End the run: no process, cgroup or temporary directory of it is left."""
        self._backend.close()
        self._write_run(ended=now())

    def _write_run(self, ended: str | None = None) -> None:
        record = {
            "schema": RECORD_SCHEMA,
            "run": self._run.run_id,
            "pid": os.getpid(),
            "start_time": start_time(os.getpid()),
            "boot_id": boot_id(),
            "host": socket.gethostname(),
            "command": sys.argv,
            "workdir": self._run.workdir,
            "isolation": self.isolation_line(),
            "cgroup": self.host.cgroup_note,
            "memory_bytes": self.host.run_memory_bytes,
            "started": self._started,
            "ended": ended,
        }
        path = f"{self._run_dir}/run.json"
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
        os.rename(f"{path}.new", path)


def _below_private(paths: list[str]) -> list[str]:
    """Those of the paths that a private directory would cover; the others are visible anyway."""
    real = {os.path.realpath(p) for p in paths if p} | {os.path.abspath(p) for p in paths if p}
    return sorted(p for p in real if p.startswith(tuple(d + "/" for d in PRIVATE_DIRECTORIES)))
