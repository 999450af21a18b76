"""What this host lets Forge do: found out by doing it, once per run.

:func:`open_run_cgroup` walks down the ladder of places where a cgroup for the run may be made and takes the first
that works; what was tried and refused is kept with the reasons. :func:`try_namespaces` sends a job that does nothing
through a whole sandbox.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from ..errors import SandboxError
from ..faults import reached
from ..files import below
from ..model import ORDINARY, FilePolicy, Files, Priority, Rung
from . import cgroup, pseudofile, sweep
from .cgroup import RunCgroup
from .cgroup_v1 import CONTROLLERS as V1_CONTROLLERS
from .cgroup_v1 import IO_CONTROLLER, V1Run
from .cgroup_v2 import CONTROLLERS as V2_CONTROLLERS
from .cgroup_v2 import V2Run, hand_down, open_delegated
from .enter import Base, View, prepare
from .inside import Inside, forking
from .layers import Layers
from .privileges import Bounds, counts_processes_by_namespace
from .scratch import Scratch
from .weights import scope_properties

_SCOPE_SECONDS = 5.0
_OWN_PROCESSES = 2  # a supervisor, and who holds the job's PID namespace
_SPARE_PROCESSES = 1024  # of the other jobs and of whatever else the user starts during the run


@dataclass(frozen=True, slots=True)
class CgroupMount:
    """A mounted cgroup hierarchy, as far as this process sees it."""

    version: int
    controllers: frozenset[str]
    own: str  # the directory of the cgroup that this process is in
    mount_point: str


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
        found.append(CgroupMount(2 if kind == "cgroup2" else 1, names, directory, mount_point))
    return found


@dataclass(frozen=True, slots=True)
class Attempt:
    """A rung of the ladder: a name, and the operation that takes it."""

    name: str
    make: Callable[[], RunCgroup]


def open_run_cgroup(
    name: str, memory_bytes: int, pids: int | None, priority: Priority = ORDINARY
) -> tuple[RunCgroup | None, tuple[Rung, ...]]:
    """Make the cgroup of the run at the best place that this host allows.

    Returns:
        The cgroup, or None; and what was tried, in its order, with the reasons of refusals.

    """
    mounts = cgroup_mounts(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup"))
    tried: list[Rung] = []
    for rung in _ladder(mounts, name, memory_bytes, pids, priority):
        try:
            group = rung.make()
        except OSError as error:
            tried.append(Rung(rung.name, str(error)))
            continue
        return group, (*tried, Rung(rung.name, None))
    return None, tuple(tried)


def _ladder(
    mounts: list[CgroupMount], name: str, memory_bytes: int, pids: int | None, priority: Priority = ORDINARY
) -> Iterator[Attempt]:
    """The rungs that have a cgroup, strongest first. Which of them bear is found out by standing on them."""
    v1 = {c: m.own for m in mounts if m.version == 1 for c in m.controllers & set(V1_CONTROLLERS)}
    unified = next((m for m in mounts if m.version == 2), None)
    missing = sorted(set(V1_CONTROLLERS) - set(v1))
    if v1 and missing:
        yield _refused("cgroup v1", f"the controllers {', '.join(missing)} are not mounted as v1")
    elif v1:
        v1 |= _v1_io(mounts) if priority.io_weights else {}
        paths = {c: f"{path}/{name}" for c, path in v1.items()}
        yield Attempt("cgroup v1", lambda: V1Run(paths, memory_bytes, pids, priority))
    if unified is None:
        if not v1:
            yield _refused("cgroup v2", "no cgroup file system is mounted")
        return
    if v1 and not _controllers(unified.own):  # hybrid: v1 has them all
        return
    yield Attempt("cgroup v2", lambda: V2Run(f"{unified.own}/{name}", memory_bytes, pids, priority))
    if "SLURM_JOB_ID" in os.environ:  # a scope would leave the limits of the Slurm job
        yield _refused("systemd scope", "not asked for: it would leave the limits of the Slurm job")
    else:
        yield Attempt("systemd scope", lambda: _systemd_scope(name, memory_bytes, pids, priority))
    if os.geteuid() == 0 and "SLURM_JOB_ID" not in os.environ:  # above are the limits of the Slurm job
        for parent in _ancestors(unified.own):
            yield Attempt("cgroup v2 above", partial(V2Run, f"{parent}/{name}", memory_bytes, pids, priority))
    # Who is not root can only write to what was delegated. Root can write anywhere, and must not rearrange a host: for
    # it, the root of a cgroup namespace that is not that of the host (which has no cgroup.type) was delegated.
    is_container = unified.own == unified.mount_point and os.path.exists(f"{unified.own}/cgroup.type")
    if os.geteuid() != 0 or is_container:
        yield Attempt("delegated cgroup v2", lambda: open_delegated(unified.own, name, memory_bytes, pids, priority))


def _v1_io(mounts: list[CgroupMount]) -> dict[str, str]:
    own = next((m.own for m in mounts if m.version == 1 and IO_CONTROLLER in m.controllers), None)
    return {} if own is None else {IO_CONTROLLER: own}


def _refused(name: str, reason: str) -> Attempt:
    def refuse() -> RunCgroup:
        raise OSError(reason)

    return Attempt(name, refuse)


def _controllers(path: str) -> frozenset[str]:
    """Those that a v2 cgroup could hand down, of the ones that a job needs."""
    try:
        return frozenset(cgroup.read(f"{path}/cgroup.controllers").split()) & frozenset(V2_CONTROLLERS)
    except OSError:
        return frozenset()


def _ancestors(path: str) -> Iterator[str]:
    """The cgroups above ``path``, nearest first: one without processes can hand its controllers down."""
    while os.path.exists(f"{path}/../cgroup.procs"):
        path = os.path.normpath(f"{path}/..")
        yield path


def _systemd_scope(name: str, memory_bytes: int, pids: int | None, priority: Priority) -> RunCgroup:
    """A delegated scope for this process, by one D-Bus call per run; org.freedesktop.systemd1(5).

    The nursery goes into a leaf of the scope, the jobs into its sibling: a cgroup that hands controllers down may
    hold no process itself (cgroup-v2.rst, "No Internal Process Constraint").
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
    pseudofile.write(f"{scope}/nursery/cgroup.procs", os.getpid())
    hand_down(scope)
    return V2Run(f"{scope}/jobs", memory_bytes, pids, priority)


def _await_scope(name: str) -> str:
    deadline = time.monotonic() + _SCOPE_SECONDS
    while time.monotonic() < deadline:
        for mount in cgroup_mounts(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup")):
            if mount.version == 2 and mount.own.endswith(f"/{name}.scope"):
                return mount.own
        time.sleep(0.005)
    raise OSError(f"systemd did not move this process into {name}.scope within {_SCOPE_SECONDS:.0f} s")


@dataclass(frozen=True, slots=True)
class Namespaces:
    """What :func:`try_namespaces` found."""

    kind: str  # "root", "user" or "none"
    refusal: str  # "" unless none
    processes_beside: int  # what RLIMIT_NPROC counts beside a job
    layers_refusal: str = ""  # why no layer can be laid over the working directory
    layers_apart: bool = False
    home_layer: bool = False


def try_namespaces(name: str, workdir: str) -> Namespaces:
    """Send a job that does nothing through a whole sandbox, in a process of its own. Takes 20 ms or more.

    Not by the kernel's version or settings: namespaces can be there and mounts in them refused (AppArmor, containers).

    Args:
        name: for its scratch directory in the system's temporary directory and its layer, both of which are removed:
            here or, if this process is killed, as those of a run of that name are.
        workdir: a directory over which a layer is laid.

    """
    kind = "root" if os.geteuid() == 0 else "user"
    answers, theirs = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        answer: dict[str, object] = {"refusal": "the process that tried them died"}
        try:
            answer = _try_inside(kind, f"{tempfile.gettempdir()}/{name}", workdir)
        except (OSError, SandboxError) as error:
            answer = {"refusal": str(error)}
        except BaseException:  # a bug of ours
            traceback.print_exc()
        finally:
            os.write(theirs, json.dumps(answer).encode())
            os._exit(0)
    os.close(theirs)
    with open(answers, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(pid, 0)
    answer = json.loads(text or '{"refusal": "the process that tried them was killed"}')
    if answer.get("refusal"):
        return Namespaces("none", str(answer["refusal"]), _own_threads() + _SPARE_PROCESSES)
    own = _OWN_PROCESSES if answer["counts_processes"] else _own_threads() + _SPARE_PROCESSES
    return Namespaces(kind, "", own, str(answer["layers"]), bool(answer["apart"]), bool(answer["home"]))


def _own_threads() -> int:
    """All processes and threads of this user on this host: what RLIMIT_NPROC counts where nothing divides it."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                total += int(sweep.stat(int(pid))[17])
    return total


def _try_inside(kind: str, scratch_base: str, workdir: str) -> dict[str, object]:
    base = prepare(kind)
    counts = kind == "user" and counts_processes_by_namespace()
    home = os.path.realpath(os.path.expanduser("~"))
    guarded = Files(FilePolicy.GUARD, layers=(workdir,))
    kinds = [guarded, replace(guarded, apart=True), Files()]
    if home != "/" and os.path.isdir(home) and not below(home, workdir):
        kinds = [replace(guarded, home=home), replace(guarded, home=home, apart=True), *kinds]
    refusals: list[str] = []
    for files in kinds:
        refusal = _try_view(base, View(scratch_base, workdir=workdir if files.layers else "/", files=files))
        if not refusal:
            layers = "" if files.layers else refusals[-1]
            found = {"layers": layers, "apart": files.apart, "home": files.home is not None}
            return {"counts_processes": counts, **found}
        refusals.append(refusal)
    return {"refusal": refusals[-1]}


def _try_view(base: Base, view: View) -> str:
    """Why a process cannot enter a sandbox, or write to the layer in it; "" if it can."""
    name = f".forge-probe-{os.getpid()}"

    def execute(*_: object) -> dict[str, object]:
        if view.files.layers:
            os.mkdir(f"{view.workdir}/{name}")
        return {"exit_code": 0}

    scratch = Scratch(view.scratch_base, base.private)
    stock = Layers()
    try:
        layers = tuple(stock.take_all(view.files, view.workdir, os.path.basename(view.scratch_base), scratch.slot))
        text = _ask(Inside(view, base, scratch, layers, forking(base, execute, as_init=True), as_init=True))
        written = not layers or os.path.isdir(f"{layers[0].upper}/{name}")
        reached("probing", "")
    except OSError as error:
        return str(error)
    finally:
        stock.close()
        scratch.remove()
    result = json.loads(text or b"{}")
    if result.get("exit_code") == 0:
        return "" if written else "what was written to a layer went elsewhere"
    return str(result.get("setup_error", "a process that was to enter its sandbox died on the way"))


def _ask(inside: Inside) -> bytes:
    """What it says at its end."""
    try:
        inside.order(b"", {}, Bounds(None, None), [], None, ())
        text = b""
        while select.select([inside.result_fd], [], [], _SCOPE_SECONDS)[0]:
            if not (chunk := os.read(inside.result_fd, 65536)):
                break
            text += chunk
    finally:
        os.kill(inside.started.pid, signal.SIGKILL)
        os.waitpid(inside.started.pid, 0)
        inside.close()
    return text


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
