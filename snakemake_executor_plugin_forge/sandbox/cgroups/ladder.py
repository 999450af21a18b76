"""The ladder of places in which the cgroup of a run can be made, strongest first; the first that works is used."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial

from ...kernel import procfs
from ...spec.host import Rung
from ...spec.job import ORDINARY, Priority
from . import base
from .base import CgroupMount, RunCgroup, mounts_of
from .v1 import CONTROLLERS as V1_CONTROLLERS
from .v1 import IO_CONTROLLER, V1Run
from .v2 import CONTROLLERS as V2_CONTROLLERS
from .v2 import V2Run, hand_down, open_delegated
from .weights import scope_properties

_SCOPE_SECONDS = 5.0


Candidate = tuple[str, Callable[[], RunCgroup]]
"""A rung of the ladder: its name, and the operation that makes the cgroup there."""


def open_run_cgroup(
    name: str, memory_bytes: int, pids: int | None, priority: Priority = ORDINARY
) -> tuple[RunCgroup | None, tuple[Rung, ...]]:
    """Make the cgroup of the run at the best place that this host allows.

    Returns:
        The cgroup, or None; and the rungs that were tried, in their order, with the reasons of refusals.
    """
    mounts = mounts_of()
    tried: list[Rung] = []
    for rung, make in ladder(mounts, name, memory_bytes, pids, priority):
        try:
            group = make()
        except OSError as error:
            tried.append(Rung(rung, str(error)))
            continue
        return group, (*tried, Rung(rung, None))
    return None, tuple(tried)


def ladder(
    mounts: list[CgroupMount], name: str, memory_bytes: int, pids: int | None, priority: Priority = ORDINARY
) -> Iterator[Candidate]:
    """The rungs that have a cgroup, strongest first. Only trying shows which of them this host allows."""
    v1 = {c: m.own for m in mounts if m.version == 1 for c in m.controllers & set(V1_CONTROLLERS)}
    unified = next((m for m in mounts if m.version == 2), None)
    missing = sorted(set(V1_CONTROLLERS) - set(v1))
    if v1 and missing:
        yield _refused("cgroup v1", f"the controllers {', '.join(missing)} are not mounted as v1")
    elif v1:
        v1 |= _v1_io(mounts) if priority.io_weights else {}
        paths = {c: f"{path}/{name}" for c, path in v1.items()}
        yield "cgroup v1", lambda: V1Run(paths, memory_bytes, pids, priority)
    if unified is None:
        if not v1:
            yield _refused("cgroup v2", "no cgroup file system is mounted")
        return
    if v1 and not _controllers(unified.own):  # hybrid: v1 has them all
        return
    yield "cgroup v2", lambda: V2Run(f"{unified.own}/{name}", memory_bytes, pids, priority)
    if "SLURM_JOB_ID" in os.environ:  # a scope would leave the limits of the Slurm job
        yield _refused("systemd scope", "not asked for: it would leave the limits of the Slurm job")
    else:
        yield "systemd scope", lambda: _systemd_scope(name, memory_bytes, pids, priority)
    if os.geteuid() == 0 and "SLURM_JOB_ID" not in os.environ:  # above are the limits of the Slurm job
        for parent in _ancestors(unified.own):
            yield "cgroup v2 above", partial(V2Run, f"{parent}/{name}", memory_bytes, pids, priority)
    # An ordinary user can only write to a delegated cgroup. Root can write anywhere and must not rearrange a host: it
    # may use the root of a container's cgroup namespace, which has the file cgroup.type; the host's root has none.
    is_container = unified.own == unified.mount_point and os.path.exists(f"{unified.own}/cgroup.type")
    if os.geteuid() != 0 or is_container:
        yield "delegated cgroup v2", lambda: open_delegated(unified.own, name, memory_bytes, pids, priority)


def _v1_io(mounts: list[CgroupMount]) -> dict[str, str]:
    own = next((m.own for m in mounts if m.version == 1 and IO_CONTROLLER in m.controllers), None)
    return {} if own is None else {IO_CONTROLLER: own}


def _refused(name: str, reason: str) -> Candidate:
    def refuse() -> RunCgroup:
        raise OSError(reason)

    return name, refuse


def _controllers(path: str) -> frozenset[str]:
    """The controllers that a v2 cgroup could hand down, of those that a job needs."""
    try:
        return frozenset(base.read(f"{path}/cgroup.controllers").split()) & frozenset(V2_CONTROLLERS)
    except OSError:
        return frozenset()


def _ancestors(path: str) -> Iterator[str]:
    """The cgroups above ``path``, nearest first: one without processes can hand its controllers down."""
    while os.path.exists(f"{path}/../cgroup.procs"):
        path = os.path.normpath(f"{path}/..")
        yield path


def _systemd_scope(name: str, memory_bytes: int, pids: int | None, priority: Priority) -> RunCgroup:
    """Ask systemd for a delegated scope for this process, once per run, over D-Bus: org.freedesktop.systemd1(5).

    The nursery moves into a leaf of the scope, the jobs into its sibling: a cgroup that hands controllers down may hold
    no process itself (cgroup-v2.rst, "No Internal Process Constraint").
    """
    runtime = f"/run/user/{os.geteuid()}"  # su and sudo do not set it: pam_systemd(8)
    environment = {"XDG_RUNTIME_DIR": runtime, **os.environ} if os.path.isdir(runtime) else None
    command = ["busctl"] + ([] if os.geteuid() == 0 else ["--user"])
    command += ["call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"]
    command += ["org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"]
    weights = scope_properties(priority)  # beside the other units of the same manager
    command += [f"{name}.scope", "fail", str(2 + len(weights) // 3)]
    command += ["PIDs", "au", "1", str(os.getpid()), "Delegate", "b", "true", *weights, "0"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_SCOPE_SECONDS, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OSError(f"systemd was not reached with busctl: {error}") from error
    if result.returncode != 0:
        raise OSError(f"systemd refused a delegated scope: {result.stderr.strip()}")
    scope = _await_scope(name)
    os.mkdir(f"{scope}/nursery")
    procfs.write(f"{scope}/nursery/cgroup.procs", os.getpid())
    hand_down(scope)
    return V2Run(f"{scope}/jobs", memory_bytes, pids, priority)


def _await_scope(name: str) -> str:
    deadline = time.monotonic() + _SCOPE_SECONDS
    while time.monotonic() < deadline:
        for mount in mounts_of():
            if mount.version == 2 and mount.own.endswith(f"/{name}.scope"):
                return mount.own
        time.sleep(0.005)
    raise OSError(f"systemd did not move this process into {name}.scope within {_SCOPE_SECONDS:.0f} s")


def host_memory_bytes() -> int:
    """The memory that this process may use: the host's, or less if a cgroup around it has a lower limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for mount in mounts_of():
        name = "memory.max" if mount.version == 2 else "memory.limit_in_bytes"
        if mount.version == 2 or "memory" in mount.controllers:
            for directory in (mount.own, *_ancestors(mount.own)):
                total = min(total, base.read_number(f"{directory}/{name}") or total)
    return total
