"""One attempt in Slurm: its state in the controller, its hand-over to a node, and its verdict if it left none."""

from __future__ import annotations

import os
import pickle
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace

from ...kernel.imports import own_command
from ...record.attempt_dir import write_verdict
from ...sandbox.filesystem.scratch import seen_path
from ...spec import words
from ...spec.backend import Done
from ...spec.job import LaunchSpec
from ...spec.job_group import JobGroup
from ...spec.paths import run_name
from ...spec.printable import printable
from ...spec.slurm import SlurmSettings
from ...spec.verdict import Cause, Order, Outcome, Verdict
from ..registry import Services
from . import exchange, fence
from .copies import clear_copies, wrote_in_place
from .parse import QueueRow, Used
from .polling import Traces
from .states import TABLE
from .verdicts import ended, ended_by_controller, memory_scope, needs_state, reconcile

_OUTPUT_BYTES = 2000
_COMMENT_CHARACTERS = 200


@dataclass(slots=True)
class Job:
    """One attempt, as the controller knows it."""

    spec: LaunchSpec
    payload: bytes
    done: Done
    shape: tuple[str, ...]
    since: float  # when it began to wait to be submitted
    attempt: str = ""  # its directory, once it was submitted
    name: str = ""  # of its batch in Slurm
    batch: str = ""
    index: int = 0
    part: int | None = None  # its position in a pack: packing.py; None: its batch has no packs
    packed: bool = False  # it shares its Slurm job with others
    checksum: str = ""  # of its launch
    slurm_id: str = ""
    submissions: int = 0
    row: QueueRow | None = None
    same_since: float = 0.0  # when a query saw it first as the newest one did; or when the controller answered again
    cancelled: Order | None = None
    alone: bool = False  # it shares no Slurm job, or none any more
    group: JobGroup | None = None
    group_shape: tuple[str, ...] = ()  # the arguments of sbatch for all of its group

    @property
    def grouped(self) -> JobGroup | None:
        """The group in whose Slurm job it is to run."""
        return None if self.alone else self.group

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of sbatch for the Slurm job in which it is to run."""
        return self.shape if self.grouped is None else self.group_shape

    @property
    def kind(self) -> tuple[str, ...]:
        """Jobs of one kind can be submitted with one call of sbatch."""
        return self.arguments if self.grouped is None else ("group", *self.arguments)

    @property
    def unsent(self) -> bool:
        """Whether the controller still has to submit it."""
        return not self.attempt and self.cancelled is None

    @property
    def result(self) -> tuple[str, str]:
        """The place of its result: state directory and file."""
        return exchange.state_of(self.attempt), exchange.result_name(self.attempt)

    def note(self, row: QueueRow | None, now: float) -> bool:
        """Remember the row that a query returned for it. Return whether that is news."""
        before, self.row = self.row, row
        news = (before and (before.state, before.job_id)) != (row and (row.state, row.job_id))
        if news:
            self.same_since = now
        if row is not None:
            self.slurm_id = row.job_id
        return news

    def traces(self) -> Traces:
        """See what the job has left in its attempt directory."""
        terminated = exchange.terminated(self.attempt) is not None
        output = bool(_outputs(self.attempt))
        return Traces(fence.latest(self.attempt), terminated, output, packed=self.packed)


def batch_name(run_id: str, batch: str) -> str:
    """Return a name that stays unique in a cluster. An id does not: a controller that crashed may give it twice."""
    return f"{run_name(run_id)}.{batch}"


def hand_over(job: Job, services: Services, state: str, batch: str, index: int, part: int | None) -> None:
    """Write the files that the node needs.

    Args:
        index: of the Slurm job in its array.
        part: the position of the attempt in its pack; None: there is no pack.

    Raises:
        ForgeError, OSError: if that is impossible; the job is unchanged.
    """
    scratch = seen_path(job.spec.name)
    config = services.config
    attempt = exchange.attempt_directory(state, batch, index, part)
    command, how = services.to_command(job.payload, scratch)
    spec = replace(job.spec, how=how)
    launch = exchange.Launch(spec, pickle.dumps(command), scratch, config.require, config.run_pids, config.gpus, state,
                             shares=job.grouped is not None)  # fmt: skip
    job.checksum = exchange.write_launch(attempt, launch)
    job.spec, job.batch, job.index, job.part, job.attempt = spec, batch, index, part, attempt
    job.packed = part is not None
    job.name = batch_name(services.run_id, batch)


def own_arguments(name: str, state: str, jobs: list[Job], settings: SlurmSettings, *, is_array: bool) -> list[str]:
    """Return the options of sbatch for a batch, beside those for the resources of its jobs."""
    place = ("%a" if is_array else "0") + ("" if jobs[0].part is None else ".0")
    directory = f"{state}/{jobs[0].batch}".replace("%", "%%")  # sbatch(1), FILENAME PATTERN
    return [
        f"--job-name={settings.job_prefix}{name}",
        f"--comment={_comment(jobs)}",
        f"--chdir={jobs[0].spec.workdir}",
        f"--output={directory}/{place}/{'batch-%A_%a.out' if is_array else 'batch-%j.out'}",
        "--open-mode=append",
        "--requeue" if settings.requeue and not is_streamed(jobs) else "--no-requeue",
        "--export=ALL",
        *([f"--array={_ranges(sorted({job.index for job in jobs}))}"] if is_array else []),
    ]


def is_streamed(jobs: list[Job]) -> bool:
    """Return whether pipes connect some of these jobs: what has gone through one is gone."""
    return any(job.spec.together and job.grouped is not None for job in jobs)


def has_begun(job: Job) -> bool:
    """Return whether a copy of any attempt has begun in the Slurm job of one, also of those that have ended since."""
    directory, place = os.path.split(job.attempt)
    index = place.partition(".")[0]
    places = [name for name in os.listdir(directory) if name.partition(".")[0] == index]
    return any(fence.latest(f"{directory}/{name}") > 0 for name in places)


def _comment(jobs: list[Job]) -> str:
    """Return what ``squeue -o %k`` shows: groups, rules and wildcards, shortened."""
    each = [" ".join((job.spec.rule, *(f"{k}={v}" for k, v in job.spec.wildcards.items()))) for job in jobs]
    groups = ", ".join(dict.fromkeys(job.grouped.name for job in jobs if job.grouped is not None))
    text = printable(f"forge {f'group {groups}: ' if groups else ''}{'; '.join(each)}")
    count = f" … ({len(jobs)} jobs)"
    return text if len(text) <= _COMMENT_CHARACTERS else text[: _COMMENT_CHARACTERS - len(count)] + count


def _ranges(numbers: list[int]) -> str:
    """Return the indexes of an array: "0-99", or "0,2,3" if some are missing."""
    whole = numbers == list(range(len(numbers)))
    return f"0-{len(numbers) - 1}" if whole else ",".join(map(str, numbers))


def script(state: str, jobs: list[Job]) -> str:
    """Return the batch script of a batch."""
    packed = jobs[0].part is not None
    command = shlex.join(own_command(f"{__package__}.{'pack' if packed else 'node'}"))
    directory = shlex.quote(f"{state}/{jobs[0].batch}")
    orders: dict[int, list[str]] = {}
    for job in jobs:
        place = os.path.basename(job.attempt)
        orders.setdefault(job.index, []).append(f"{place} {job.checksum}" if packed else f'"$index" {job.checksum}')
    cases = "".join(f"  {index}) set -- {' '.join(orders[index])} ;;\n" for index in sorted(orders))
    run = f'{command} {directory} "$@"' if packed else f'{command} {directory}/"$1" "$2"'
    return f'#!/bin/sh\nindex="${{SLURM_ARRAY_TASK_ID:-0}}"\nset --\ncase "$index" in\n{cases}esac\nexec {run}\n'


def verdict_without_result(job: Job, row: QueueRow | None, used: Used | None = None) -> Verdict:
    """Return and record the verdict on a job that ended without a result, after the fence closed it.

    Args:
        job: a submitted job.
        row: its row in the queue; None if Slurm does not know the job.
        used: its usage by the accounting; None if there is none.
    """
    directory = exchange.copy_directory(job.spec.job_dir, max(1, fence.latest(job.attempt)))
    spec = replace(job.spec, job_dir=directory, slurm_job=job.slurm_id or None)
    try:
        published = clear_copies(job.spec, job.attempt)
        notes = [words.PUBLISHED_TO_THE_END.format(", ".join(published))] if published else []
    except OSError as error:
        notes = [words.HALF_PUBLISHED.format(error)]
    verdict = _verdict(job, spec, row, used)
    if notes:
        verdict = replace(verdict, notes=(*verdict.notes, *notes))
        with suppress(OSError):
            write_verdict(spec, verdict)
    return replace(verdict, in_place=wrote_in_place(job.spec, job.attempt))


def _verdict(job: Job, spec: LaunchSpec, row: QueueRow | None, used: Used | None) -> Verdict:
    facts: dict[str, object]
    told = exchange.terminated(job.attempt)
    state = row.state if row is not None else None
    if told is not None and needs_state(told):
        verdict = reconcile(told, state) if job.cancelled is None else ended_by_controller(told, job.cancelled)
        with suppress(OSError):
            write_verdict(spec, verdict)
        return verdict
    meaning = TABLE[state] if state is not None else None
    outcome = (meaning and meaning.outcome) or Outcome.LOST
    if job.cancelled is not None and outcome in (Outcome.CANCELLED, Outcome.LOST):
        # Not every such job is CANCELLED in Slurm: where a node answered its launch too late, it is COMPLETED.
        cause, by = Cause.SCANCELLED, job.cancelled.words
        said = words.unseen(cause, by)
        facts = {"by": by} if state is None else {"by": by, "slurm_state": str(state)}
        return ended(spec, Outcome.CANCELLED, cause, said, facts, ended_by=job.cancelled.ended_by)
    if row is not None and meaning is not None and meaning.outcome is None and job.part is not None:
        facts = {"slurm_job": job.slurm_id, "nodes": row.nodes}
        if fence.latest(job.attempt) == 0:
            cause, last = Cause.NOT_BEGUN, _last_line(job.attempt)
            said = words.unseen(cause, job.slurm_id, f": {last[0]} ({last[1]})" if last is not None else "")
            return ended(spec, Outcome.LOST, cause, said, facts)
        cause = Cause.PROCESS_KILLED
        return ended(spec, Outcome.LOST, cause, words.unseen(cause, job.slurm_id), facts)
    if row is None or meaning is None:
        cause = Cause.UNKNOWN_TO_SLURM
        return ended(spec, Outcome.LOST, cause, words.unseen(cause, job.slurm_id), {})
    seen = f"{state}, job {job.slurm_id}"
    said = words.slurm_state(outcome, meaning.words, meaning.remedy, seen, _last_line(job.attempt))
    facts = {"slurm_state": str(state), "slurm_job": job.slurm_id, "nodes": row.nodes}
    if outcome is Outcome.OOM:
        facts |= {"scope": memory_scope(spec), "where": "the Slurm job", "limit_bytes": spec.limits.memory_bytes}
    return ended(spec, outcome, Cause.SLURM_STATE, said, facts, used=used)


def _outputs(attempt: str) -> list[str]:
    """Return the names of the files with the output of its batch scripts."""
    try:
        return [name for name in os.listdir(exchange.script_directory(attempt)) if name.startswith("batch-")]
    except OSError:
        return []


def _last_line(attempt: str) -> tuple[str, str] | None:
    """Return the last line that the batch script wrote, and the file that it is in."""
    try:
        (name,) = _outputs(attempt)
        directory = exchange.script_directory(attempt)
        with open(f"{directory}/{name}", encoding="utf-8", errors="replace") as file:
            lines = file.read()[-_OUTPUT_BYTES:].strip().splitlines()
    except (OSError, ValueError):
        return None
    return (lines[-1].strip(), f"{directory}/{name}") if lines else None
