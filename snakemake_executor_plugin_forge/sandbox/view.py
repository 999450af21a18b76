"""What a job sees of the file system, as mounts in its own mount namespace.

The view is made of *covers*: directories in whose place the job sees something else. Each is put together at a place of
its own, with what stays visible of the real one mounted in it; then everything is made read-only but for the covers
that may be written to; then each is moved to where it belongs, the inner ones into the outer ones first. The order is
the kernel's: an overlay cannot be mounted on what is read-only already, and who covers the places must come last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..files import CHECKPOINTS, below
from . import syscalls
from .layers import Layer
from .mounts import make_mount_point
from .syscalls import Step

# Parts of a new /proc with which a root job could change the host: proc(5), proc_sys(5).
_PROC_READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")
_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV
_EMPTY = "mode=755,size=64k"
_SHM = "mode=1777,size=100%"  # the cgroup limits it


@dataclass(frozen=True, slots=True)
class Cover:
    """A directory in whose place a job sees something else: a layer, a directory on disk, or a new tmpfs."""

    directory: str
    layer: Layer | None = None
    source: str | None = None
    tmpfs: str = _EMPTY  # its options, if it is one
    writable: bool = True
    shown: tuple[tuple[str, bool], ...] = ()  # real paths below it that stay visible, and whether writable

    def place_of(self, path: str, place: str) -> str:
        """Where ``path``, which is below this one, is while this is at its place."""
        return place + path.removeprefix(self.directory)

    def mount_steps(self, place: str, inner: Iterable[Cover], user: bool) -> list[Step]:
        """Put it together at its place.

        Args:
            inner: those that will be moved into it.
            user: in a user namespace.

        """
        if self.layer is not None:
            steps = [self.layer.mount_step(place, user)]
        elif self.source is not None:
            steps = [syscalls.bind_step(self.source, place, recursive=False)]
        else:
            steps = [syscalls.mount_step("forge-private", place, "tmpfs", _FLAGS, self.tmpfs)]
        on_disk = self.layer is not None or self.source is not None
        for path, _ in self.shown:
            target = self.place_of(path, place)
            if not on_disk:
                steps.append((make_mount_point, (target, os.path.isdir(path)), ""))
            steps.append(syscalls.bind_step(path, target))
        if not on_disk:
            steps += [(make_mount_point, (self.place_of(cover.directory, place), True), "") for cover in inner]
        return steps

    def prepare(self, inner: Iterable[Cover]) -> None:
        """On disk, before it is mounted: make the mount points that are not there.

        Raises:
            OSError: if one cannot be made.

        """
        for path, is_directory in [(p, os.path.isdir(p)) for p, _ in self.shown] + [(c.directory, True) for c in inner]:
            if self.layer is not None and self.layer.lower != self.layer.root:
                self.layer.place_holder(path, is_directory=is_directory)
            elif self.source is not None:
                mount_point = self.place_of(path, self.source)
                if not os.path.lexists(mount_point):
                    make_mount_point(mount_point, is_directory)


def shared_memory() -> Cover:
    """A /dev/shm of the job's own."""
    return Cover("/dev/shm", tmpfs=_SHM)  # noqa: S108


def show(covers: tuple[Cover, ...], paths: Iterable[tuple[str, bool]]) -> tuple[Cover, ...]:
    """The covers, each with those of the paths that it must leave visible.

    Args:
        paths: real ones, and whether they may be written to.

    """
    shown: dict[str, list[tuple[str, bool]]] = {cover.directory: [] for cover in covers}
    for path, writable in sorted(set(paths), key=lambda item: (item[0].count("/"), item)):
        around = [c for c in covers if path.startswith(c.directory + "/")]
        cover = max(around, key=lambda c: len(c.directory), default=None)
        if cover is None or any(below(path, other) and writable == may for other, may in shown[cover.directory]):
            continue
        shown[cover.directory].append((path, writable))
    return tuple(replace(cover, shown=tuple(shown[cover.directory])) for cover in covers)


_real: dict[str, int] = {}
"""In a job's process: a descriptor for each directory that is about to be covered by a layer."""


def remember(directory: str) -> None:
    """In a job's process, before the covers: keep a way to what is really in a directory."""
    _real[directory] = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def protect(inputs: Iterable[tuple[str, str]]) -> None:
    """In a job's process, after the covers: lay each input, read-only, over what the layer shows of it.

    Args:
        inputs: the directory of the layer, and the name below it.

    Raises:
        OSError: if it cannot be mounted. One that is not there is none of this function's business.

    """
    for directory, name in inputs:
        step = syscalls.bind_step(f"/proc/self/fd/{_real[directory]}/{name}", f"{directory}/{name}")
        with suppress(FileNotFoundError):
            syscalls.run([step])
    for fd in _real.values():
        os.close(fd)
    _real.clear()


def lay_checkpoint(workdir: str, name: str) -> None:
    """In a job's process, after the covers: lay its checkpoint directory where it belongs, writable.

    Args:
        workdir: that has a layer and was remembered.
        name: of the directory.

    Raises:
        OSError: if it cannot be mounted.

    """
    place = f"{workdir}/{CHECKPOINTS}/{name}"
    os.makedirs(place, exist_ok=True)
    source = f"/proc/self/fd/{_real[workdir]}/{CHECKPOINTS}/{name}"
    syscalls.run([syscalls.bind_step(source, place), syscalls.writable_step(place)])


def nest(covers: Sequence[Cover]) -> dict[str, Cover | None]:
    """Directory of a cover to the innermost other one that contains it."""
    outer: dict[str, Cover | None] = {}
    for cover in covers:
        around = [c for c in covers if c is not cover and below(cover.directory, c.directory)]
        outer[cover.directory] = max(around, key=lambda c: len(c.directory), default=None)
    return outer


def prepare(covers: Sequence[Cover], places: str) -> None:
    """Make what :func:`view_steps` needs on disk.

    Raises:
        OSError: if that cannot be made.

    """
    outer = nest(covers)
    for number, cover in enumerate(covers):
        cover.prepare(c for c in covers if outer[c.directory] is cover)
        place = f"{places}/{number}"
        if not os.path.isdir(place):
            os.makedirs(place)


def view_steps(
    covers: Sequence[Cover],
    places: str,
    *,
    read_only: bool,
    writable: Sequence[str],
    hidden: Sequence[str],
    masks: bool,
    user: bool,
) -> list[Step]:
    """What makes a process's new mount namespace the job's own: to be run in it, in a PID namespace of its own.

    Args:
        covers: see above; each has been prepared.
        places: an empty directory for each of them, named by its number, lies in here.
        read_only: everything that is not writable by one of them.
        writable: real paths below none of them that stay writable.
        hidden: paths in whose place there is nothing.
        masks: make parts of /proc read-only; a job that makes a sandbox of its own could not mount another /proc then.
        user: in a user namespace.

    """
    outer = nest(covers)
    place = {cover.directory: f"{places}/{number}" for number, cover in enumerate(covers)}
    steps: list[Step] = []
    for cover in sorted(covers, key=lambda c: c.directory.count("/")):
        inner = [c for c in covers if outer[c.directory] is cover]
        steps += cover.mount_steps(place[cover.directory], inner, user)
    if read_only:
        steps += [syscalls.bind_step(path, path) for path in writable]
        steps.append(syscalls.read_only_step("/"))
        for cover in covers:
            own = place[cover.directory]
            steps += [syscalls.writable_step(own)] if cover.writable else []
            steps += [syscalls.writable_step(cover.place_of(path, own)) for path, may_write in cover.shown if may_write]
        steps += [syscalls.writable_step(path) for path in writable]
    for cover in sorted(covers, key=lambda c: (outer[c.directory] is None, below(places, c.directory), -_depth(c))):
        around = outer[cover.directory]
        target = cover.directory if around is None else around.place_of(cover.directory, place[around.directory])
        steps.append(syscalls.mount_step(place[cover.directory], target, "", syscalls.MS_MOVE))
    for path in hidden:
        steps.append((_run_if_there, (tuple(_hide_steps(path)),), ""))
    if not read_only:
        steps += syscalls.bind_read_only_steps("/sys")
    steps.append(syscalls.mount_step("proc", "/proc", "proc", _FLAGS | syscalls.MS_NOEXEC))
    for path in _PROC_READ_ONLY if masks else ():
        if os.path.exists(path):
            steps += syscalls.bind_read_only_steps(path)
    return steps


def _depth(cover: Cover) -> int:
    return cover.directory.count("/")


def _run_if_there(steps: tuple[Step, ...]) -> None:
    """What lies below a cover, which does not show it, need not be hidden."""
    with suppress(FileNotFoundError):
        syscalls.run(steps)


def _hide_steps(path: str) -> list[Step]:
    if os.path.isdir(path):
        return [syscalls.mount_step("forge-hidden", path, "tmpfs", _FLAGS | syscalls.MS_RDONLY, "mode=000,size=4k")]
    return [syscalls.bind_step(os.devnull, path, recursive=False)] if os.path.exists(path) else []
