"""The node's part: a batch job runs ``python -m snakemake_executor_plugin_forge.backends.slurm.node ATTEMPT``.

It claims the attempt, probes the node, runs the attempt in a sandbox within the limits of the batch job, and tells the
controller, if the attempt is still its own. It loads no Snakemake and reads no Snakefile: the controller has rendered
the command. (For rules with Python in them, that is an inner ``snakemake``.) node_state.py makes its decisions.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from ...sandbox import seccomp
from ...sandbox.cgroups import slurm_step
from ...sandbox.environment import withheld
from ...sandbox.filesystem.overlay import may_cover
from ...sandbox.probe import Namespaces, try_namespaces
from ...spec.errors import ForgeError
from ...spec.file_policy import fitted
from ...spec.host import POLLED, Host, check_requirement
from ...spec.job import LaunchSpec
from ...spec.plan import isolation, with_gpus
from ...spec.verdict import Verdict
from ...staging.publish import remove_outputs
from ...supervisor.supervisor import supervise
from . import exchange, fence, mpi, node_state
from .execution import with_scratch
from .node_setup import NodeSetup, Signals
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
    """Run one attempt as this process, which ends. Args: see :class:`Node`."""
    node = Node(namespaces)
    status = node.run(attempt, checksum)
    node.close()
    sys.exit(status)


class Node:
    """A process of a batch job: it runs attempts one after the other, while one preparation of the node serves all."""

    def __init__(self, namespaces: Namespaces | None = None, *, lasting: bool = False) -> None:
        """Begin.

        Args:
            namespaces: of this node, if they are known.
            lasting: whether there may be many attempts.
        """
        self.signals = Signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # who forks does so with it blocked
        self._begin = time.monotonic()
        self._namespaces, self._lasting = namespaces, lasting
        self._setup: NodeSetup | None = None
        self._failed = False

    @property
    def is_over(self) -> bool:
        """Whether this process can run no more attempts, though others may."""
        return self._failed or (self._setup is not None and not self._setup.lasting)

    def run(self, attempt: str, checksum: str) -> int | None:
        """Run an attempt.

        Args:
            attempt: its directory.
            checksum: of its launch.

        Returns:
            An exit status; None if another process has to run it.
        """
        try:
            launch = exchange.read_launch(attempt, checksum)
            if self._setup is not None and not self._setup.serves(launch):
                return None
            mine = fence.claim(attempt, f"Slurm job {os.environ.get('SLURM_JOB_ID')} on {socket.gethostname()}")
            if mine is None:
                print(f"Nothing to do: {attempt} is taken ({fence.holder(attempt)}).", file=sys.stderr)
                return 0
            self._failed = True  # unless all goes well: what is half done serves nobody
            self._failed = not self._attend(launch, mine)
        except (ForgeError, OSError) as error:
            print(f"Forge: {error}", file=sys.stderr)
            return _EXIT_FORGE
        return 0

    def _attend(self, launch: exchange.Launch, mine: fence.CopyClaim) -> bool:
        """Run a copy; False if the node could not be prepared for it, which is its verdict then."""
        run_id = os.path.basename(os.path.dirname(launch.state))
        spec = own_spec(launch.spec, run_id, mine, self._setup.scratch_base if self._setup is not None else None)
        copy = Copy(launch, mine, spec, self._begin)
        if self._setup is None:
            try:
                self._setup = NodeSetup(
                    launch, spec.scratch_base, self.signals, self._namespaces, lasting=self._lasting
                )
            except (ForgeError, OSError) as error:
                copy.refuse(error)
                return False
        copy.run(self._setup)
        return True

    def close(self) -> None:
        """Remove what all attempts have used."""
        if self._setup is not None:
            self._setup.close()


class Copy:
    """One copy of one attempt."""

    def __init__(self, launch: exchange.Launch, mine: fence.CopyClaim, spec: LaunchSpec, begin: float) -> None:
        """Begin.

        Args:
            spec: its own: see :func:`own_spec`.
            begin: when this process did: time.monotonic().
        """
        self._launch, self._mine, self._begin = launch, mine, begin
        self._state = node_state.CopyState()
        self._spec = mpi.fitted(spec, os.environ)

    def run(self, setup: NodeSetup) -> None:
        """Run the job and report.

        Raises:
            ForgeError, OSError: if there can be no result.
        """
        launch, before = self._launch, slurm_step.read_again(setup.around)
        try:
            host = within_slurm(setup.host, before, self._spec.limits.cpus, shares=launch.shares)
            self._spec = enclosed(self._spec, host, setup.points, setup.home_directory)
            check_requirement(launch.require, host, self._spec.limits.io_weight)
        except ForgeError as error:
            self.refuse(error)
            return
        shared = mpi.is_mpi(self._spec.resources)
        payload = with_scratch(launch.payload, launch.rendered_scratch, shared_tmp=shared)
        in_place = launch.spec.files.staged and not self._spec.files.staged

        def confirm(verdict: Verdict) -> Verdict:
            packed = exchange.part_of(self._mine.directory) is not None  # then Slurm's limit is that of all of them
            elapsed = 0.0 if packed else time.monotonic() - self._begin
            if not launch.shares:
                verdict = amend(verdict, self._spec, slurm_step.since(before), elapsed)
            noted = mpi.noted(verdict, self._spec, os.environ)
            return self._confirm(replace(noted, in_place=in_place))

        match self._decide(node_state.Prepared(in_place)):
            case node_state.Run(clear_outputs=True):
                remove_outputs(launch.spec.files.targets)
        supervise(self._spec, payload, setup.tools(confirm), self._report)

    def refuse(self, error: Exception) -> None:
        """Report that this node cannot run the job.

        Raises:
            OSError: see :meth:`_decide`.
        """
        self._report(refused(self._spec, f"{error} (node {socket.gethostname()})"))

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


def own_spec(spec: LaunchSpec, run_id: str, mine: fence.CopyClaim, scratch_base: str | None = None) -> LaunchSpec:
    """Give a copy its own directories: a scratch that exists on this node, and a record that no other copy writes.

    Args:
        scratch_base: of the copy that this process has run first; None: this is the first.
    """
    base = os.path.dirname(spec.scratch_base)
    if not os.access(base, os.W_OK | os.X_OK):  # a directory of the submitting host
        base = tempfile.gettempdir()
    job_dir = exchange.copy_directory(spec.job_dir, mine.number)
    environment = {**spec.environment, "FORGE_JOB_DIR": job_dir}
    # Layers are named after their copy, so that they are known to be its own: a process id is unique on one node only.
    copy = exchange.copy_name(run_id, mine.directory, mine.number)
    exposed = tuple(path for path in spec.exposed if os.path.exists(path))
    return replace(
        spec,
        job_dir=job_dir,
        environment=environment,
        scratch_base=scratch_base or f"{base}/{copy}",
        copy=copy,
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
