"""The two places where jobs of one run go: this host, and what ``--forge-backend`` names."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from ..errors import ForgeError
from ..model import Backend, Config, Host
from ..record.reader import read_run
from ..staged import Status, entries
from . import registry
from .adopting import AdoptingBackend
from .local import LocalBackend
from .nursery import Orders
from .queued import QueuedBackend
from .renderer import Renderer
from .rooms import Beside, Cores, Memory
from .services import Services
from .slurm_leftovers import forbid_earlier


class Places:
    """Opens them, and closes them. With ``--forge-backend=local`` they are one."""

    def __init__(
        self,
        config: Config,
        orders: Orders,
        run_dir: str,
        local_cores: int,
        notice: Callable[[str], None],
        cores: int,
    ) -> None:
        """Fork and connect. To be called while Snakemake has no threads.

        Args:
            config: of the run.
            orders: for the nursery on this host.
            run_dir: the record of the run.
            local_cores: how many cores of this host jobs may use that stay here while others run elsewhere.
            notice: shows a sentence to the user; called in any thread.
            cores: how many the jobs of the run may use.

        Raises:
            ForgeError: if one of them cannot be had.

        """
        if config.backend != "slurm" and (count := forbid_earlier(os.path.dirname(run_dir), orders.run_id)):
            notice(f"Forge: {count} job(s) that an earlier run has left in Slurm cannot publish any more.")
        self._renderer: Renderer | None = None
        self.local: AdoptingBackend
        self.remote: Backend | None = None
        state = os.path.dirname(os.path.dirname(run_dir))
        if config.backend == registry.LOCAL:
            self.local = _adopting(_local(config, orders, notice), orders.run_id, state, cores, notice)
            return
        open_backend = registry.find(config.backend)
        self._renderer = Renderer(orders.prepare, orders.render)  # before there are threads
        local = QueuedBackend(_local(config, orders, notice), Cores(max(1, local_cores)))
        self.local = _adopting(local, orders.run_id, state, local_cores, notice)
        services = Services(orders.run_id, run_dir, config, partial(Renderer.command, self._renderer), notice)
        try:
            self.remote = open_backend(services)
        except ForgeError:
            self.close()
            raise

    def of(self, *, stays_here: bool) -> Backend:
        """Where a job runs."""
        return self.local if stays_here or self.remote is None else self.remote

    @property
    def host(self) -> Host:
        """Where most jobs run, as the plan may count on it."""
        return self.of(stays_here=False).host

    @property
    def both(self) -> tuple[Backend, ...]:
        """The one or two that there are."""
        return (self.local,) if self.remote is None else (self.remote, self.local)

    def close(self) -> None:
        """Give back everything."""
        for backend in self.both:
            backend.close()
        if self._renderer is not None:
            self._renderer.close()


def _local(config: Config, orders: Orders, notice: Callable[[str], None]) -> LocalBackend | QueuedBackend:
    """This host. Where jobs may get more memory than Snakemake knows, they wait until there is room for it."""
    backend = LocalBackend(orders, notice)
    return QueuedBackend(backend, Memory(backend.host.run_memory_bytes)) if config.oom_retries else backend


def _adopting(
    local: LocalBackend | QueuedBackend, run_id: str, state: str, cores: int, notice: Callable[[str], None]
) -> AdoptingBackend:
    """With what earlier runs have left; jobs wait for the room that those of them have which still run."""
    found = [entry for entry in entries(state) if entry.status() in (Status.RUNNING, Status.STAGED)]
    dead = {run for run in {entry.run for entry in found} if not read_run(f"{state}/runs/{run}").alive}
    found = [entry for entry in found if entry.run in dead]  # what belongs to another Snakemake that lives is its own
    running = [entry for entry in found if entry.status() is Status.RUNNING]
    if not running:
        return AdoptingBackend(local, found, run_id, notice, lambda _: None)
    held = {entry.path: (entry.cpus, entry.memory_bytes or 0) for entry in running}
    room = QueuedBackend(local, Beside(max(1, cores), local.host.run_memory_bytes, held))
    total = sum(entry.cpus for entry in running)
    notice(
        f"Forge: {len(running)} job(s) go on since an earlier run. The {total} core(s) and the memory that they have "
        "are counted until they end: snakemake-forge jobs --running."
    )
    return AdoptingBackend(room, found, run_id, notice, room.free)
