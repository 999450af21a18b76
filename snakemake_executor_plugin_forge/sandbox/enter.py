"""The way into the sandbox in two halves: a supervisor works it out once, each job's process walks it."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..kernel import syscalls
from ..kernel.syscalls import Step
from ..spec.errors import SandboxError
from ..spec.file_policy import below
from ..spec.job import FilePolicy, Files, LaunchSpec, Network, Undeclared
from ..spec.paths import CHECKPOINTS, HOME, RUNS
from ..spec.quick_pickle import quick_to_pickle
from . import landlock, privileges, seccomp
from .base import Base
from .filesystem import mount_plan, mounts, rootfs
from .filesystem.mount_plan import Inner, PlannedMount
from .filesystem.overlay import Layer, layer_of
from .filesystem.scratch import Scratch

_SHM = "/dev/shm"  # noqa: S108


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class SandboxKey:
    """Everything that entering a sandbox depends on: jobs with equal keys can use each other's process."""

    scratch_base: str
    layer_base: str
    network: Network = Network.ON
    exposed: tuple[str, ...] = ()  # paths below private directories that are visible all the same
    workdir: str = "/"
    files: Files = Files()  # noqa: RUF009 - frozen; without what concerns one job alone
    identities: tuple[tuple[int, int] | None, ...] = ()  # device and inode of these directories
    interactive: bool = False
    gpus: tuple[str, ...] = ()
    root: str | None = None  # the root directory of its image
    shown: tuple[str, ...] = ()  # paths of the host that are visible in the image
    records: bool = False  # whether it sees, where it has a layer, no record but its own
    checkpoints: bool = False  # whether it gets a directory for checkpoints, where it has a layer

    @classmethod
    def of(cls, spec: LaunchSpec) -> SandboxKey:
        """Return the key of a job now: a directory that was deleted and made again since counts as another one."""
        files = _of_all(spec.files)
        return cls(
            scratch_base=spec.scratch_base,
            layer_base=spec.layer_base,
            network=spec.network,
            exposed=spec.exposed,
            workdir=spec.workdir,
            files=files,
            identities=tuple(_identity(path) for path in dict.fromkeys((spec.workdir, *spec.exposed, *files.layers))),
            interactive=spec.interactive,
            gpus=spec.gpus,
            root=spec.root,
            shown=spec.shown,
            records=spec.files.policy is FilePolicy.GUARD and below(spec.job_dir, f"{spec.workdir}/{RUNS}"),
            checkpoints=spec.checkpoint is not None and spec.files.staged,
        )


_last: list[Files] = [Files(), Files()]  # asked for, and found


def _of_all(files: Files) -> Files:
    """Return a file policy without what concerns one job alone. A job's key is asked for twice."""
    asked, found = _last
    if asked is not files:
        general = replace(
            files, targets=(), inputs=(), expected=(), undeclared=Undeclared.KEEP, keep_incomplete=False
        )  # fmt: skip
        found = found if general == found else general  # the same object, so that keys compare at once
        _last[:] = files, found
    return found


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def planned_mounts(
    key: SandboxKey, base: Base, scratch: Scratch, layers: tuple[Layer, ...]
) -> tuple[PlannedMount, ...]:
    """Return the mounts of a job, each with the real paths that stay visible in it.

    Args:
        layers: those over the directories that the key names, in their order.
    """
    strict = key.files.policy is FilePolicy.STRICT
    found = [PlannedMount(directory, source=source) for directory, source in scratch.private.items()]
    if _SHM in base.private:
        found.append(PlannedMount(_SHM, tmpfs=mount_plan.SHARED_MEMORY))
    if strict:
        home = key.files.home
        found += [PlannedMount(directory, writable=False) for directory in base.foreign if directory != home]
        found += [PlannedMount(home, tmpfs="mode=700,size=100%")] if home is not None else []
    else:
        wanted = (key.files.home, *key.files.caches)
        found += [PlannedMount(directory, source=source) for directory, source in base.kept if directory in wanted]
        own = f"{key.workdir}/{HOME}"
        found += [PlannedMount(own, writable=False)] if key.files.layers and os.path.isdir(own) else []
    for layer in layers:
        found.append(PlannedMount(layer.root, layer=layer))
        if layer.lower == layer.root:
            staging = os.path.dirname(layer.directory)
            found += [PlannedMount(staging, writable=False)] if below(staging, layer.root) else []
    # Both hide what other jobs have there; the job's own is bound into it.
    if key.checkpoints and layers:
        found.append(PlannedMount(f"{key.workdir}/{CHECKPOINTS}"))
    if key.records:
        found.append(PlannedMount(f"{key.workdir}/{RUNS}", tmpfs=mount_plan.RECORDS))
    return mount_plan.keep_visible(tuple(found), _shown(key, scratch, layers))


def _writable(key: SandboxKey, scratch: Scratch) -> tuple[str, ...]:
    """Return the real paths that a job may write to, beside its layers and private directories."""
    return (*key.files.live, *key.files.writable, *(() if scratch.is_private else (scratch.root,)))


def _shown(key: SandboxKey, scratch: Scratch, layers: tuple[Layer, ...]) -> Iterator[tuple[str, bool]]:
    """Yield the real paths that must stay visible below the mounts, and whether the job may write to them."""
    strict = key.files.policy is FilePolicy.STRICT
    kept = () if strict else (key.files.home, *key.files.caches)  # shows them anyway, and a job may write there
    roots = {layer.root: layer for layer in layers}
    for path in (*key.exposed, *key.files.visible):
        in_layer = path in roots if strict else layer_of(path, roots) is not None
        covered = in_layer or any(d and below(path, d) for d in kept)
        if not covered and os.path.exists(path):
            yield path, not key.files.staged
    for path in _writable(key, scratch):
        if os.path.exists(path):
            yield path, True
    if strict:  # mounts of other file systems are a part of what the layers would show
        return
    for point in key.files.mounts:
        if mounts.is_usable(point):
            yield point, False


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class EntryPlan:
    """The plan of a sandbox before there is a process for it, for :func:`entry_steps`."""

    key: SandboxKey
    mounts: tuple[PlannedMount, ...]
    layers: tuple[Layer, ...]
    assembly: str  # the directory in which the mounts are assembled
    writable: tuple[str, ...]


def plan_entry(key: SandboxKey, base: Base, scratch: Scratch, layers: tuple[Layer, ...]) -> EntryPlan:
    """Plan the sandbox of a job and make its mount points, in the supervisor.

    Raises:
        OSError, SandboxError: if a mount point cannot be made.
    """
    if base.namespaces == "none":
        if key.root is not None:
            raise SandboxError("a container needs namespaces, which this host does not give: snakemake-forge doctor")
        return EntryPlan(key, (), layers, "", (*key.files.writable, scratch.root) if key.files.writable else ("/",))
    plan, inner = _planned(key, base, scratch, layers, tuple(map(_kind, _asked(key, scratch))))
    mount_plan.prepare(plan.mounts, inner, scratch.assembly)
    if key.root is None:
        return plan
    return replace(plan, key=replace(key, shown=rootfs.make_mount_points(key.root, key.shown)))


def _asked(key: SandboxKey, scratch: Scratch) -> Iterator[str]:
    """Yield the paths on which a plan depends, beside what the key says of them."""
    yield f"{key.workdir}/{HOME}"
    yield from (*key.exposed, *key.files.visible, *_writable(key, scratch), *key.files.mounts)


def _kind(path: str) -> tuple[object, ...]:
    """Return whether a path is a directory, file or link, and where a link leads; or why that is unknown."""
    try:
        own = stat.S_IFMT(os.lstat(path).st_mode)
        return (own,) if not stat.S_ISLNK(own) else (own, os.readlink(path), stat.S_IFMT(os.stat(path).st_mode))
    except OSError as error:
        return (error.errno,)


@functools.lru_cache(maxsize=8)  # most sandboxes of a supervisor are equal
def _planned(
    key: SandboxKey, base: Base, scratch: Scratch, layers: tuple[Layer, ...], kinds: tuple[tuple[object, ...], ...]
) -> tuple[EntryPlan, Inner]:
    """Plan a sandbox, and say which mounts are moved into which.

    Args:
        kinds: of :func:`_asked`, on which this depends.
    """
    del kinds
    found = planned_mounts(key, base, scratch, layers)
    writable = tuple(
        path
        for path in _writable(key, scratch)
        if os.path.exists(path) and not any(below(path, mount.directory) for mount in found)
    )
    return EntryPlan(replace(key, shown=()), found, layers, scratch.assembly, writable), mount_plan.inner(found)


def _ruleset(writable: tuple[str, ...], nested: bool) -> landlock.Ruleset | None:
    """Return the rules of Landlock; None where it is missing, and for jobs that mount, which it forbids."""
    version = landlock.abi()
    if nested or landlock.refusal(version):
        return None
    return landlock.Ruleset(version, landlock.rules(version, writable))


class EntrySteps(NamedTuple):
    """The system calls that lock a job's process into its sandbox."""

    ahead: tuple[Step, ...]  # before there is a job
    lock: tuple[Step, ...]
    filter: tuple[Step, ...]


def _lock_steps(
    rules: landlock.Ruleset | None, nested: bool, capabilities: frozenset[int]
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    restrict = rules.restrict_steps() if rules is not None else []
    return (*privileges.drop_steps(capabilities, nested=nested), *restrict), tuple(seccomp.steps(nested=nested))


@functools.lru_cache(maxsize=64)  # most sandboxes of a run are equal
def entry_steps(plan: EntryPlan, base: Base) -> EntrySteps:
    """Work out the system calls that lock a job's process into its sandbox."""
    key, files = plan.key, plan.key.files
    if base.namespaces == "none":
        rules = _ruleset(plan.writable, files.nested)
        ahead: tuple[Step, ...] = (syscalls.chdir_step(key.workdir), *(rules.prepare_steps() if rules else ()))
        return EntrySteps(ahead, *_lock_steps(rules, files.nested, base.capabilities))
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
    if key.network is Network.OFF:
        flags |= syscalls.CLONE_NEWNET
    mount_steps = mount_plan.mount_steps(
        plan.mounts,
        plan.assembly,
        read_only=files.staged,
        writable=plan.writable,
        hidden=files.hidden,
        masks=not files.nested,
        user=base.userns,
    )
    visible = [path for mount in plan.mounts for path, may_write in mount.visible if may_write]
    allowed_to = [mount.directory for mount in plan.mounts if mount.writable] + visible + list(plan.writable)
    rules = _ruleset(tuple(allowed_to) if files.staged else ("/",), files.nested)
    ahead = (
        syscalls.unshare_step(flags),
        *([(syscalls.raise_loopback, (), "loopback")] if key.network is Network.OFF else []),
        *[(mount_plan.open_real, (layer.root,), "") for layer in plan.layers],
        *mount_steps,
        *(mounts.gpu_steps(key.gpus) if base.gpus else []),
        *(mounts.offline_steps() if key.network is Network.OFF else []),
        *[syscalls.unmount_step(place) for _, place in base.kept],
        *(rootfs.steps(key.root, key.shown) if key.root is not None else []),
        syscalls.chdir_step(key.workdir),
        (syscalls.join_new_session_keyring, (), "keyring"),
        *(rules.prepare_steps() if rules is not None else ()),
    )
    return EntrySteps(ahead, *_lock_steps(rules, files.nested, base.capabilities))


def enter(steps: tuple[Step, ...], keep: tuple[int, ...], signals: tuple[int, ...]) -> None:
    """Lock this process, which was just forked, into its sandbox. The caller connects its streams.

    Args:
        steps: see :func:`entry_steps`.
        keep: descriptors that stay open.
        signals: see :func:`.privileges.changed_signals`.

    Raises:
        OSError: if the kernel refuses a call.
    """
    os.setsid()
    privileges.close_descriptors(keep)
    syscalls.run(steps)
    privileges.reset_signals(signals)


def lock(
    steps: EntrySteps,
    inputs: Iterable[tuple[str, str]],
    own: tuple[str, Mapping[str, bool]] | None,
    bounds: privileges.Bounds,
    cgroup_files: list[int],
    *,
    listened_to: bool,
) -> int | None:
    """Dedicate this process, which is in its sandbox, to one job: its inputs, its limits, and no way back.

    Args:
        steps: see :func:`entry_steps`.
        inputs: see :func:`.filesystem.mount_plan.bind_inputs`.
        own: working directory, and the directories of Forge that are the job's, each with whether it may write to it:
            see :func:`.filesystem.mount_plan.bind_own`.
        cgroup_files: by which it enters its cgroup.
        listened_to: whether a supervisor answers notifications.

    Returns:
        Their descriptor: see :func:`.seccomp.listen`.

    Raises:
        OSError: if the kernel refuses a call.
    """
    if own is not None:
        for name, writable in own[1].items():
            mount_plan.bind_own(own[0], name, writable=writable)
    mount_plan.bind_inputs(inputs)
    syscalls.run(steps.lock)
    listener = seccomp.listen() if listened_to else None
    if listener is None:
        syscalls.run(steps.filter)
    privileges.limit_resources(bounds)
    for fd in cgroup_files:
        os.write(fd, b"0")
        os.close(fd)
    return listener
