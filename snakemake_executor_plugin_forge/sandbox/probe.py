"""What this host lets Forge do: found out by doing it, once per run.

:func:`open_run_cgroup` walks down the ladder of places where a cgroup for the run may be made and takes the first
that works; what was tried and refused becomes the note in the record.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from . import cgroup
from .cgroup import RunCgroup
from .cgroup_v1 import CONTROLLERS as V1_CONTROLLERS
from .cgroup_v1 import V1Run
from .cgroup_v2 import V2Run

_SCOPE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class CgroupMount:
    """A mounted cgroup hierarchy, as far as this process sees it."""

    version: int
    controllers: frozenset[str]
    own: str  # the directory of the cgroup that this process is in


def cgroup_mounts(mountinfo: str, own_cgroups: str) -> list[CgroupMount]:
    """Read /proc/self/mountinfo and /proc/self/cgroup: proc(5), cgroups(7). Pure."""
    own: dict[str, str] = {}
    for line in own_cgroups.splitlines():
        _, controllers, own_path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), own_path)
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, mount_point = left.split(" ")[3:5]
        names = frozenset(options.split(",")) if kind == "cgroup" else frozenset([""])
        path = next((own[name] for name in names if name in own), None)
        if path is None:
            continue
        inside = path.removeprefix(root) if root != "/" and (path + "/").startswith(root + "/") else path
        directory = os.path.normpath(f"{mount_point}/{inside}")
        found.append(CgroupMount(2 if kind == "cgroup2" else 1, names, directory))
    return found


def open_run_cgroup(name: str, memory_bytes: int, pids: int | None) -> tuple[RunCgroup | None, str]:
    """Make the cgroup of the run at the best place that this host allows.

    Returns:
        The cgroup and where it is, or None and why not.

    """
    mounts = cgroup_mounts(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup"))
    refusals: list[str] = []
    for attempt in _ladder(mounts, name, memory_bytes, pids):
        try:
            group = attempt()
        except OSError as error:
            refusals.append(str(error))
            continue
        return group, group.place
    return None, "; ".join(refusals) or "no cgroup file system is mounted"


def _ladder(
    mounts: list[CgroupMount], name: str, memory_bytes: int, pids: int | None
) -> Iterator[Callable[[], RunCgroup]]:
    v1 = {c: m.own for m in mounts if m.version == 1 for c in m.controllers & set(V1_CONTROLLERS)}
    if set(v1) == set(V1_CONTROLLERS):
        yield lambda: V1Run({c: f"{path}/{name}" for c, path in v1.items()}, memory_bytes, pids)
        return
    unified = next((m.own for m in mounts if m.version == 2), None)
    if unified is None:
        return
    yield lambda: V2Run(f"{unified}/{name}", memory_bytes, pids)
    if "SLURM_JOB_ID" not in os.environ:  # there a scope would leave the limits of the Slurm job
        yield lambda: _systemd_scope(name, memory_bytes, pids)
    if os.geteuid() == 0:
        for parent in _ancestors(unified):
            yield partial(V2Run, f"{parent}/{name}", memory_bytes, pids)


def _ancestors(path: str) -> Iterator[str]:
    """The cgroups above ``path``, nearest first: one without processes can hand its controllers down."""
    while os.path.exists(f"{path}/../cgroup.procs"):
        path = os.path.normpath(f"{path}/..")
        yield path


def _systemd_scope(name: str, memory_bytes: int, pids: int | None) -> RunCgroup:
    """A delegated scope for this process, by one D-Bus call per run; org.freedesktop.systemd1(5).

    The nursery goes into a leaf of the scope, the jobs into its sibling: a cgroup that hands controllers down may
    hold no process itself (cgroup-v2.rst, "No Internal Process Constraint").
    """
    command = ["busctl"] + ([] if os.geteuid() == 0 else ["--user"])
    command += ["call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"]
    command += ["org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"]
    command += [f"{name}.scope", "fail", "2", "PIDs", "au", "1", str(os.getpid()), "Delegate", "b", "true", "0"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_SCOPE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OSError(f"systemd was not reached with busctl: {error}") from error
    if result.returncode != 0:
        raise OSError(f"systemd refused a delegated scope: {result.stderr.strip()}")
    scope = _await_scope(name)
    os.mkdir(f"{scope}/nursery")
    cgroup.write(f"{scope}/nursery/cgroup.procs", os.getpid())
    cgroup.write(f"{scope}/cgroup.subtree_control", "+memory +cpu +pids")
    return V2Run(f"{scope}/jobs", memory_bytes, pids)


def _await_scope(name: str) -> str:
    deadline = time.monotonic() + _SCOPE_SECONDS
    while time.monotonic() < deadline:
        for mount in cgroup_mounts(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup")):
            if mount.version == 2 and mount.own.endswith(f"/{name}.scope"):
                return mount.own
        time.sleep(0.005)
    raise OSError(f"systemd did not move this process into {name}.scope within {_SCOPE_SECONDS:.0f} s")


def host_memory_bytes() -> int:
    """What this process may use of memory: the host's, or less if a cgroup around it says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for mount in cgroup_mounts(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup")):
        name = "memory.max" if mount.version == 2 else "memory.limit_in_bytes"
        if mount.version == 2 or "memory" in mount.controllers:
            for directory in (mount.own, *_ancestors(mount.own)):
                total = min(total, cgroup.read_number(f"{directory}/{name}") or total)
    return total


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
