"""A process that is inside its sandbox and waits for its order; and the one that is made ahead of the next job.

::

    supervisor ── fork ──► enter the sandbox ── wait ──► order: cgroup, environment, payload ──► execute ──► result

To fork and to enter take longer than anything else that Forge does for a job, and depend on little of it: so, where
the next job will most likely need what the last one needed, a supervisor does it while Snakemake still thinks.
"""

from __future__ import annotations

import array  # noqa: F401 - socket.recv_fds would import it in every job's process
import json
import os
import pickle
import select
import signal
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from ..model import FilePolicy, Files, LaunchSpec, Undeclared
from . import enter, mounts
from .audit import descriptors
from .enter import Base, Started, View, Way
from .layers import Layer, Layers, layer_of
from .privileges import Bounds
from .scratch import Scratch, Slots
from .syscalls import CLONE_PARENT, Step
from .template import Template, receive, send

Execute = Callable[[bytes, Mapping[str, str], str], dict[str, object]]
"""What a job does: payload, variables for the environment, and scratch to ``{"exit_code", "signal", "error"}``.

SIGTERM is blocked when it is called; it unblocks it as soon as it can deal with it.
"""

_SETUP_FAILED = 125
_HOLDER_SECONDS = 5.0
_NAMESPACE = 4  # after the descriptors of Start: of the PID namespace, where somebody else holds it
_SCRATCH_VARIABLES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR", "FORGE_SCRATCH")


def view_of(spec: LaunchSpec) -> View:
    """That of one job, now: a directory that was deleted and made anew since is another one."""
    files = replace(spec.files, targets=(), inputs=(), expected=(), undeclared=Undeclared.KEEP, keep_incomplete=False)
    return View(
        scratch_base=spec.scratch_base,
        network=spec.network,
        exposed=spec.exposed,
        workdir=spec.workdir,
        files=files,
        identities=tuple(_identity(path) for path in dict.fromkeys((spec.workdir, *spec.exposed, *files.layers))),
        interactive=spec.interactive,
        gpus=spec.gpus,
        root=spec.root,
        shown=spec.shown,
        checkpoints=spec.checkpoint is not None and spec.files.staged,
    )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


Start = Callable[[Way, tuple[int, int, int, int]], Started]
"""Starts such a process, with descriptors for: its order, its result, stdout, stderr."""


class Inside:
    """One such process, as its supervisor sees it."""

    def __init__(
        self,
        view: View,
        base: Base,
        scratch: Scratch,
        layers: tuple[Layer, ...],
        start: Start,
        *,
        as_init: bool,
    ) -> None:
        """Fork it.

        Args:
            layers: see :func:`.enter.covers`.
            start: how.
            as_init: see :func:`.enter.start`.

        Raises:
            OSError: for what is refused before it is forked; what is refused inside comes as its result.

        """
        self.view = view
        self.scratch = scratch
        self.layers = layers
        self.as_init = as_init
        self.stdout, out = _pipe()
        self.stderr, err = _pipe()
        self.result_fd, result = _pipe()
        self._ours, theirs = socket.socketpair()
        try:
            way = enter.way_in(view, base, scratch, layers)
            self.started = start(way, (theirs.fileno(), result, out, err))
        finally:
            for fd in (out, err, result):
                os.close(fd)
            theirs.close()
        self.pidfd = os.pidfd_open(self.started.pid)

    def stage(self, files: Files) -> None:
        """Before the job: let it not see the present versions of what it is to write.

        Raises:
            OSError: if that is refused.

        """
        for layer in self.layers:
            layer.begin([t for t in files.targets if layer_of(t.path, self.layers) is layer], files.inputs)

    def order(
        self,
        payload: bytes,
        environment: Mapping[str, str],
        bounds: Bounds,
        inputs: Iterable[str],
        checkpoint: tuple[str, str] | None,
        doors: tuple[int, ...],
    ) -> None:
        """Have it execute a payload.

        Args:
            payload: for :data:`Execute`.
            environment: for :data:`Execute`; with the scratch's variables.
            bounds: of its processes.
            inputs: those that a layer would make changeable.
            checkpoint: see :func:`.enter.lock`.
            doors: of its cgroup, which it enters last, so that what it costs to get there is not charged to the job.

        Raises:
            OSError: if it is dead.

        """
        audit = self.view.files.layers if self.view.files.audit else ()
        scratch = self.scratch.seen_path  # which has the job's name in it, and so was not known when it was forked
        variables = {**environment, **dict.fromkeys(_SCRATCH_VARIABLES, scratch)}
        order = (payload, variables, scratch, bounds, list(self._in_layers(inputs)), checkpoint, audit)
        body = pickle.dumps(order, protocol=pickle.HIGHEST_PROTOCOL)
        send(self._ours, body, doors)

    def _in_layers(self, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
        """The root of the layer, and the name below it, of each that is in one."""
        for path in paths:
            layer = layer_of(path, self.layers)
            if layer is not None:
                yield layer.root, path.removeprefix(layer.root + "/")

    def receive_mounts(self, number: int) -> list[int]:
        """Descriptors of the roots of its layers, for an audit.

        Raises:
            OSError: if it does not get so far.

        """
        _, mounts, _, _ = socket.recv_fds(self._ours, 1, number)
        if len(mounts) != number:
            raise OSError("it ended on the way into its sandbox")
        return mounts

    def go_on(self) -> None:
        """It may execute its payload."""
        with suppress(OSError):  # it is dead, and that is noticed elsewhere
            self._ours.sendall(b"x")

    def alive(self) -> bool:
        """Whether it is not dead yet."""
        return not select.select([self.pidfd], [], [], 0)[0]

    def close(self) -> None:
        """Close what belongs to a process that is dead and reaped."""
        for fd in (self.stdout, self.stderr, self.result_fd, self.pidfd):
            os.close(fd)
        self._ours.close()


def forking(base: Base, execute: Execute, *, as_init: bool) -> Start:
    """Start them as forks of this very process."""

    def start(way: Way, descriptors: tuple[int, int, int, int]) -> Started:
        ready = _ready(base, execute, as_init, way)
        return enter.start(base, lambda: _job(ready, descriptors), as_init=as_init)

    return start


class Standby:
    """Makes these processes; one of them ahead, where that is likely to be of use."""

    def __init__(
        self, base: Base, execute: Execute, slots: Slots, *, as_init: bool, has_template: bool = False
    ) -> None:
        """Args as below.

        Args:
            base: what :func:`.enter.prepare` has made.
            execute: what a job does.
            slots: for scratch.
            as_init: see :func:`.enter.start`.
            has_template: have a template fork them, where that is possible: for many jobs, and not where all that is
                below this process is taken for the job's.

        """
        self._base = base
        self._template: Template[_Ready] | None = None
        self._start = forking(base, execute, as_init=as_init)
        if has_template and (base.namespaces == "root" or (as_init and base.namespaces == "user")):
            fork = _fork_init if as_init else partial(_fork_held, base)
            keep = (base.null, base.own_pid_namespace)
            self._template = Template(partial(_ready, base, execute, as_init), fork, "forge-template", keep)
            self._start = self._by_template
        self._slots = slots
        self._layers = Layers()
        self.as_init = as_init
        self._last: View | None = None
        self._gpus: tuple[str, ...] = ()
        self._waiting: Inside | None = None

    def take(self, spec: LaunchSpec) -> Inside:
        """A process for a job: the one that waits, if it fits, or a new one.

        Raises:
            OSError, SandboxError: if it cannot be made.

        """
        view = view_of(spec)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.view == view and waiting.alive():
            return waiting
        if waiting is not None:
            self._dismiss(waiting)
        return self._make(view)

    def prepare(self, spec: LaunchSpec) -> None:
        """After a job: make a process for the next one, if the last two needed the same.

        Not for jobs that run Python: the copy of a process with a workflow in memory would take too much of it.
        """
        view = view_of(spec)
        likely = view == self._last and self.as_init and not view.interactive
        self._last = view
        if likely:
            with suppress(OSError):  # it will come again when there is a job that it can be told of
                self._waiting = self._make(view)

    def _make(self, view: View) -> Inside:
        if view.gpus != self._gpus:
            mounts.place_gpus(self._gpus, view.gpus)
            self._gpus = view.gpus
        scratch = self._slots.take(view.scratch_base)
        if view.files.policy is FilePolicy.STRICT:
            scratch.end(())  # not even the names of places where something was mounted for the job before it
        try:
            layers = tuple(
                self._layers.take_all(view.files, view.workdir, os.path.basename(view.scratch_base), scratch.slot)
            )
            return Inside(view, self._base, scratch, layers, self._start, as_init=self.as_init)
        except OSError:
            self._slots.give_back(scratch, view.exposed)
            raise

    def _by_template(self, way: Way, descriptors: tuple[int, int, int, int]) -> Started:
        assert self._template is not None
        if self.as_init:
            return Started(self._template.fork(way, descriptors, _job), None)
        holder, namespace = enter.hold_namespace(self._base)
        try:
            return Started(self._template.fork(way, (*descriptors, namespace), _job), holder)
        except OSError:
            os.kill(holder.pid, signal.SIGKILL)
            holder.end(_HOLDER_SECONDS)
            raise
        finally:
            os.close(namespace)

    def clear_up(
        self,
        scratch: Scratch | None,
        layers: tuple[Layer, ...],
        exposed: tuple[str, ...],
        kept: Collection[str] = (),
    ) -> None:
        """After a job, when all of its processes are dead: empty what the next one uses.

        Args:
            scratch: None if it was kept.
            kept: directories of layers, and the slot, in which its outputs wait: they stay as they are.

        """
        self._layers.leave(layer for layer in layers if layer.directory in kept)
        self._layers.give_back(layer for layer in layers if layer.directory not in kept)
        if scratch is not None and scratch.slot not in kept:
            self._slots.give_back(scratch, exposed)

    def _dismiss(self, inside: Inside) -> None:
        inside.started.end(0)
        os.waitpid(inside.started.pid, 0)
        inside.close()
        self.clear_up(inside.scratch, inside.layers, inside.view.exposed)

    def retire(self) -> None:
        """End what is only of use for more jobs, and holds descriptors and 3 MB of memory meanwhile."""
        if self._template is not None:
            self._template.close()

    def close(self) -> None:
        """Remove what waits, and the scratch."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._dismiss(waiting)
        if self._template is not None:
            self._template.close()
        self._layers.close()
        self._slots.close()


# -- in the job's process --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ready:
    """All that such a process needs, worked out."""

    base: Base
    steps: tuple[tuple[Step, ...], tuple[Step, ...]]
    is_interactive: bool
    execute: Execute
    as_init: bool


def _ready(base: Base, execute: Execute, as_init: bool, way: Way) -> _Ready:
    return _Ready(base, enter.entry_steps(way, base), way.view.interactive, execute, as_init)


def _fork_init(child: Callable[[], NoReturn], descriptors: Sequence[int]) -> int:
    del descriptors
    return enter.fork_init(child, CLONE_PARENT)


def _fork_held(base: Base, child: Callable[[], NoReturn], descriptors: Sequence[int]) -> int:
    return enter.fork_into(base, descriptors[_NAMESPACE], child, CLONE_PARENT)


def _job(ready: _Ready, descriptors: Sequence[int]) -> NoReturn:
    """The forked process: enter, wait, execute, say how it went. Never returns into its parent's code."""
    orders_fd, result_fd, out, err = descriptors[:_NAMESPACE]
    code = _SETUP_FAILED
    try:
        if not ready.is_interactive:
            for source, target in ((ready.base.null, 0), (out, 1), (err, 2)):
                os.dup2(source, target)
        enter.enter(ready.steps[0], keep=(orders_fd, result_fd))
        orders = socket.socket(fileno=orders_fd)
        doors, body = receive(orders)
        payload, environment, scratch, bounds, inputs, checkpoint, audit = pickle.loads(body)
        enter.lock(ready.steps[1], inputs, checkpoint, bounds, doors)
        if audit:
            _offer_to_audit(orders, audit)
        orders.close()
        result = ready.execute(payload, environment, scratch)
        code = 0 if result.get("exit_code") == 0 and not result.get("error") else 1
        _write_all(result_fd, json.dumps(result).encode())
    except BaseException as error:
        try:
            _write_all(result_fd, json.dumps({"setup_error": f"{type(error).__name__}: {error}"}).encode())
        except OSError:  # its supervisor died before this process had said that it would die with it: prctl(2)
            os._exit(code)
    finally:
        if ready.as_init:
            os.close(result_fd)
            while True:  # what the job left behind lives as long as this process, so that it can be counted
                signal.pause()
        os._exit(code)


def _offer_to_audit(orders: socket.socket, directories: tuple[str, ...]) -> None:
    """Hand out a way to the mounts, and wait until they are watched."""
    mounts = descriptors(directories)
    socket.send_fds(orders, [b"x"], mounts)
    for fd in mounts:
        os.close(fd)
    orders.recv(1)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _pipe() -> tuple[int, int]:
    """A pipe whose read end does not block."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)
    return read_end, write_end
