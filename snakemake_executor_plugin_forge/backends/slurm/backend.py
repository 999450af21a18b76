"""The Slurm backend.

::

    thread "forge-slurm"      calls Slurm's commands, never more than one a second: the dispatcher
    thread "forge-results"    reads the results that the nodes' part of Forge writes: job_table.py

Pure functions decide: polling.py when to call Slurm and what becomes of a job without a result, node_state.py what a
copy does on its node. states.py says what Slurm's states mean, and fence.py which copy may publish.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ...spec.backend import Done
from ...spec.host import Host
from ...spec.job import LaunchSpec
from ...spec.slurm import AUTO, SlurmSettings
from ...spec.verdict import EndedBy, Order, Verdict
from ..registry import Services
from . import exchange, fence
from .client import SlurmClient, Unanswered
from .dispatcher import CLOSE_SECONDS, Dispatcher
from .job import Job
from .job_table import JobTable
from .mpi import is_mpi
from .packing import Durations
from .parse import ClusterFacts
from .sbatch import adapt, check_in_run, shape


class SlurmBackend:
    """Runs jobs in the cluster of SLURM_CONF."""

    name = "slurm"

    def __init__(self, services: Services, client: SlurmClient | None = None) -> None:
        """Find the cluster and start the threads.

        Raises:
            HostError: if there is none.
        """
        client = client or SlurmClient()
        self.facts = client.facts()
        self._settings = with_account(services.config.slurm, client, services.notice)
        self._config = services.config
        self.host = _host(self.facts)
        os.makedirs(f"{services.run_dir}/slurm/{exchange.RESULTS}", exist_ok=True)
        self._table = JobTable()
        self._durations = Durations(os.path.dirname(services.run_dir))
        self._dispatcher = Dispatcher(services, client, self.facts, self._table, self._durations)
        self._stopped = False
        self._threads = [threading.Thread(target=self._dispatcher.run, name="forge-slurm", daemon=True),
                         threading.Thread(target=self._table.listen, name="forge-results", daemon=True)]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def check(self, rule: str, resources: dict[str, object]) -> None:
        check_in_run(rule, resources, self._config)

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        del is_command
        spec = adapt(spec)

        def noted(verdict: Verdict) -> None:
            self._durations.note(spec.rule, verdict)
            self._dispatcher.groups.note(spec, verdict)
            done(verdict)

        own = shape(spec, self._settings)
        group, of_group = self._dispatcher.groups.shape(spec)
        alone = (spec.together or is_mpi(spec.resources)) if group is None else not of_group
        self._table.add(
            Job(spec, payload, noted, own, time.monotonic(), alone=alone, group=group, group_shape=of_group)
        )

    def has_begun(self, name: str) -> bool:
        """See :class:`...spec.backend.RunsGroups`."""
        job = self._table.find(name)
        return job is None or (bool(job.attempt) and fence.latest(job.attempt) > 0)

    def cancel(self, name: str, order: Order) -> None:
        """See :class:`...spec.backend.Backend`. This would end a whole pack, but no member of one gets here.

        Only jobs that run at the same time are ended one by one (plugin/connected_jobs.py). These are ``together``, so
        that :meth:`submit` lets them share no pack; those in one allocation are ended one by one, too: groups.py.
        """
        self._table.cancel([name], order)

    def cancel_all(self, order: Order) -> None:
        """See :class:`...spec.backend.Backend`. Slurm itself kills after its KillWait: there is no grace to shorten."""
        self._stopped = True
        self._table.cancel(None, order)

    def wait_idle(self, timeout_seconds: float) -> bool:
        return self._table.wait_idle(timeout_seconds)

    def close(self) -> None:
        """See :class:`...spec.backend.Backend`. Jobs that are left are cancelled, or else kept from publishing."""
        if self._table.jobs():
            self.cancel_all(Order(EndedBy.FORGE, "the run is over"))
            self.wait_idle(CLOSE_SECONDS)
        self._table.close()
        for thread in self._threads:
            thread.join()
        self._dispatcher.groups.end_all()
        self._dispatcher.abandon()
        self._dispatcher.end_earlier(succeeded=self._table.all_ok and not self._stopped)


open_backend = SlurmBackend
"""Opens the backend for :mod:`..registry`."""


def with_account(settings: SlurmSettings, client: SlurmClient, notice: Callable[[str], None]) -> SlurmSettings:
    """Replace the account ``auto`` by the one that the user used last, if Slurm's accounting knows one."""
    if settings.account != AUTO:
        return settings
    try:
        account = client.account()
    except Unanswered as error:
        account = ""
        notice(f"Forge: --forge-slurm-account=auto: {error}; the cluster's default counts.")
    return replace(settings, account=account)


def _host(facts: ClusterFacts) -> Host:
    """The host that a plan assumes for nodes that nobody has seen yet: the node itself checks the rest."""
    return Host(
        run_memory_bytes=1 << 62,
        cpus=1 << 20,
        cgroup="slurm",
        cgroup_note=f"of Slurm {facts.version}, cluster {facts.name}",
        namespaces="user",  # what can be had is planned; node.enclosed() takes away what a node does not give
        namespaces_note="",
        mechanisms=(),
    )
