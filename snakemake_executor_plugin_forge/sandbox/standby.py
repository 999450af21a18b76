"""A process that waits in its sandbox for the next job.

To fork and to enter take longer than anything else that Forge does for a job, and depend on little of it. So, where the
next job will most likely need what the last one needed, a supervisor does both while Snakemake still thinks: 4 ms of
fork, namespaces and mounts that a job does not wait for (docs/decisions/0010).
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from ..spec.file_policy import below
from ..spec.job import FilePolicy, LaunchSpec
from .base import Base
from .enter import SandboxKey
from .filesystem import mounts
from .filesystem.overlay import Layer, LayerPool
from .filesystem.scratch import Scratch, ScratchPool
from .inside import Inside
from .job_process import Execute, forking
from .template import Template


class Standby:
    """Makes the processes of jobs; one of them ahead, where that is likely to be of use."""

    def __init__(
        self, base: Base, execute: Execute, slots: ScratchPool, *, as_init: bool, has_template: bool = False
    ) -> None:
        """Make nothing yet.

        Args:
            base: what :func:`.base.prepare` has made.
            execute: what a job does.
            slots: makes scratch directories.
            as_init: see :func:`.namespaces.start`.
            has_template: whether a template forks the processes, where that is possible: for many jobs, and not where
                all that is below this process is taken for the job's.
        """
        self._base = base
        self._start = forking(base, execute, as_init=as_init)
        self._template: Template | None = None
        if has_template and base.namespaces != "none" and (as_init or base.returns):
            self._template = Template(base, execute, as_init=as_init)
            self._start = self._template.start
        self._slots = slots
        self._layers = LayerPool()
        self.as_init = as_init
        self.removed = base.removed
        self._last: SandboxKey | None = None
        self._gpus: tuple[str, ...] = ()
        self._waiting: Inside | None = None

    def take(self, spec: LaunchSpec) -> Inside:
        """Return a process for a job: the one that waits, if it fits, or a new one.

        Raises:
            OSError, SandboxError: if it cannot be made.
        """
        key = SandboxKey.of(spec)
        self._refresh(spec)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.key == key and waiting.alive():
            return waiting
        if waiting is not None:
            self._dismiss(waiting)
        return self._make(key)

    def _refresh(self, spec: LaunchSpec) -> None:
        """Have the workflow's home show the inputs of a job as they are, and be as it was: earlier jobs change both.

        Raises:
            OSError: if the process that holds the home is dead.
        """
        kept = (spec.files.home, *spec.files.caches)
        layers = spec.files.layers
        holder = self._base.holder
        if holder is not None and (
            any(
                not any(below(path, layer) for layer in layers) and any(d is not None and below(path, d) for d in kept)
                for path in spec.checks.inputs
            )
            or holder.is_changed()
        ):
            holder.refresh()

    def prepare(self, spec: LaunchSpec) -> None:
        """Make a process for the next job after one has ended, if the last two needed the same sandbox.

        Jobs that run Python get none: the copy of a process with a workflow in memory would take too much of it.
        """
        key = SandboxKey.of(spec)
        likely = key == self._last and self.as_init and not key.interactive
        self._last = key
        if likely:
            with suppress(OSError):  # it comes again when there is a job whose verdict can name it
                self._waiting = self._make(key)

    def _make(self, key: SandboxKey) -> Inside:
        if key.gpus != self._gpus:
            mounts.place_gpus(self._gpus, key.gpus)
            self._gpus = key.gpus
        scratch = self._slots.take(key.scratch_base)
        if key.files.policy is FilePolicy.STRICT:
            scratch.end(())  # the job must not see mount points of the job before it
        try:
            layers = tuple(self._layers.take_all(key.files, key.workdir, key.layer_base, scratch.slot))
            return Inside(key, self._base, scratch, layers, self._start, as_init=self.as_init)
        except OSError:
            self._slots.give_back(scratch, key.exposed)
            raise

    def clear_up(
        self,
        scratch: Scratch | None,
        layers: tuple[Layer, ...],
        exposed: tuple[str, ...],
        kept: Collection[str] = (),
        *,
        reusable: bool = True,
    ) -> None:
        """Empty what the next job uses, when all processes of a job are dead.

        Args:
            scratch: the job's; None if it was put aside.
            exposed: see :class:`.enter.SandboxKey`.
            kept: directories of layers, and the slot, in which outputs of the job wait: they stay as they are.
            reusable: whether no process can write to the layers.
        """
        self._layers.abandon(layer for layer in layers if layer.directory in kept)
        self._layers.give_back((layer for layer in layers if layer.directory not in kept), reusable=reusable)
        if scratch is not None and scratch.slot not in kept:
            self._slots.give_back(scratch, exposed)

    def _dismiss(self, inside: Inside) -> None:
        inside.kill()
        self.clear_up(inside.scratch, inside.layers, inside.key.exposed)

    def retire(self) -> None:
        """End the template, which only serves more jobs, and holds descriptors and 3 MB of memory meanwhile."""
        if self._template is not None:
            self._template.close()

    def close(self) -> None:
        """Remove the process that waits, and the scratch."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._dismiss(waiting)
        self.retire()
        self._layers.close()
        self._slots.close()
