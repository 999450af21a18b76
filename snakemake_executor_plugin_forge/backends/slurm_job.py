"""One attempt in Slurm: what is known of it, how it is handed over, and what is said of it if it left no verdict."""

from __future__ import annotations

import os
import pickle
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, replace

from .. import fence
from ..model import Done, LaunchSpec, Outcome, Verdict
from ..record.jobdir import write_verdict
from ..sandbox.scratch import seen_path
from . import handover
from .node_judge import TERMINATED, memory_scope, reconcile
from .services import Services
from .slurm_copies import clear_copies, wrote_in_place
from .slurm_pace import RESULT_SECONDS
from .slurm_states import TABLE, Fate, SlurmState
from .slurm_text import Row
from .slurm_usage import Used
from .unstarted import ended

_OUTPUT_BYTES = 2000


@dataclass(slots=True)
class Job:
    """One attempt, as the backend sees it."""

    spec: LaunchSpec
    payload: bytes
    done: Done
    shape: tuple[str, ...]
    since: float  # when it began to wait to be submitted
    attempt: str = ""  # its directory, once it was submitted
    name: str = ""  # of its batch in Slurm
    batch: str = ""
    index: int = 0
    slurm_id: str = ""
    submissions: int = 0
    row: Row | None = None
    quiet_since: float = 0.0  # since when it has been ended, or unknown to a controller that answers
    cancelled: str | None = None  # why

    @property
    def unsent(self) -> bool:
        """Whether it is still to be submitted."""
        return not self.attempt and self.cancelled is None

    @property
    def result(self) -> tuple[str, str]:
        """Where its result will be: state directory and file."""
        return handover.state_of(self.attempt), handover.result_name(self.attempt)

    def note(self, row: Row | None, now: float) -> bool:
        """Remember what a query saw of it; True if it is news."""
        before, self.row = self.row, row
        news = (before is None) != (row is None) or (
            row is not None and before is not None and (row.state, row.job_id) != (before.state, before.job_id)
        )
        if news:
            self.quiet_since = now
        if row is not None:
            self.slurm_id = row.job_id
        return news

    def is_held(self) -> bool:
        """Whether it waits for somebody to release it."""
        row = self.row
        if row is None or row.state is None:
            return False
        return TABLE[row.state].fate is Fate.HELD or (row.state == "PENDING" and "Held" in row.reason)

    def was_terminated(self) -> bool:
        """Whether its newest copy has left word that Slurm has ended it."""
        return bool(self.attempt) and handover.terminated(self.attempt) is not None

    def may_still_speak(self) -> bool:
        """Whether a copy of it has run, or may have."""
        return fence.latest(self.attempt) > 0 and not self.was_terminated()


def batch_name(run_id: str, batch: str) -> str:
    """Unique in a cluster for all time: an id may be given twice, after a crash of the controller."""
    return f"forge-{run_id}.{batch}"


def hand_over(job: Job, services: Services, state: str, batch: str, index: int) -> None:
    """Write what the node needs.

    Raises:
        ForgeError, OSError: if that is impossible; the job is as it was.

    """
    scratch = seen_path(job.spec.name)
    config = services.config
    attempt = handover.attempt_directory(state, batch, index)
    command, how = services.to_command(job.payload, scratch)
    spec = replace(job.spec, how=how)
    launch = handover.Launch(
        spec, pickle.dumps(command), scratch, config.require, config.run_pids, config.gpus, state
    )
    handover.write_launch(attempt, launch)
    job.spec, job.batch, job.index, job.attempt = spec, batch, index, attempt
    job.name = batch_name(services.run_id, batch)


def own_arguments(name: str, state: str, jobs: list[Job], *, is_array: bool) -> list[str]:
    """What Forge tells sbatch about a batch, beside what its jobs need."""
    batch = jobs[0].batch
    rules = ",".join(sorted({job.spec.rule for job in jobs}))
    output = "%a/batch-%A_%a.out" if is_array else "0/batch-%j.out"
    return [
        f"--job-name={name}",
        f"--comment=forge {rules}",
        f"--chdir={jobs[0].spec.workdir}",
        f"--output={state}/{batch}/{output}",
        "--open-mode=append",
        "--requeue",
        "--export=ALL",
        *([f"--array={_ranges([job.index for job in jobs])}"] if is_array else []),
    ]


def _ranges(numbers: list[int]) -> str:
    """Indexes of an array: "0-99", or "0,2,3" if some are left out."""
    whole = numbers == list(range(len(numbers)))
    return f"0-{len(numbers) - 1}" if whole else ",".join(map(str, numbers))


def script(state: str, batch: str) -> str:
    """The batch script."""
    package = __name__.split(".", maxsplit=1)[0]
    attempt = shlex.quote(f"{state}/{batch}") + '/"${SLURM_ARRAY_TASK_ID:-0}"'
    return f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {package}.backends.node {attempt}\n"


def verdict_without_result(job: Job, row: Row | None, used: Used | None = None) -> Verdict:
    """Conclude on a job that is over, is given up, and has left no result: recorded, too.

    Args:
        job: a submitted one.
        row: what Slurm says of it; None if it does not know it.
        used: what its accounting says; None if there is none, or it knows nothing.

    """
    spec = replace(job.spec, job_dir=handover.copy_directory(job.spec.job_dir, max(1, fence.latest(job.attempt))))
    problem = ""
    try:
        published = clear_copies(job.spec, job.attempt)
    except OSError as error:
        published, problem = [], f"what it had begun to publish is not whole: {error}; the next run tries it again"
    verdict = replace(_verdict(job, spec, row, used), in_place=wrote_in_place(job.spec, job.attempt))
    if problem:
        return replace(verdict, notes=(*verdict.notes, problem))
    if not published:
        return verdict
    note = f"it was ended while it published its outputs, and all of them are in their places: {', '.join(published)}"
    return replace(verdict, notes=(*verdict.notes, note))


def _verdict(job: Job, spec: LaunchSpec, row: Row | None, used: Used | None) -> Verdict:
    told = handover.terminated(job.attempt)
    state = row.state if row is not None else None
    if told is not None:
        verdict = replace(told, reason=told.reason.replace(TERMINATED, job.cancelled)) if job.cancelled else told
        verdict = reconcile(verdict, state)
        with suppress(OSError):
            write_verdict(spec, verdict)
        return verdict
    if job.cancelled is not None and (state is None or TABLE[state].outcome is Outcome.CANCELLED):
        return ended(spec, Outcome.CANCELLED, f"cancelled: {job.cancelled}", "", {"by": job.cancelled})
    if row is None or state is None:
        words = f"lost: Slurm does not know job {job.slurm_id} any more, and it has left no verdict"
        return ended(spec, Outcome.LOST, words, "run it again", {})
    meaning = TABLE[state]
    words = f"{meaning.outcome}: Slurm: {meaning.words} ({state}, job {job.slurm_id}){_output(job.attempt)}"
    facts: dict[str, object] = {"slurm_state": str(state), "slurm_job": job.slurm_id, "nodes": row.nodes}
    if meaning.outcome is Outcome.OOM:
        facts |= {"scope": memory_scope(spec), "where": "the Slurm job", "limit_bytes": spec.limits.memory_bytes}
    return ended(spec, meaning.outcome or Outcome.LOST, words, meaning.remedy, facts, used)


def never_began(job: Job, row: Row, now: float) -> bool:
    """Whether Slurm takes a job for done of which not even the batch script was started: seen with Slurm 22.05.

    A script that ran and failed has left a file for its output, which Slurm opens first.
    """
    if row.state is not SlurmState.COMPLETED or now - job.quiet_since < RESULT_SECONDS:
        return False
    return fence.latest(job.attempt) == 0 and not _outputs(job.attempt)


def _outputs(attempt: str) -> list[str]:
    """Names of the files with what its batch scripts said."""
    try:
        return [name for name in os.listdir(attempt) if name.startswith("batch-")]
    except OSError:
        return []


def _output(attempt: str) -> str:
    """The last line of what the batch script said, and where the rest is."""
    try:
        (name,) = _outputs(attempt)
        with open(f"{attempt}/{name}", encoding="utf-8", errors="replace") as file:
            lines = file.read()[-_OUTPUT_BYTES:].strip().splitlines()
    except (OSError, ValueError):
        return ""
    return f"; the batch script said: {lines[-1].strip()} ({attempt}/{name})" if lines else ""
