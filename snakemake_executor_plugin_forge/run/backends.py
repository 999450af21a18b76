"""The backends of one run: this host, and the one that ``--forge-backend`` names."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from ..backends import registry
from ..backends.local.admission import GpuAdmission, QueuedBackend, beside, by_cores, by_memory, by_processes
from ..backends.local.adoption import AdoptingBackend
from ..backends.local.backend import LocalBackend
from ..backends.registry import Services
from ..backends.slurm.adoption import forbid_earlier
from ..kernel.shortage import REMEDY, jobs_at_once
from ..record.reader import read_run
from ..spec.backend import Backend
from ..spec.errors import ForgeError
from ..spec.job import Config
from ..staging.pending import Status, entries
from ..workers.nursery import NurserySetup
from ..workers.renderer import Renderer


class Backends:
    """Opens and closes the backends of a run. With ``--forge-backend=local`` there is only one."""

    def __init__(
        self,
        config: Config,
        setup: NurserySetup,
        run_dir: str,
        local_cores: int,
        notice: Callable[[str], None],
        cores: int,
    ) -> None:
        """Fork and connect. To be called while Snakemake has no threads.

        Args:
            setup: the facts that the nursery on this host needs.
            local_cores: how many cores jobs of this host may use while other jobs run elsewhere.
            notice: shows a sentence to the user; called in any thread.
            cores: how many cores the jobs of the run may use.

        Raises:
            ForgeError: if one of the backends cannot be opened.
        """
        if config.backend != "slurm" and (count := forbid_earlier(os.path.dirname(run_dir), setup.run_id)):
            notice(f"Forge: {count} job(s) that an earlier run left in Slurm cannot publish any more.")
        self._renderer: Renderer | None = None
        self.local: AdoptingBackend
        self.remote: Backend | None = None
        state = os.path.dirname(os.path.dirname(run_dir))
        if config.backend == registry.LOCAL:
            self.local = _adopting(_local(config, setup, notice, cores), setup.run_id, state, cores, notice)
            return
        open_backend = registry.find(config.backend)
        self._renderer = Renderer(setup.prepare, setup.render)  # before there are threads
        try:
            local = QueuedBackend(_local(config, setup, notice, local_cores), by_cores(max(1, local_cores)))
        except ForgeError:
            self._renderer.close()
            raise
        self.local = _adopting(local, setup.run_id, state, local_cores, notice)
        services = Services(setup.run_id, run_dir, config, partial(Renderer.command, self._renderer), notice)
        try:
            self.remote = open_backend(services)
        except ForgeError:
            self.close()
            raise

    def of(self, *, stays_here: bool) -> Backend:
        """Return the backend of a job."""
        return self.local if stays_here or self.remote is None else self.remote

    @property
    def both(self) -> tuple[Backend, ...]:
        """All backends of the run."""
        return (self.local,) if self.remote is None else (self.remote, self.local)

    def close(self) -> None:
        """Close all backends and the renderer."""
        for backend in self.both:
            backend.close()
        if self._renderer is not None:
            self._renderer.close()


def _local(
    config: Config, setup: NurserySetup, notice: Callable[[str], None], cores: int
) -> LocalBackend | QueuedBackend:
    """Open this host's backend. Where jobs may get more memory than Snakemake knows, they wait until it is free."""
    most = jobs_at_once()
    backend: LocalBackend | QueuedBackend = LocalBackend(setup, notice)
    if why := backend.host.home_note:
        notice(f"Forge: jobs cannot write to $HOME, because their files there cannot be kept apart: {why}")
    if most is not None and most < cores:
        notice(f"Forge: runs at most {most} job(s) at once, because this user may have few processes. {REMEDY}.")
        backend = QueuedBackend(backend, by_processes(most))
    if setup.gpus:
        backend = QueuedBackend(backend, GpuAdmission(setup.gpus, notice))
    return QueuedBackend(backend, by_memory(backend.host.run_memory_bytes)) if config.oom_retries else backend


def _adopting(
    local: LocalBackend | QueuedBackend, run_id: str, state: str, cores: int, notice: Callable[[str], None]
) -> AdoptingBackend:
    """Add what earlier runs left. While jobs of theirs still run, new jobs wait for the cores and memory these hold."""
    found = [entry for entry in entries(state) if entry.status() in (Status.RUNNING, Status.WAITING)]
    dead = {run for run in {entry.run for entry in found} if not read_run(f"{state}/runs/{run}").alive}
    found = [entry for entry in found if entry.run in dead]  # a Snakemake that lives keeps its own
    running = [entry for entry in found if entry.status() is Status.RUNNING]
    if not running:
        return AdoptingBackend(local, found, run_id, notice, lambda _: None)
    held = {entry.path: (entry.cpus, entry.memory_bytes or 0) for entry in running}
    queued = QueuedBackend(local, beside(max(1, cores), local.host.run_memory_bytes, held))
    total = sum(entry.cpus for entry in running)
    notice(
        f"Forge: {len(running)} job(s) continue from an earlier run. The {total} core(s) and the memory that they have "
        "are counted until they end: snakemake-forge jobs --running."
    )
    return AdoptingBackend(queued, found, run_id, notice, queued.release)
