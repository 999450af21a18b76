"""A process that is inside its sandbox and waits for its order, as its supervisor sees it: see :mod:`.job_process`."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress

from ..kernel import descriptors
from ..kernel.open_for_writing import freeze
from ..spec.file_policy import TEMPORARY_VARIABLES
from ..spec.job import Files, Target
from .base import Base
from .enter import SandboxKey, plan_entry
from .filesystem.overlay import Layer, layer_of
from .filesystem.scratch import Scratch
from .job_process import Start, send
from .privileges import Bounds

_DEATH_SECONDS = 5.0
_SCRATCH_VARIABLES = (*TEMPORARY_VARIABLES, "FORGE_SCRATCH")


class Inside:
    """One such process."""

    def __init__(
        self, key: SandboxKey, base: Base, scratch: Scratch, layers: tuple[Layer, ...], start: Start, *, as_init: bool
    ) -> None:
        """Start it.

        Args:
            base: what its supervisor has prepared.
            layers: see :func:`.enter.planned_mounts`.
            start: starts the process.
            as_init: see :func:`.namespaces.start`.

        Raises:
            OSError: if something is refused before the fork; a refusal inside comes as the result of the process.
        """
        self.key = key
        self.scratch = scratch
        self.layers = layers
        self.roots = {layer.root: layer for layer in layers}
        self.as_init = as_init
        self._mounted: list[int] | None = None  # the overlays of its layers; None: not received yet
        with ExitStack() as undo:
            with ExitStack() as given:
                (self.stdout, out), (self.stderr, err), (self.result_fd, result) = (
                    _pipe(undo, given) for _ in range(3)
                )
                self._ours, theirs = socket.socketpair()
                undo.callback(self._ours.close)
                given.callback(theirs.close)
                self.started = start(plan_entry(key, base, scratch, layers), (theirs.fileno(), result, out, err))
                undo.callback(self._end)
            self.pidfd = os.pidfd_open(self.started.pid)
            undo.pop_all()

    def stage(self, files: Files) -> None:
        """Hide the present versions of what the job is to write.

        Raises:
            OSError: if that is refused.
        """
        targets: dict[Layer, list[Target]] = {layer: [] for layer in self.layers}
        inputs: dict[Layer, list[str]] = {layer: [] for layer in self.layers}
        for target in files.targets:
            if (layer := layer_of(target.path, self.roots)) is not None:
                targets[layer].append(target)
        for path in files.inputs:
            if (layer := layer_of(path, self.roots)) is not None:
                inputs[layer].append(path)
        for layer in self.layers:
            layer.begin(targets[layer], inputs[layer])

    def order(
        self,
        payload: bytes,
        environment: Mapping[str, str],
        bounds: Bounds,
        inputs: Iterable[str],
        own: tuple[str, Mapping[str, bool]] | None,
        cgroup_files: tuple[int, ...],
        *,
        listened_to: bool = False,
    ) -> None:
        """Have it execute a payload.

        Args:
            payload: for :data:`.job_process.Execute`.
            environment: for :data:`.job_process.Execute`; gets the scratch's variables.
            inputs: those that a layer would make changeable.
            own: see :func:`.enter.lock`.
            cgroup_files: by which it enters its cgroup: last, so that what it costs to get there is not the job's.
            listened_to: whether somebody answers its notifications: see :meth:`receive_listener`.

        Raises:
            OSError: if it is dead.
        """
        audit = self.key.files.layers if self.key.files.audit else ()
        scratch = self.scratch.seen_path  # which has the job's name in it, and so was not known at the fork
        variables = {**environment, **dict.fromkeys(_SCRATCH_VARIABLES, scratch)}
        found = ((layer_of(path, self.roots), path) for path in inputs)
        covered = [(layer.root, path.removeprefix(layer.root + "/")) for layer, path in found if layer is not None]
        order = (payload, variables, scratch, tuple(bounds), covered, own, audit, listened_to)  # without classes
        send(self._ours, pickle.dumps(order, protocol=pickle.HIGHEST_PROTOCOL), cgroup_files)

    def receive_mounts(self, number: int) -> list[int]:
        """Return descriptors of the roots of its layers, for an audit.

        Raises:
            OSError: if it does not get so far.
        """
        self._receive_layers()
        _, mounts = descriptors.receive(self._ours, 1, number)
        if len(mounts) != number:
            raise OSError("it ended on the way into its sandbox")
        return mounts

    def release(self) -> None:
        """Let it execute its payload, after :meth:`receive_mounts`."""
        with suppress(OSError):  # it is dead, and that is noticed elsewhere
            self._ours.sendall(b"x")

    def orders_fileno(self) -> int:
        """Return a descriptor that becomes readable for :meth:`receive_listener`."""
        return self._ours.fileno()

    def receive_listener(self) -> int | None:
        """Return the descriptor of its notifications, after :meth:`receive_mounts`; None if it has none.

        Raises:
            BlockingIOError: if it is not that far yet.
        """
        try:
            self._receive_layers(socket.MSG_DONTWAIT)
            _, received = descriptors.receive(self._ours, 1, 1, socket.MSG_DONTWAIT)
        except ConnectionResetError:
            return None
        return received[0] if received else None

    def _receive_layers(self, flags: int = 0) -> list[int]:
        """Receive what the process sends first, when it is in its sandbox: the overlays of its layers.

        Raises:
            OSError: if they do not come.
        """
        if self._mounted is None:
            number = len(self.layers)
            self._mounted = descriptors.receive(self._ours, 1, number, flags)[1] if number else []
        return self._mounted

    def freeze(self) -> bool | None:
        """Make the layers read-only for every process, when all of its own are dead.

        It may have handed descriptors of files and directories to another job, which could write to what is published.

        Returns:
            Whether that was possible; False if a process has a file open for writing, None if the kernel cannot tell.
        """
        try:
            mounted = self._receive_layers(socket.MSG_DONTWAIT)  # they are here if it got so far
            return freeze(mounted) if len(mounted) == len(self.layers) else None
        except OSError:
            return None
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Close the overlays, so that they end with the processes that see them."""
        with suppress(OSError):
            for fd in self._receive_layers(socket.MSG_DONTWAIT):
                os.close(fd)
        self._mounted = []

    def alive(self) -> bool:
        """Return whether it is not dead yet."""
        return not descriptors.is_readable(self.pidfd)

    def read_result(self, timeout_seconds: float) -> bytes:
        """Return what the process says until its end, or until it has said nothing for some time."""
        text = b""
        while descriptors.is_readable(self.result_fd, seconds=timeout_seconds):
            if not (chunk := os.read(self.result_fd, 65536)):
                break
            text += chunk
        return text

    def kill(self) -> None:
        """Kill a process that is the first of its namespace, and with it all others; close what belongs to it."""
        self._end()
        self.close()

    def _end(self) -> None:
        self.started.end(_DEATH_SECONDS)
        os.waitpid(self.started.pid, 0)

    def close(self) -> None:
        """Close what belongs to a process that is dead and reaped."""
        for fd in (self.stdout, self.stderr, self.result_fd, self.pidfd):
            os.close(fd)
        self.let_go()
        self._ours.close()


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Return a pipe whose read end does not block; each stack closes one end."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    reader.callback(os.close, read_end)
    writer.callback(os.close, write_end)
    os.set_blocking(read_end, False)
    return read_end, write_end
