"""The node's part: a batch job runs ``python -m snakemake_executor_plugin_forge.backends.slurm.node ATTEMPT``.

It claims the attempt, probes the node, runs the attempt in a sandbox within the limits of the batch job, and tells the
controller, if the attempt is still its own. It loads no Snakemake and reads no Snakefile: the controller has rendered
the command. (For rules with Python in them, that is an inner ``snakemake``.) node_state.py makes its decisions.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from ...kernel import syscalls
from ...sandbox import gpus as gpu_nodes
from ...sandbox import seccomp
from ...sandbox.base import prepare
from ...sandbox.cgroups import slurm_step
from ...sandbox.cgroups.ladder import host_memory_bytes
from ...sandbox.environment import withheld
from ...sandbox.filesystem.directories import remove_if_empty
from ...sandbox.filesystem.homes import home_directory
from ...sandbox.filesystem.kept import HeldHome, hold_home
from ...sandbox.filesystem.mounts import mount_points
from ...sandbox.filesystem.overlay import may_cover
from ...sandbox.filesystem.scratch import ScratchPool, hold, remove_abandoned
from ...sandbox.probe import Namespaces, probe_host, try_namespaces
from ...sandbox.standby import Standby
from ...spec import words
from ...spec.errors import ForgeError
from ...spec.file_policy import fitted
from ...spec.host import POLLED, Host, check_requirement
from ...spec.job import DEFAULT_IO_WEIGHT, LaunchSpec, Priority
from ...spec.plan import isolation, with_gpus
from ...spec.verdict import EndedBy, Order, Verdict
from ...staging.publish import remove_outputs
from ...supervisor.prepared import Tools
from ...supervisor.supervisor import supervise
from ...workers import launcher
from ...workers.launcher import Command
from . import exchange, fence, mpi, node_state
from .verdicts import amend, refused

SLURM_CGROUP = "slurm-cgroup"
"""The name in records of limits by Slurm's own cgroup, where Forge can make none below it."""

_EXIT_FORGE = 1  # the batch job failed: there is no result


def main() -> None:
    """Run as the process of the batch job."""
    run_attempt(os.path.abspath(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")


def warm_up(attempt: str) -> Namespaces | None:
    """Find out what is the same for all attempts of a batch job, before each gets a fork of this process.

    Args:
        attempt: the directory of the first, which names the scratch of the trial.

    Returns:
        The namespaces of this node; None if it is short of something now, and the attempts have to find out.
    """
    withheld(os.environ, ())
    seccomp.steps(nested=False)
    run_id = os.path.basename(os.path.dirname(exchange.state_of(attempt)))
    with suppress(ForgeError, OSError):
        return try_namespaces(exchange.copy_name(run_id, attempt, 0), os.getcwd())  # sbatch --chdir
    return None


def run_attempt(attempt: str, checksum: str, namespaces: Namespaces | None = None) -> NoReturn:
    """Run one attempt as this process, which ends.

    Args:
        attempt: the directory of the attempt.
        checksum: of its launch.
        namespaces: of this node, if :func:`warm_up` has found out.
    """
    begin = time.monotonic()
    signals = Signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # a worker forks with it blocked
    try:
        launch = exchange.read_launch(attempt, checksum)
        mine = fence.claim(attempt, f"Slurm job {os.environ.get('SLURM_JOB_ID')} on {socket.gethostname()}")
        if mine is None:
            print(f"Nothing to do: {attempt} is taken ({fence.holder(attempt)}).", file=sys.stderr)
        else:
            Node(launch, mine, signals, begin, namespaces).run()
    except (ForgeError, OSError) as error:
        print(f"Forge: {error}", file=sys.stderr)
        sys.exit(_EXIT_FORGE)
    sys.exit(0)


class Signals:
    """SIGTERM as an order to end the attempt: a :class:`...supervisor.prepared.Control`. Slurm sends SIGKILL later."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._ours, self._theirs = ours, theirs
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def fileno(self) -> int:
        return self._ours.fileno()

    def early(self) -> Order | None:
        """See :class:`...supervisor.prepared.Control`. A signal makes the descriptor readable, whenever it comes."""
        return None

    def order(self) -> Order | None:
        with suppress(BlockingIOError):
            if signal.SIGTERM in self._ours.recv(64):
                return Order(EndedBy.SLURM, words.SLURM_ENDED)
        return None

    def abandoned(self) -> bool:
        """See :class:`...supervisor.prepared.Control`. Slurm runs the job, whatever becomes of Snakemake."""
        return False

    def let_go(self) -> None:
        """See :class:`...supervisor.prepared.Control`: never."""


class Node:
    """One copy of one attempt."""

    def __init__(
        self,
        launch: exchange.Launch,
        mine: fence.CopyClaim,
        signals: Signals,
        begin: float,
        namespaces: Namespaces | None = None,
    ) -> None:
        self._launch, self._mine, self._signals, self._begin = launch, mine, signals, begin
        self._state = node_state.CopyState()
        self._home: HeldHome | None = None
        self._namespaces = namespaces
        own = own_spec(launch.spec, os.path.basename(os.path.dirname(launch.state)), mine)
        self._spec = mpi.fitted(own, os.environ)

    def run(self) -> None:
        """Probe the node, run the job and report.

        Raises:
            ForgeError, OSError: if there can be no result.
        """
        before = slurm_step.read_step()
        try:
            tools = self._prepare()
        except (ForgeError, OSError) as error:
            self._report(refused(self._spec, f"{error} (node {socket.gethostname()})"))
            return
        _silence()
        shared = mpi.is_mpi(self._spec.resources)
        payload = with_scratch(self._launch.payload, self._launch.rendered_scratch, shared_tmp=shared)
        in_place = self._launch.spec.files.staged and not self._spec.files.staged

        def confirm(verdict: Verdict) -> Verdict:
            packed = exchange.part_of(self._mine.directory) is not None  # then Slurm's limit is that of all of them
            elapsed = 0.0 if packed else time.monotonic() - self._begin
            if not self._launch.shares:
                verdict = amend(verdict, self._spec, slurm_step.since(before), elapsed)
            noted = mpi.noted(verdict, self._spec, os.environ)
            return self._confirm(replace(noted, in_place=in_place))

        match self._decide(node_state.Prepared(in_place)):
            case node_state.Run(clear_outputs=True):
                remove_outputs(self._launch.spec.files.targets)
        supervise(self._spec, payload, replace(tools, confirm=confirm), self._report)
        tools.standby.close()
        if self._home is not None:
            self._home.leave(wait=True)
        if tools.group is not None:
            tools.group.remove()
        remove_if_empty(self._spec.scratch_base)

    def _decide(self, event: node_state.CopyEvent) -> node_state.Instruction:
        """Decide on an event, and on the answer of the fence if the decision takes one.

        Raises:
            OSError: if the fence cannot be read or written.
        """
        self._state, instruction = node_state.decide(self._state, event)
        if not isinstance(instruction, node_state.AskFence):
            return instruction
        if fence.take(self._mine) if instruction.take else fence.is_current(self._mine):
            return self._decide(node_state.FenceSaid(ours=True))
        newer = fence.latest(self._mine.directory) > self._mine.number
        why = "a later copy of this attempt has been started" if newer else str(fence.holder(self._mine.directory))
        return self._decide(node_state.FenceSaid(False, why))

    def _confirm(self, verdict: Verdict) -> Verdict:
        """Give the verdict with which the supervisor publishes.

        Raises:
            OSError: see :meth:`_decide`.
        """
        instruction = self._decide(node_state.Ended(verdict))
        assert isinstance(instruction, node_state.Publish)
        if self._state.phase is node_state.Phase.SUPERSEDED:
            print(f"Forge: {instruction.verdict.reason}", file=sys.stderr)
        return instruction.verdict

    def _report(self, verdict: Verdict) -> None:
        """Tell the controller, if this copy is the one that may."""
        match self._decide(node_state.Recorded(verdict)):
            case node_state.Report(verdict, terminated=True):
                exchange.write_terminated(self._mine.directory, self._mine.number, verdict)
            case node_state.Report(verdict):
                exchange.write_result(self._launch.state, self._mine.directory, verdict)

    def _prepare(self) -> Tools:
        """Probe the node, check that it enforces enough, and make what a supervisor needs."""
        launch, name = self._launch, os.path.basename(self._spec.scratch_base)
        os.chdir(self._spec.workdir)
        limits = self._spec.limits  # the run is this one job, so its priority is that of the run
        priority = Priority(limits.nice, limits.io_weight, limits.io_weight != DEFAULT_IO_WEIGHT)
        gpus = gpu_nodes.find(launch.gpus, os.environ) if _wants_gpus(self._spec) else ()
        memory, pids = host_memory_bytes(), launch.run_pids
        probe = probe_host(name, self._spec.workdir, memory, pids, priority, gpus, self._namespaces)
        host = within_slurm(probe.host, slurm_step.read_step(), limits.cpus, shares=launch.shares)
        if not host.layers_note:
            place = os.path.dirname(self._spec.scratch_base)
            self._home, note = hold_home(host.namespaces, self._spec.workdir, place, apart=host.layers_apart)
            host = replace(host, home_layer=self._home is not None, home_note=note)
        self._spec = enclosed(self._spec, host, mount_points(), home_directory())
        check_requirement(launch.require, host, limits.io_weight)
        hold(self._spec.scratch_base)
        if gone := remove_abandoned(os.path.dirname(self._spec.scratch_base), exchange.COPY_NAME):
            print(f"Forge: removed what copies of jobs that were killed on this node have left: {', '.join(gone)}")
        base = prepare(host.namespaces, gpus, home=self._home.kept if self._home is not None else None)
        standby = Standby(base, execute, ScratchPool(base.private), as_init=True)
        syscalls.set_process_name(exchange.NODE_PROCESS)
        return Tools(probe.group, standby, self._signals, probe.processes_beside)


def within_slurm(host: Host, around: slurm_step.StepCgroup | None, cpus: int, *, shares: bool = False) -> Host:
    """Describe the host to a job whose memory Slurm's own cgroup limits: it stands in where Forge can make none.

    Args:
        around: the cgroup of the Slurm job.
        cpus: what the job asks for; Slurm's cgroup is the limit if the host gives no more.
        shares: whether others run in that Slurm job at the same time: its limit is not that of one.
    """
    if around is None or around.memory_limit_bytes is None:
        return host
    host = replace(host, mechanisms=(*host.mechanisms, SLURM_CGROUP))
    if shares or host.cgroup != POLLED:
        return host
    return replace(host, cgroup=SLURM_CGROUP, not_enforced=() if host.cpus <= cpus else ("cpu",))


def own_spec(spec: LaunchSpec, run_id: str, mine: fence.CopyClaim) -> LaunchSpec:
    """Give a copy its own directories: a scratch that exists on this node, and a record that no other copy writes."""
    base = os.path.dirname(spec.scratch_base)
    if not os.access(base, os.W_OK | os.X_OK):  # a directory of the submitting host
        base = tempfile.gettempdir()
    job_dir = exchange.copy_directory(spec.job_dir, mine.number)
    environment = {**spec.environment, "FORGE_JOB_DIR": job_dir}
    # Each copy has its own base, after which its layers are named: a process id is unique on one node only.
    scratch_base = f"{base}/{exchange.copy_name(run_id, mine.directory, mine.number)}"
    exposed = tuple(path for path in spec.exposed if os.path.exists(path))
    return replace(
        spec,
        job_dir=job_dir,
        environment=environment,
        scratch_base=scratch_base,
        exposed=exposed,
        slurm_job=slurm_job(os.environ),
    )


def slurm_job(environment: Mapping[str, str]) -> str | None:
    """Return the id of the Slurm job of this process, as squeue shows it: sbatch(1)."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID")


def enclosed(spec: LaunchSpec, host: Host, mounts: Iterable[str], home: str | None) -> LaunchSpec:
    """Fit the isolation, the file policy and the GPUs of a job to this node.

    Args:
        spec: the job as the controller has planned it.
        host: this node, with its ``mounts`` and the ``home`` of the user.
    """
    files = fitted(spec.files, host, mounts, home, may_cover)
    reduced = files.policy is not spec.files.policy or "files" in spec.isolation.not_enforced
    given = isolation(host, spec.network, files, reduced=reduced, io_weight=spec.limits.io_weight)
    spec = replace(spec, files=files, isolation=given)
    return with_gpus(spec, host.gpus) if host.gpus else spec


def with_scratch(payload: bytes, rendered_scratch: str, *, shared_tmp: bool = False) -> bytes:
    """Add to a command the name that stands in it for its scratch, and whether /tmp itself takes its place."""
    command = Command(*pickle.loads(payload))
    return pickle.dumps((command, rendered_scratch, shared_tmp))


def execute(payload: bytes, environment: Mapping[str, str], scratch: str) -> dict[str, object]:
    """Put the real scratch into the command, and start it; runs in the job."""
    command, rendered, shared_tmp = pickle.loads(payload)
    if shared_tmp:
        environment = mpi.with_shared_tmp(environment)
    place = environment["TMPDIR"]  # ``scratch`` is its name from before the job had it
    command = command._replace(
        arguments=tuple(argument.replace(rendered, place) for argument in command.arguments),
        changed={name: value.replace(rendered, place) for name, value in command.changed.items()},
    )
    return launcher.execute(pickle.dumps(command), environment, scratch)


def _wants_gpus(spec: LaunchSpec) -> bool:
    return any(spec.resources.get(key) for key in ("gpu", "gpus", "gpu_model", "gres"))


def _silence() -> None:
    """Close stdout, and leave stderr to Forge's own errors: the job's streams are in its record."""
    kept = os.dup(2)
    sys.stderr = open(kept, "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    null = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(null, fd)
    os.close(null)
