"""The setup of a process on a node: one preparation, which serves all attempts that it runs."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from ...kernel import syscalls
from ...kernel.descriptors import is_readable
from ...kernel.inherited import to_null
from ...sandbox import gpus as gpu_nodes
from ...sandbox.base import prepare
from ...sandbox.cgroups import slurm_step
from ...sandbox.cgroups.ladder import host_memory_bytes
from ...sandbox.filesystem.directories import remove_if_empty
from ...sandbox.filesystem.homes import home_directory
from ...sandbox.filesystem.kept import with_home
from ...sandbox.filesystem.mounts import MountTable
from ...sandbox.filesystem.scratch import ScratchPool, hold, remove_abandoned
from ...sandbox.probe import Namespaces, Probe, probe_host
from ...sandbox.standby import Standby
from ...spec import words
from ...spec.host import POLLED
from ...spec.job import DEFAULT_IO_WEIGHT, Priority
from ...spec.verdict import EndedBy, Order, Verdict
from ...supervisor.prepared import Tools
from . import exchange
from .execution import execute


class Signals:
    """SIGTERM as an order to end the attempt: a :class:`...supervisor.prepared.Control`. Slurm sends SIGKILL later."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._ours, self._theirs, self._told = ours, theirs, False
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    @property
    def told(self) -> bool:
        """Whether SIGTERM has come, taken note of or not."""
        return self._told or is_readable(self._ours.fileno())

    def fileno(self) -> int:
        return self._ours.fileno()

    def early(self) -> Order | None:
        """See :class:`...supervisor.prepared.Control`. A signal makes the descriptor readable, whenever it comes."""
        return None

    def order(self) -> Order | None:
        with suppress(BlockingIOError):
            if signal.SIGTERM in self._ours.recv(64):
                self._told = True
                return Order(EndedBy.SLURM, words.SLURM_ENDED)
        return None

    def abandoned(self) -> bool:
        """See :class:`...supervisor.prepared.Control`. Slurm runs the job, whatever becomes of Snakemake."""
        return False

    def let_go(self) -> None:
        """See :class:`...supervisor.prepared.Control`: never."""


@dataclass(frozen=True, slots=True)
class _Needs:
    """The part of an attempt on which a setup depends."""

    workdir: str
    scratch: str  # the directory of its scratch
    priority: Priority
    pids: int | None
    gpus: tuple[str, ...] | None  # --forge-gpus
    wants_gpus: bool

    @classmethod
    def of(cls, launch: exchange.Launch) -> Self:
        limits = launch.spec.limits  # the run is this one job, so its priority is that of the run
        priority = Priority(limits.nice, limits.io_weight, limits.io_weight != DEFAULT_IO_WEIGHT)
        wants = any(launch.spec.resources.get(key) for key in ("gpu", "gpus", "gpu_model", "gres"))
        place = os.path.dirname(launch.spec.scratch_base)
        return cls(launch.spec.workdir, place, priority, launch.run_pids, launch.gpus, wants)


class NodeSetup:
    """Cgroup, home, scratch and template of a process that runs one attempt after the other.

    Its names are those of the first of them. Attributes: ``host`` without Slurm, ``around`` (the cgroup of the Slurm
    job), ``points`` (mount points of the node) and ``home_directory``, from before this process went into namespaces.
    """

    def __init__(
        self,
        launch: exchange.Launch,
        scratch_base: str,
        signals: Signals,
        namespaces: Namespaces | None = None,
        *,
        lasting: bool = False,
    ) -> None:
        """Probe the node and prepare it. If that fails, this process cannot prepare it any more.

        Args:
            launch: of the first attempt.
            scratch_base: its own.
            namespaces: of this node, if they are known.
            lasting: whether there may be more attempts.

        Raises:
            ForgeError, OSError: if the node cannot run the attempt.
        """
        self.scratch_base, self._needs, self._signals = scratch_base, _Needs.of(launch), signals
        os.chdir(self._needs.workdir)
        self.around, self.home_directory = slurm_step.read_step(), home_directory()
        self._mounts = MountTable()
        self.points = self._mounts.points()
        self._probe = _ask_node(self._needs, os.path.basename(scratch_base), namespaces)
        self.host, self._home = with_home(self._probe.host, self._needs.workdir, os.path.dirname(scratch_base))
        hold(scratch_base)
        if gone := remove_abandoned(os.path.dirname(scratch_base), exchange.COPY_NAME):
            print(f"Forge: removed leftovers of job copies that were killed on this node: {', '.join(gone)}")
        kept = self._home.kept if self._home is not None else None
        base = prepare(self.host.namespaces, self.host.gpus, home=kept)
        # Where a job is what is found below this process, there is nothing else below it, and one job only.
        self.lasting = lasting and self.host.cgroup != POLLED and self.host.namespaces != "none"
        slots = ScratchPool(base.private)
        self._standby = Standby(base, execute, slots, as_init=True, has_template=self.lasting)
        syscalls.set_process_name(exchange.NODE_PROCESS)
        _silence()

    def serves(self, launch: exchange.Launch) -> bool:
        """Return whether this process can run an attempt: it needs nothing else, and no mount has come or gone."""
        return _Needs.of(launch) == self._needs and self._mounts.points() is self.points

    def tools(self, confirm: Callable[[Verdict], Verdict]) -> Tools:
        """Return the tools of a supervisor, for one attempt."""
        return Tools(self._probe.group, self._standby, self._signals, self._probe.processes_beside, confirm)

    def close(self) -> None:
        """Remove it."""
        self._standby.close()
        if self._home is not None:
            self._home.leave(wait=True)
        self._probe.group.remove()
        remove_if_empty(self.scratch_base)


def _ask_node(needs: _Needs, name: str, namespaces: Namespaces | None) -> Probe:
    gpus = gpu_nodes.find(needs.gpus, os.environ) if needs.wants_gpus else ()
    return probe_host(name, needs.workdir, host_memory_bytes(), needs.pids, needs.priority, gpus, namespaces)


def _silence() -> None:
    """Close stdout, and leave stderr to Forge's own errors: the job's streams are in its record."""
    kept = os.dup(2)
    sys.stderr = open(kept, "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    to_null(1, 2)
