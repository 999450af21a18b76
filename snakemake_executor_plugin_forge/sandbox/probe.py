"""The probe of a host: finds out what it lets Forge do by doing it, once per run.

:func:`.cgroups.ladder.open_run_cgroup` makes the cgroup of the run at the first place that works, and keeps the reasons
of the refusals. :func:`try_namespaces` sends a job that does nothing through a whole sandbox. :func:`probe_host` does
both and describes the result.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from dataclasses import dataclass, replace

from ..kernel import process_tree
from ..kernel.failpoints import reached
from ..kernel.inherited import fork
from ..kernel.shortage import REMEDY, is_shortage, patiently
from ..spec.errors import HostError, SandboxError
from ..spec.host import Host
from ..spec.job import FilePolicy, Files, Priority
from .base import Base, mechanisms, prepare
from .cgroups.base import RunCgroup
from .cgroups.ladder import host_memory_bytes, open_run_cgroup
from .cgroups.polled import PolledRun
from .cgroups.weights import io_division
from .enter import SandboxKey
from .filesystem.overlay import LayerPool
from .filesystem.scratch import Scratch
from .inside import Inside
from .job_process import forking
from .privileges import Bounds, counts_processes_by_namespace
from .result import read_result

_OWN_PROCESSES = 2  # a supervisor, and the process that holds the job's PID namespace
_SPARE_PROCESSES = 1024  # for the other jobs and for whatever else the user starts during the run
_TRIAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Probe:
    """The findings of :func:`probe_host`, and the cgroup that it made."""

    host: Host
    group: RunCgroup
    processes_beside: int | None  # what RLIMIT_NPROC counts beside a job; None: the job's cgroup limits processes


def probe_host(
    name: str,
    workdir: str,
    memory_bytes: int,
    pids: int | None,
    priority: Priority,
    gpus: tuple[str, ...],
    namespaces: Namespaces | None = None,
) -> Probe:
    """Probe the host and make the cgroup of the run, or a polled substitute where the host allows no cgroup.

    Args:
        name: names the cgroup, and see :func:`try_namespaces`.
        workdir: see :func:`try_namespaces`.
        memory_bytes: the memory limit of the whole run.
        pids: the limit of processes of the whole run.
        gpus: the device nodes that the run may give to its jobs.
        namespaces: what :func:`try_namespaces` has found on this host before; None: it tries.
    """
    namespaces = namespaces or try_namespaces(name, workdir)
    whole_bytes = host_memory_bytes()
    cgroup, tried = open_run_cgroup(name, memory_bytes, pids, priority)
    group: RunCgroup = cgroup or PolledRun(memory_bytes, namespaced=namespaces.kind != "none")
    refusals = "; ".join(f"{rung.name}: {rung.refusal}" for rung in tried if rung.refusal)
    io = io_division(group.io_place)
    host = Host(
        run_memory_bytes=memory_bytes,
        cpus=len(os.sched_getaffinity(0)),
        cgroup=group.version,
        cgroup_note=group.place if cgroup else f"no cgroup can be made: {refusals}",
        namespaces=namespaces.kind,
        namespaces_note=namespaces.refusal,
        mechanisms=mechanisms(namespaces.kind),
        gpus=gpus,
        tried=tried,
        not_enforced=group.missing,
        layers_note=namespaces.layers_refusal,
        layers_apart=namespaces.layers_apart,
        io_weight_note=io.refusal,
        io_devices=io.devices,
        io_controller=group.io_place is not None,
        memory_bytes=whole_bytes,
    )
    return Probe(host, group, None if cgroup else namespaces.processes_beside)


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The findings of :func:`try_namespaces`."""

    kind: str  # "root", "user" or "none"
    refusal: str = ""  # why none; "" otherwise
    counts_processes: bool = False  # whether RLIMIT_NPROC counts the processes of each user namespace by themselves
    layers_refusal: str = ""  # why no layer can be laid over the working directory
    layers_apart: bool = False

    @property
    def processes_beside(self) -> int:
        """Return the number of processes that RLIMIT_NPROC counts beside a job."""
        return _OWN_PROCESSES if self.counts_processes else process_tree.own_threads() + _SPARE_PROCESSES


def try_namespaces(name: str, workdir: str) -> Namespaces:
    """Send a job that does nothing through a whole sandbox, in a process of its own. Takes 20 ms or more.

    The kernel's version and settings do not tell: a host can allow namespaces and refuse mounts in them (AppArmor,
    containers).

    Args:
        name: names the job's scratch directory in the system's temporary directory, and its layer. Both are removed at
            the end; if this process is killed, the next recovery removes them with the leftovers of the run ``name``.
        workdir: a directory over which the trial lays a layer.

    Raises:
        HostError: if the host is short of processes, descriptors or memory.
    """
    try:
        return patiently(lambda: _try_namespaces(name, workdir))
    except OSError as error:  # a lower rung would not be for want of a right
        raise HostError(f"Forge cannot probe this host: {error}. {REMEDY}.") from error


def _try_namespaces(name: str, workdir: str) -> Namespaces:
    answers, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        pid = fork(lambda: _answer(theirs, f"{tempfile.gettempdir()}/{name}", workdir))
    except OSError:
        os.close(answers)
        raise
    finally:
        os.close(theirs)
    with open(answers, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    found = pickle.loads(answer) if answer else Namespaces("none", "the process that tried them was killed")
    if isinstance(found, OSError):
        raise found
    return found


def _answer(to: int, scratch_base: str, workdir: str) -> None:
    found: Namespaces | OSError = Namespaces("none", "the process that tried them died")
    try:
        found = _try_inside(scratch_base, workdir)
    except OSError as error:
        found = OSError(error.errno, error.strerror) if is_shortage(error) else Namespaces("none", str(error))
    except SandboxError as error:
        found = Namespaces("none", str(error))
    finally:
        os.write(to, pickle.dumps(found))


def _try_inside(scratch_base: str, workdir: str) -> Namespaces:
    kind = "root" if os.geteuid() == 0 else "user"
    base = prepare(kind)
    counts = kind == "user" and counts_processes_by_namespace()
    guarded = Files(FilePolicy.GUARD, layers=(workdir,))
    kinds = [guarded, replace(guarded, apart=True), Files()]
    refusal = ""
    for files in kinds:
        before = refusal
        place = workdir if files.layers else "/"
        refusal = _try_sandbox(
            base, SandboxKey(scratch_base, os.path.basename(scratch_base), workdir=place, files=files)
        )
        if not refusal:
            return Namespaces(kind, "", counts, "" if files.layers else before, files.apart)
    return Namespaces("none", refusal)


def _try_sandbox(base: Base, key: SandboxKey) -> str:
    """Why a process cannot enter a sandbox, or write to the layer in it; "" if it can."""
    name = f".forge-probe-{os.getpid()}"

    def execute(*_: object) -> dict[str, object]:
        if key.files.layers:
            os.mkdir(f"{key.workdir}/{name}")
        return {"exit_code": 0}

    scratch = Scratch(key.scratch_base, base.private)
    stock = LayerPool()
    try:
        layers = tuple(stock.take_all(key.files, key.workdir, key.layer_base, scratch.slot))
        text = _ask(Inside(key, base, scratch, layers, forking(base, execute, as_init=True), as_init=True))
        written = not layers or os.path.isdir(f"{layers[0].upper}/{name}")
        reached("probing", "")
    except OSError as error:
        if is_shortage(error):
            raise
        return str(error)
    finally:
        stock.close()
        scratch.remove()
    result = read_result(text)
    if result.exit_code == 0:
        return "" if written else "what was written to a layer went elsewhere"
    return result.setup_error or "a process that was to enter its sandbox died on the way"


def _ask(inside: Inside) -> bytes:
    """Start the job and read the result that it writes at its end."""
    try:
        inside.order(b"", {}, Bounds(None, None), [], None, ())
        return inside.read_result(_TRIAL_SECONDS)
    finally:
        inside.kill()
