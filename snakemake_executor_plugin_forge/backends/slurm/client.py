"""The calls to Slurm's commands: each returns the answer, or raises that there was none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence

from ...record.identity import user_name
from ...spec.errors import HostError, UsageError
from .parse import (
    NODES_FORMAT,
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    USAGE_FORMAT,
    USAGE_TIME_FORMAT,
    ClusterFacts,
    QueueRow,
    Used,
    is_full,
    is_outage,
    parse_config,
    parse_nodes,
    parse_sacct,
    parse_squeue,
    parse_submission,
    parse_usage,
    refusal,
)

_SECONDS = 60.0  # Slurm's commands wait less for the controller (MessageTimeout), mostly 10 s


class Unanswered(Exception):  # noqa: N818 - it names what happened
    """The controller did not answer: Forge knows nothing, neither good nor bad."""


class Full(Exception):  # noqa: N818 - it names what happened
    """The queue takes no more jobs of this user for the moment."""


class SlurmClient:
    """The cluster of SLURM_CONF, by the commands in PATH."""

    def facts(self) -> ClusterFacts:
        """Ask for the configuration of the cluster.

        Raises:
            HostError: if there is no cluster.
        """
        conf = os.environ.get("SLURM_CONF")
        if conf and not os.path.exists(conf):  # Slurm's commands would wait a minute for it
            raise HostError(f"--forge-backend=slurm: SLURM_CONF={conf}: there is no such file.")
        try:
            answer = self._run("scontrol", "show", "config")
        except Unanswered as error:
            raise HostError(f"--forge-backend=slurm: {error}. Is slurmctld up? Try: scontrol ping") from error
        found = parse_config(answer.stdout)
        if found is None:
            said = answer.stderr.strip() or answer.stdout
            raise HostError(f"--forge-backend=slurm: scontrol show config gave no configuration: {said}")
        return found

    def submit(self, arguments: Sequence[str], script: str) -> str:
        """Submit a batch script and return the id of the job.

        Raises:
            UsageError: Slurm refuses the job, with its reason.
            Full: Slurm refuses it for the jobs that the user has in the queue already.
            Unanswered: Slurm may have taken the job or not.
        """
        answer = self._run("sbatch", "--parsable", *arguments, text=script)
        if answer.returncode != 0 and is_full(answer.stderr):
            raise Full(refusal(answer.stderr))
        if answer.returncode != 0:
            raise UsageError(f"Slurm refused it: {refusal(answer.stderr)}")
        number = parse_submission(answer.stdout)
        if number is None:
            raise Unanswered(f"sbatch printed no job id but {answer.stdout.strip()!r}")
        return number

    def queue(self) -> list[QueueRow]:
        """Ask for all jobs of this user that the controller remembers.

        Raises:
            Unanswered: the controller did not answer.
        """
        # --all: without it squeue(1) leaves out the jobs of ordinary users in hidden partitions
        command = ("squeue", "--me", "--all", "--noheader", "--array", "--states=all", f"--format={SQUEUE_FORMAT}")
        answer = self._run(*command)
        if answer.returncode != 0 or "error:" in answer.stderr:  # some errors leave its exit status at 0
            raise Unanswered(f"squeue failed: {answer.stderr.strip()}")
        return parse_squeue(answer.stdout)

    def history(self, ids: Iterable[str]) -> list[QueueRow]:
        """Ask the accounting, which may lag by some seconds, for jobs that the controller has forgotten.

        Raises:
            Unanswered: the accounting did not answer.
        """
        return parse_sacct(self._sacct("--allocations", f"--format={SACCT_FORMAT}", f"--jobs={_whole(ids)}"))

    def used(self, ids: Iterable[str]) -> dict[str, Used]:
        """Ask the accounting what jobs have used, by their ids; it leaves out jobs that it does not know (yet).

        Raises:
            Unanswered: the accounting did not answer.
        """
        return parse_usage(self._sacct(f"--format={USAGE_FORMAT}", f"--jobs={_whole(ids)}"))

    def _sacct(self, *arguments: str) -> str:
        answer = self._run("sacct", "--parsable2", "--noheader", "--duplicates", *arguments)
        if answer.returncode != 0:
            raise Unanswered(f"sacct failed: {answer.stderr.strip()}")
        return answer.stdout

    def node_count(self) -> int:
        """Ask how many nodes the cluster has.

        Raises:
            Unanswered: the controller did not answer.
        """
        answer = self._run("sinfo", "--noheader", "--Node", "--format=%N")
        return len(set(answer.stdout.split()))

    def partitions(self) -> dict[str, dict[str, object]]:
        """Ask for the limits of each partition, as ``--forge-slurm-partitions`` reads them.

        Raises:
            HostError: if there is no cluster, or it does not answer.
        """
        try:
            answer = self._run("sinfo", "--noheader", "--Node", f"--format={NODES_FORMAT}")
        except Unanswered as error:
            raise HostError(f"{error}. Is slurmctld up? Try: scontrol ping") from error
        if answer.returncode != 0:
            raise HostError(f"sinfo failed: {answer.stderr.strip()}")
        return parse_nodes(answer.stdout)

    def account(self) -> str:
        """Ask for the account that this user's newest job used, or else the user's default; "" if there is neither.

        Raises:
            Unanswered: the accounting did not answer.
        """
        user = user_name()
        rows = self._sacct("--allocations", f"--user={user}", "--format=Account", "--starttime=now-30days").split()
        if rows:
            return rows[-1]
        answer = self._run("sacctmgr", "--noheader", "--parsable2", "show", "user", user, "format=DefaultAccount")
        return answer.stdout.strip() if answer.returncode == 0 else ""

    def cancel(self, ids: Iterable[str]) -> None:
        """End jobs: Slurm sends SIGTERM, and SIGKILL after the KillWait of the cluster.

        Raises:
            Unanswered: Slurm may have heard it or not.
        """
        answer = self._run("scancel", *ids)
        if answer.returncode != 0 and is_outage(answer.stderr):
            raise Unanswered(f"scancel failed: {answer.stderr.strip()}")

    def _run(self, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        environment = _environment()
        if command[0] == "sacct":  # and no other command: sbatch would hand it to the job
            environment["SLURM_TIME_FORMAT"] = USAGE_TIME_FORMAT
        try:
            answer = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False,
                                  errors="replace", env=environment)  # fmt: skip
        except FileNotFoundError:
            raise HostError(
                f"--forge-backend=slurm: there is no {command[0]} in PATH. Start Snakemake on a host of the cluster "
                "from which jobs are submitted, or leave --forge-backend out to run them on this host."
            ) from None
        except subprocess.TimeoutExpired as error:
            if command[0] == "sbatch" and is_full(said := (error.stderr or b"").decode(errors="replace")):
                raise Full(refusal(said)) from None  # sbatch itself tries again for two minutes
            raise Unanswered(f"{command[0]} did not come back within {_SECONDS:.0f} s") from None
        if answer.returncode != 0 and is_outage(answer.stderr + answer.stdout):
            raise Unanswered(f"Slurm's controller does not answer: {refusal(answer.stderr)}")
        return answer


def _whole(ids: Iterable[str]) -> str:
    """Return a list of ids with whole arrays for their tasks: execve(2) takes 128 KiB in one argument."""
    return ",".join(dict.fromkeys(one.partition("_")[0] for one in ids))


def _environment() -> dict[str, str]:
    """This process's environment without variables that change what the commands do or print.

    Snakemake may itself run in a Slurm job, whose variables its own jobs would inherit. Source: sbatch(1), INPUT
    ENVIRONMENT VARIABLES.
    """
    kept = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
    dropped = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SLURMD_")
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(dropped)}
