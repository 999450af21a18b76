"""The calls to Slurm's commands, and nothing else: each says what it was told, or that nobody answered."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import HostError, UsageError
from .slurm_text import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    ClusterFacts,
    Row,
    is_outage,
    parse_config,
    parse_sacct,
    parse_squeue,
    parse_submission,
    refusal,
)
from .slurm_usage import USAGE_FORMAT, USAGE_TIME_FORMAT, Used, parse_usage

_SECONDS = 60.0  # Slurm's own patience (MessageTimeout) is shorter, mostly 10 s


class Unanswered(Exception):  # noqa: N818 - it is the name of what happened
    """The controller did not answer: nothing is known, neither good nor bad."""


@dataclass(frozen=True, slots=True)
class _Answer:
    code: int
    out: str
    err: str


class SlurmClient:
    """One cluster, as the commands in PATH and SLURM_CONF say. Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def facts(self) -> ClusterFacts:
        """What cluster this is.

        Raises:
            HostError: if there is none.

        """
        conf = os.environ.get("SLURM_CONF")
        if conf and not os.path.exists(conf):  # the commands themselves wait a minute for it
            raise HostError(f"--forge-backend=slurm: SLURM_CONF={conf}: there is no such file.")
        try:
            answer = self._run("scontrol", "show", "config")
        except Unanswered as error:
            raise HostError(f"--forge-backend=slurm: {error}. Is slurmctld up? Try: scontrol ping") from error
        found = parse_config(answer.out)
        if found is None:
            raise HostError(
                f"--forge-backend=slurm: scontrol show config gave no configuration: {answer.err.strip() or answer.out}"
            )
        return found

    def submit(self, arguments: Sequence[str], script: str) -> str:
        """Submit a batch script; its id.

        Raises:
            UsageError: Slurm's reason why it does not take it.
            Unanswered: it may have been taken or not.

        """
        answer = self._run("sbatch", "--parsable", *arguments, text=script)
        if answer.code != 0:
            raise UsageError(f"Slurm refused it: {refusal(answer.err)}")
        number = parse_submission(answer.out)
        if number is None:
            raise Unanswered(f"sbatch printed no job id but {answer.out.strip()!r}")
        return number

    def queue(self) -> list[Row]:
        """All of this user's jobs that the controller remembers.

        Raises:
            Unanswered: nothing is known.

        """
        command = ("squeue", "--me", "--noheader", "--array", "--states=all", f"--format={SQUEUE_FORMAT}")
        answer = self._run(*command)
        if answer.code != 0 or "error:" in answer.err:  # some errors leave its exit status at 0
            raise Unanswered(f"squeue failed: {answer.err.strip()}")
        return parse_squeue(answer.out)

    def history(self, ids: Iterable[str]) -> list[Row]:
        """What the accounting knows of jobs that the controller has forgotten; it may lag by some seconds.

        Raises:
            Unanswered: nothing is known.

        """
        command = ("sacct", "--parsable2", "--noheader", "--allocations", "--duplicates")
        answer = self._run(*command, f"--format={SACCT_FORMAT}", f"--jobs={','.join(ids)}")
        if answer.code != 0:
            raise Unanswered(f"sacct failed: {answer.err.strip()}")
        return parse_sacct(answer.out)

    def used(self, ids: Iterable[str]) -> dict[str, Used]:
        """What jobs have used, by their ids; those of which the accounting knows nothing (yet) are left out.

        Raises:
            Unanswered: nothing is known.

        """
        command = ("sacct", "--parsable2", "--noheader", "--duplicates", f"--format={USAGE_FORMAT}")
        answer = self._run(*command, f"--jobs={','.join(ids)}", more={"SLURM_TIME_FORMAT": USAGE_TIME_FORMAT})
        if answer.code != 0:
            raise Unanswered(f"sacct failed: {answer.err.strip()}")
        return parse_usage(answer.out)

    def cancel(self, ids: Iterable[str]) -> None:
        """End jobs: TERM, and KILL after the KillWait of the cluster.

        Raises:
            Unanswered: it may have been heard or not.

        """
        answer = self._run("scancel", *ids)
        if answer.code != 0 and is_outage(answer.err):
            raise Unanswered(f"scancel failed: {answer.err.strip()}")

    def _run(self, *command: str, text: str = "", more: Mapping[str, str] | None = None) -> _Answer:
        self.calls += 1
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False,
                                  errors="replace", env={**_environment(), **(more or {})})  # fmt: skip
        except FileNotFoundError:
            raise HostError(
                f"--forge-backend=slurm: there is no {command[0]} in PATH. Start Snakemake on a host of the cluster "
                "from which jobs are submitted, or leave --forge-backend out to run them on this host."
            ) from None
        except subprocess.TimeoutExpired:
            raise Unanswered(f"{command[0]} did not come back within {_SECONDS:.0f} s") from None
        answer = _Answer(done.returncode, done.stdout, done.stderr)
        if answer.code != 0 and is_outage(answer.err + answer.out):
            raise Unanswered(f"Slurm's controller does not answer: {refusal(answer.err)}")
        return answer


def _environment() -> dict[str, str]:
    """Without what changes the commands' output or what they do: sbatch(1), INPUT ENVIRONMENT VARIABLES.

    Snakemake may itself run in a job of Slurm, whose variables would become those of its own jobs.
    """
    kept = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
    dropped = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SLURMD_")
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(dropped)}
