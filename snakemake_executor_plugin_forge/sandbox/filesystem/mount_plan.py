"""The mounts that make a job's file system, planned ahead and carried out in the job's own mount namespace.

A plan consists of :class:`PlannedMount` objects, each a directory in whose place the job sees something else. Each is
first assembled in a directory of its own, together with the real paths that must stay visible in it. Then everything
is made read-only except the writable mounts. Last, each mount is moved to its directory, inner ones into outer ones
first. The kernel demands this order: it mounts no overlay on a read-only file system, and the mount that covers the
assembly directory must come last.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ...kernel import syscalls
from ...kernel.syscalls import Step
from ...spec.file_policy import ancestors, below
from ...spec.quick_pickle import quick_to_pickle
from .mounts import make_link, make_mount_point
from .overlay import Layer

# Parts of a new /proc with which a root job could change the host: proc(5), proc_sys(5).
_PROC_READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")
_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV
_EMPTY = "mode=755,size=64k"
RECORDS = "mode=755,size=100%"  # a Snakemake in the job may use Forge, too
_PTS = "newinstance,ptmxmode=666,mode=600"  # no terminal of anybody else, and anybody can have one: devpts.rst
SHARED_MEMORY = "mode=1777,size=100%"  # the cgroup limits it


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class PlannedMount:
    """A directory in whose place a job sees a layer, a directory on disk (``source``), or a new tmpfs."""

    directory: str
    layer: Layer | None = None
    source: str | None = None
    tmpfs: str = _EMPTY  # mount options of the tmpfs, where there is neither a layer nor a source
    writable: bool = True
    visible: tuple[tuple[str, bool], ...] = ()  # real paths below it that stay visible, and whether writable

    def path_at(self, place: str, path: str) -> str:
        """Return the place of ``path``, which is below the directory, while this mount is assembled at ``place``."""
        return place + path.removeprefix(self.directory)

    def assembly_steps(self, place: str, inner: Iterable[PlannedMount], user: bool) -> list[Step]:
        """Assemble the mount at ``place``.

        Args:
            inner: the mounts that will be moved into this one.
            user: whether this happens in a user namespace.
        """
        if self.layer is not None:
            steps = [self.layer.mount_step(place, user), (_hold, (place,), "")]
        elif self.source is not None:
            steps = [syscalls.bind_step(self.source, place, recursive=False)]
        else:
            steps = [syscalls.mount_step("forge-private", place, "tmpfs", _FLAGS, self.tmpfs)]
        on_disk = self.layer is not None or self.source is not None
        for path, writable in self.visible:
            target = self.path_at(place, path)
            if self._as_link(path):
                steps += [] if on_disk else [(make_link, (os.readlink(path), target), "")]
                continue
            if not on_disk:
                steps.append((make_mount_point, (target, os.path.isdir(path)), ""))
            step = syscalls.bind_step(path, target)
            steps.append(step if writable else (_run_if_there, ((step,),), ""))
        if not on_disk:
            steps += [(make_mount_point, (self.path_at(place, mount.directory), True), "") for mount in inner]
        return steps

    def _as_link(self, path: str) -> bool:
        """Whether the job sees a symbolic link as one: its target is visible too. Not in its own /tmp."""
        empty = self.source is None if self.layer is None else self.layer.lower != self.layer.root
        return empty and os.path.islink(path)

    def prepare(self, inner: Iterable[PlannedMount]) -> None:
        """Make missing mount points on disk, before the job's namespace exists.

        Raises:
            OSError: if one cannot be made.
        """
        paths = [(path, os.path.isdir(path)) for path, _ in self.visible]
        on_disk = self.source  # a layer over the directory itself shows what is there
        if self.layer is not None and self.layer.lower != self.layer.root:
            on_disk = self.layer.upper
        for path, is_directory in paths + [(mount.directory, True) for mount in inner]:
            if self.layer is not None and self._as_link(path):
                make_link(os.readlink(path), self.path_at(self.layer.upper, path))
            elif on_disk is not None and not os.path.lexists(mount_point := self.path_at(on_disk, path)):
                make_mount_point(mount_point, is_directory)


def keep_visible(plan: tuple[PlannedMount, ...], paths: Iterable[tuple[str, bool]]) -> tuple[PlannedMount, ...]:
    """Add to each mount the paths below it that the job must still see.

    Args:
        paths: real paths, and whether the job may write to them.
    """
    visible: dict[str, dict[tuple[str, bool], None]] = {mount.directory: {} for mount in plan}
    for path, writable in sorted(set(paths), key=lambda item: (item[0].count("/"), item)):
        around = list(ancestors(path))
        mount = next((directory for directory in around if directory in visible), None)
        if mount is not None and not any((place, writable) in visible[mount] for place in (path, *around)):
            visible[mount][path, writable] = None
    return tuple(replace(mount, visible=tuple(visible[mount.directory])) for mount in plan)


Inner = Mapping[str, Sequence[PlannedMount]]

_real: dict[str, int] = {}
"""Descriptors, in a job's process, of the directories that layers are about to cover."""


def open_real(directory: str) -> None:
    """Open a directory in the job's process before a layer covers it, so that its real files can still be reached."""
    _real[directory] = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


_layers: list[int] = []
"""Descriptors, in a job's process, of the overlays of its layers."""


def _hold(place: str) -> None:
    """Open a layer where it was just mounted: later it is moved, and others may be mounted on it."""
    _layers.append(os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


def take_layers() -> list[int]:
    """Return, in the job's process, descriptors of its layers, which belong to the caller from now on."""
    found = _layers.copy()
    _layers.clear()
    return found


def bind_inputs(inputs: Iterable[tuple[str, str]]) -> None:
    """Mount each real input, read-only, over what a layer shows of it; in the job's process, after all other mounts.

    Args:
        inputs: the directory of the layer, and the input's path relative to it. Missing inputs are skipped.

    Raises:
        OSError: if an input cannot be mounted.
    """
    for directory, name in inputs:
        step = syscalls.bind_step(f"/proc/self/fd/{_real[directory]}/{name}", f"{directory}/{name}")
        with suppress(FileNotFoundError):
            syscalls.run([step])
    for fd in _real.values():
        os.close(fd)
    _real.clear()


def bind_own(workdir: str, name: str, *, writable: bool) -> None:
    """Mount a directory of Forge that this job may see; in the job's process, before :func:`bind_inputs`.

    Args:
        workdir: a directory with a layer that :func:`open_real` has opened.
        name: of the directory, relative to the working directory.

    Raises:
        OSError: if it cannot be mounted.
    """
    place = f"{workdir}/{name}"
    os.makedirs(place, exist_ok=True)
    syscalls.run([syscalls.bind_step(f"/proc/self/fd/{_real[workdir]}/{name}", place)])
    if writable:
        syscalls.run([syscalls.writable_step(place)])


def _enclosing(plan: Sequence[PlannedMount]) -> dict[str, PlannedMount | None]:
    """Map each mount's directory to the innermost other mount around it."""
    mounts = {mount.directory: mount for mount in plan}
    return {path: next((mounts[p] for p in ancestors(path) if p in mounts), None) for path in mounts}


def inner(plan: Sequence[PlannedMount]) -> Inner:
    """Map each mount's directory to the mounts that are moved into it."""
    outer = _enclosing(plan)
    found: dict[str, list[PlannedMount]] = {mount.directory: [] for mount in plan}
    for mount in plan:
        if (around := outer[mount.directory]) is not None:
            found[around.directory].append(mount)
    return found


def prepare(plan: Sequence[PlannedMount], inner: Inner, assembly: str) -> None:
    """Make the directories on disk that :func:`mount_steps` needs.

    Args:
        inner: see :func:`inner`.

    Raises:
        OSError: if one cannot be made.
    """
    for number, mount in enumerate(plan):
        mount.prepare(inner[mount.directory])
        place = f"{assembly}/{number}"
        if not os.path.isdir(place):
            os.makedirs(place)


def mount_steps(
    plan: Sequence[PlannedMount],
    assembly: str,
    *,
    read_only: bool,
    writable: Sequence[str],
    hidden: Sequence[str],
    masks: bool,
    user: bool,
) -> list[Step]:
    """Steps that turn a process's new mount namespace into the job's own; the process is in a new PID namespace too.

    Args:
        plan: the mounts, prepared by :func:`prepare`.
        assembly: contains an empty directory for each mount, named by its number.
        read_only: make everything read-only except the writable mounts and paths.
        writable: real paths, below none of the mounts, that stay writable.
        hidden: paths that the job must not see.
        masks: make parts of /proc read-only; a job that makes a sandbox of its own could not mount another /proc then.
        user: whether this happens in a user namespace.
    """
    outer, inside = _enclosing(plan), inner(plan)
    place = {mount.directory: f"{assembly}/{number}" for number, mount in enumerate(plan)}
    steps: list[Step] = []
    for mount in sorted(plan, key=_depth):
        steps += mount.assembly_steps(place[mount.directory], inside[mount.directory], user)
    if read_only:
        steps += [syscalls.bind_step(path, path) for path in writable]
        steps.append(syscalls.read_only_step("/"))
        for mount in plan:
            own = place[mount.directory]
            steps += [syscalls.writable_step(own)] if mount.writable else []
            steps += [syscalls.writable_step(mount.path_at(own, path)) for path, write in mount.visible if write]
        steps += [syscalls.writable_step(path) for path in writable]
    for mount in sorted(plan, key=lambda m: (outer[m.directory] is None, below(assembly, m.directory), -_depth(m))):
        around = outer[mount.directory]
        target = mount.directory if around is None else around.path_at(place[around.directory], mount.directory)
        steps.append(syscalls.mount_step(place[mount.directory], target, "", syscalls.MS_MOVE))
    for path in hidden:
        steps.append((_run_if_there, (tuple(_hide_steps(path)),), ""))
    if not read_only:
        steps += syscalls.bind_read_only_steps("/sys")
    steps.append(syscalls.mount_step("proc", "/proc", "proc", _FLAGS | syscalls.MS_NOEXEC))
    steps.append(syscalls.mount_step("devpts", "/dev/pts", "devpts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, _PTS))
    for path in _PROC_READ_ONLY if masks else ():
        if os.path.exists(path):
            steps += syscalls.bind_read_only_steps(path)
    return steps


def _depth(mount: PlannedMount) -> int:
    return mount.directory.count("/")


def _run_if_there(steps: tuple[Step, ...]) -> None:
    """Run the steps; a path that another mount covers need not be hidden, and a mount may be gone meanwhile."""
    try:
        syscalls.run(steps)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTCONN):
            raise


def _hide_steps(path: str) -> list[Step]:
    if os.path.isdir(path):
        return [syscalls.mount_step("forge-hidden", path, "tmpfs", _FLAGS | syscalls.MS_RDONLY, "mode=000,size=4k")]
    return [syscalls.bind_step(os.devnull, path, recursive=False)] if os.path.exists(path) else []
