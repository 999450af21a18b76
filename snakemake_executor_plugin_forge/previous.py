"""Outputs of earlier runs stay, where Snakemake would delete them: a job whose outputs are staged has touched none."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from .model import Verdict


def keep_until_success(job: Any) -> None:
    """Have Snakemake not delete them before the job."""
    job.remove_existing_output = _nothing


async def _nothing(*_: object, **__: object) -> None:
    """In place of a job's method that would delete its outputs."""


def spare(job: Any, verdict: Verdict) -> None:
    """Snakemake deletes the outputs of a failed job; of one that was staged these are the ones from before it."""
    if getattr(job, "remove_existing_output", None) is not _nothing:
        return
    if not verdict.ok and not verdict.in_place:
        job.cleanup = _nothing
    elif "cleanup" in job.__dict__:  # of an earlier attempt
        del job.cleanup


def forget_failures(persistence: Any, is_marked: Callable[[Any], bool]) -> None:
    """Have Snakemake not note a job that failed as the one that made its outputs, if these are the ones from before it.

    It notes every job that has ended, with the checksums of its inputs, and relies on deleting outputs and note of
    those that failed; the next run would believe that the previous version was made of the present inputs.

    Args:
        is_marked: whether a job's outputs were marked as incomplete, which these are not then.

    """
    finished = persistence.finished

    def note(job: Any, *arguments: Any, **options: Any) -> Any:
        if getattr(job, "cleanup", None) is not _nothing:
            return finished(job, *arguments, **options)
        if is_marked(job):
            for file in job.output:
                _unmark(persistence, file)
        return _nothing() if inspect.iscoroutinefunction(finished) else None  # older Snakemake 9

    persistence.finished = note


def _unmark(persistence: Any, file: Any) -> None:
    if hasattr(persistence, "_unmark_incomplete"):
        persistence._unmark_incomplete(persistence._get_key(file))
    else:  # older Snakemake 9
        persistence._delete_record(persistence._incomplete_path, file)
