"""The node's part: ``python -m snakemake_executor_plugin_forge.backends.node ATTEMPT``, run by a batch job.

It claims the attempt, finds out what this node gives, runs one attempt in a sandbox inside of the batch job's own
limits, and tells the controller, if the attempt is still its own then. No Snakemake is loaded and no Snakefile is read:
the command was rendered by the controller. (For rules with Python in them, that command is an inner ``snakemake``.)
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

from .. import fence
from ..errors import ForgeError
from ..files import fitted
from ..model import DEFAULT_IO_WEIGHT, Host, LaunchSpec, Outcome, Priority, Verdict
from ..plan import check_requirement, isolation, with_gpus
from ..publish import remove_outputs
from ..sandbox import gpus as gpu_nodes
from ..sandbox import step_cgroup, syscalls
from ..sandbox.cgroup import RunCgroup
from ..sandbox.directories import remove_if_empty
from ..sandbox.enter import mechanisms, prepare
from ..sandbox.inside import Standby
from ..sandbox.mounts import mount_points
from ..sandbox.probe import host_memory_bytes, open_run_cgroup, try_namespaces
from ..sandbox.scratch import Slots, hold, remove_abandoned
from ..sandbox.soft import SoftRun
from ..sandbox.weights import io_division
from ..supervisor import Tools, supervise
from . import launcher
from .handover import (
    COPY_NAME,
    NODE_PROCESS,
    Launch,
    copy_directory,
    copy_name,
    read_launch,
    write_result,
    write_terminated,
)
from .launcher import Command
from .node_judge import TERMINATED, amend, needs_state
from .unstarted import refused

SLURM_CGROUP = "slurm-cgroup"
"""What the record calls it where Slurm's own cgroup limits a job, and Forge cannot make one below it."""

_EXIT_FORGE = 1  # the batch job failed: there is no result


def main() -> None:
    """The whole life of the process."""
    begin = time.monotonic()
    attempt = os.path.abspath(sys.argv[1])
    signals = Signals()
    try:
        launch = read_launch(attempt)
        mine = fence.claim(attempt, f"Slurm job {os.environ.get('SLURM_JOB_ID')} on {socket.gethostname()}")
        if mine is None:
            print(f"Nothing to do: {attempt} is taken ({fence.holder(attempt)}).", file=sys.stderr)
            return
        Node(launch, mine, signals, begin).run()
    except (ForgeError, OSError) as error:
        print(f"Forge: {error}", file=sys.stderr)
        sys.exit(_EXIT_FORGE)


class Signals:
    """SIGTERM as an order to end the attempt: :class:`..watch.Control`. Slurm's SIGKILL follows by itself."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._ours, self._theirs = ours, theirs
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def fileno(self) -> int:
        """See :class:`..watch.Control`."""
        return self._ours.fileno()

    def early(self) -> tuple[str, bool] | None:
        """See :class:`..watch.Control`. A signal makes the descriptor readable, whenever it comes."""
        return None

    def order(self) -> tuple[str, bool] | None:
        """See :class:`..watch.Control`."""
        with suppress(BlockingIOError):
            if signal.SIGTERM in self._ours.recv(64):
                return TERMINATED, True
        return None

    def abandoned(self) -> bool:
        """See :class:`..watch.Control`. Slurm runs the job, whatever becomes of Snakemake."""
        return False

    def let_go(self) -> None:
        """See :class:`..watch.Control`: never."""


class Node:
    """One copy of one attempt."""

    def __init__(self, launch: Launch, mine: fence.Claim, signals: Signals, begin: float) -> None:
        self._launch = launch
        self._mine = mine
        self._signals = signals
        self._begin = begin
        self._spec = own_spec(launch.spec, os.path.basename(os.path.dirname(launch.state)), mine)

    def run(self) -> None:
        """From the probe to the result.

        Raises:
            ForgeError, OSError: if there is no result.

        """
        before = step_cgroup.look()
        try:
            tools = self._prepare()
        except (ForgeError, OSError) as error:
            self._report(refused(self._spec, f"{error} (node {socket.gethostname()})"))
            return
        _silence()
        payload = with_scratch(self._launch.payload, self._launch.rendered_scratch)

        def settle(verdict: Verdict) -> Verdict:
            elapsed = time.monotonic() - self._begin
            amended = amend(verdict, self._spec, step_cgroup.since(before), elapsed)
            return self._settle(replace(amended, in_place=self._in_place))

        if self._in_place:
            remove_outputs(self._launch.spec.files.targets)  # as Snakemake does, where nothing is staged
        supervise(self._spec, payload, replace(tools, settle=settle), self._report)
        tools.standby.close()
        if tools.group is not None:
            tools.group.remove()
        remove_if_empty(self._spec.scratch_base)

    @property
    def _in_place(self) -> bool:
        """Whether this node cannot stage what was to be staged."""
        return self._launch.spec.files.staged and not self._spec.files.staged

    def _settle(self, verdict: Verdict) -> Verdict:
        """Right before publishing: take the attempt, if this copy is the one that may.

        Not where Slurm has asked it to end: after a preemption it runs the job again, and that copy is to find the
        attempt free. Only logs are published then.

        Raises:
            OSError: if that cannot be found out.

        """
        if fence.is_current(self._mine) if needs_state(verdict) else fence.take(self._mine):
            return verdict
        newer = fence.latest(self._mine.directory) > self._mine.number
        why = "a later copy of this attempt has been started" if newer else str(fence.holder(self._mine.directory))
        print(f"Forge: nothing is published: {why}; the verdict here was: {verdict.reason}", file=sys.stderr)
        words = f"lost: this copy may not publish what it has written: {why}; by itself it was: {verdict.reason}"
        return replace(verdict, outcome=Outcome.LOST, reason=words, remedy="")

    def _report(self, verdict: Verdict) -> None:
        """Tell the controller, if this copy is the one that may."""
        if needs_state(verdict):  # scancel, or a preemption after which Slurm runs the job again: Slurm knows
            write_terminated(self._mine.directory, self._mine.number, verdict)
        elif fence.take(self._mine):
            write_result(self._launch.state, self._mine.directory, verdict)

    def _prepare(self) -> Tools:
        """Find out what this node gives, check that it is enough, and make what a supervisor needs."""
        launch, name = self._launch, f"forge-{os.path.basename(self._spec.job_dir)}-{self._mine.token[-8:]}"
        os.chdir(self._spec.workdir)
        namespaces = try_namespaces(os.path.basename(self._spec.scratch_base), self._spec.workdir)
        memory = host_memory_bytes()
        limits = self._spec.limits  # the run is this one job: what it asks for is asked for the run
        priority = Priority(limits.nice, limits.io_weight, limits.io_weight != DEFAULT_IO_WEIGHT)
        cgroup, tried = open_run_cgroup(name, memory, launch.run_pids, priority)
        group: RunCgroup = cgroup or SoftRun(memory, namespaced=namespaces.kind != "none")
        refusals = "; ".join(f"{rung.name}: {rung.refusal}" for rung in tried if rung.refusal)
        devices = gpu_nodes.find(launch.gpus, os.environ) if _wants_gpus(self._spec) else ()
        around = step_cgroup.look()
        limited = around is not None and around.memory_limit_bytes is not None
        cpus = len(os.sched_getaffinity(0))
        version, missing = group.version, group.missing
        if cgroup is None and limited:  # Slurm's own does it, and there is no run beside this one job
            version, missing = SLURM_CGROUP, () if cpus <= self._spec.limits.cpus else ("cpu",)
        io = io_division(group.io_place)
        host = Host(
            run_memory_bytes=memory,
            cpus=cpus,
            cgroup=version,
            cgroup_note=group.place if cgroup else f"no cgroup can be made: {refusals}",
            namespaces=namespaces.kind,
            namespaces_note=namespaces.refusal,
            mechanisms=mechanisms(namespaces.kind) + ((SLURM_CGROUP,) if limited else ()),
            gpus=devices,
            layers_note=namespaces.layers_refusal,
            layers_apart=namespaces.layers_apart,
            home_layer=namespaces.home_layer,
            not_enforced=missing,
            io_weight_note=io.refusal,
            io_devices=io.devices,
        )
        self._spec = enclosed(self._spec, host, mount_points(), _home())
        check_requirement(launch.require, host, limits.io_weight)
        hold(self._spec.scratch_base)
        if gone := remove_abandoned(os.path.dirname(self._spec.scratch_base), COPY_NAME):
            print(f"Forge: removed what copies of jobs that were killed on this node have left: {', '.join(gone)}")
        base = prepare(namespaces.kind, devices)
        slots = Slots(base.private)
        standby = Standby(base, execute, slots, as_init=True)
        beside = None if cgroup else namespaces.processes_beside
        syscalls.set_process_name(NODE_PROCESS)
        return Tools(group, slots, standby, self._signals, beside)


def own_spec(spec: LaunchSpec, run_id: str, mine: fence.Claim) -> LaunchSpec:
    """The same with the directories of this copy: a scratch that exists here, a record that no other copy writes to."""
    base = os.path.dirname(spec.scratch_base)
    if not os.access(base, os.W_OK | os.X_OK):  # a directory of the submitting host
        base = tempfile.gettempdir()
    job_dir = copy_directory(spec.job_dir, mine.number)
    environment = {**spec.environment, "FORGE_JOB_DIR": job_dir}
    # One base for each copy, and with it the names of its layers: process ids, which tell them apart, are those of one
    # node.
    scratch_base = f"{base}/{copy_name(run_id, mine.directory, mine.number)}"
    exposed = tuple(path for path in spec.exposed if os.path.exists(path))
    return replace(spec, job_dir=job_dir, environment=environment, scratch_base=scratch_base, exposed=exposed)


def enclosed(spec: LaunchSpec, host: Host, mounts: Iterable[str], home: str | None) -> LaunchSpec:
    """The same with the isolation and the file policy that this node gives, and its GPUs.

    Args:
        mounts: where anything is mounted here.
        home: $HOME, if it is there.

    """
    files = fitted(spec.files, host, mounts, home)
    reduced = files.policy is not spec.files.policy or "files" in spec.isolation.not_enforced
    given = isolation(host, spec.network, files, reduced=reduced, io_weight=spec.limits.io_weight)
    spec = replace(spec, files=files, isolation=given)
    return with_gpus(spec, host.gpus) if host.gpus else spec


def _home() -> str | None:
    home = os.path.realpath(os.path.expanduser("~"))
    return home if os.path.isdir(home) else None


def with_scratch(payload: bytes, rendered_scratch: str) -> bytes:
    """The command for the scratch that it will have: it was rendered with a name that stands for it."""
    command: Command = pickle.loads(payload)
    return pickle.dumps((command, rendered_scratch))


def execute(payload: bytes, environment: Mapping[str, str], scratch: str) -> dict[str, object]:
    """In the job: put the real scratch into the command, and start it."""
    command, rendered = pickle.loads(payload)
    place = environment["TMPDIR"]  # ``scratch`` is its name from before the job had it
    command = replace(
        command,
        arguments=tuple(argument.replace(rendered, place) for argument in command.arguments),
        changed={name: value.replace(rendered, place) for name, value in command.changed.items()},
    )
    return launcher.execute(pickle.dumps(command), environment, scratch)


def _wants_gpus(spec: LaunchSpec) -> bool:
    return any(spec.resources.get(key) for key in ("gpu", "gpus", "gpu_model", "gres"))


def _silence() -> None:
    """The streams of the job are in its record; the batch job's own output is for what goes wrong with Forge."""
    kept = os.dup(2)
    sys.stderr = open(kept, "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    null = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(null, fd)
    os.close(null)


if __name__ == "__main__":
    main()
