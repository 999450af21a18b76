"""Clears up what copies of an attempt leave behind: their layers, and records without a verdict."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace

from ...record import sound
from ...record.attempt_dir import write_verdict
from ...record.jsonfile import SPEC, VERDICT, load
from ...spec.job import FilePolicy, LaunchSpec
from ...spec.verdict import Cause, Verdict
from ...staging.recovery import recover_supervisor
from ...supervisor.reaper import lost
from . import exchange, fence


def clear_copies(spec: LaunchSpec, attempt: str) -> list[str]:
    """Finish the publication that a copy has begun, and remove the layers of all copies.

    Call it when the attempt is taken and its owner is dead: no other copy can publish, whether it lives or not.

    Args:
        spec: the attempt as the controller has planned it.

    Returns:
        The paths that were published.

    Raises:
        OSError: if the publication cannot be finished.
    """
    published: list[str] = []
    for number in range(1, fence.latest(attempt) + 1):
        published += _clear(spec, attempt, number)
    return published


def _clear(spec: LaunchSpec, attempt: str, number: int) -> list[str]:
    run_id = os.path.basename(os.path.dirname(spec.job_dir))
    prefix = f"{exchange.copy_name(run_id, attempt, number)}-"
    return recover_supervisor(spec, prefix, fence.process_of(attempt, number))


def wrote_in_place(spec: LaunchSpec, attempt: str) -> bool:
    """Whether a copy ran on a node that could not stage the outputs that were to be staged."""
    if not spec.files.staged:
        return False
    directories = (exchange.copy_directory(spec.job_dir, n + 1) for n in range(fence.latest(attempt)))
    found = (sound.spec(load(f"{directory}/{SPEC}") or {}) for directory in directories)
    return any(spec["isolation"]["files"] == FilePolicy.OPEN for spec in found)


def put_aside(spec: LaunchSpec, attempt: str, submission: int) -> bool:
    """Give the records of copies that have run names of their own, because the attempt is submitted again.

    Args:
        submission: the number of the one that they belong to.

    Returns:
        Whether a copy has run.

    Raises:
        OSError: if what they have left cannot be removed or renamed.
    """
    clear_copies(spec, attempt)
    copies = range(1, fence.latest(attempt) + 1)
    for number in copies:
        directory = exchange.copy_directory(spec.job_dir, number)
        own = replace(spec, job_dir=f"{directory}.submission{submission}")
        if not os.path.isdir(directory):
            continue
        os.rename(directory, own.job_dir)
        write_verdict(own, lost(own, Cause.SUPERSEDED))
    return bool(copies)


def record_copies(spec: LaunchSpec, attempt: str, verdict: Verdict) -> None:
    """Give the records of superseded copies a verdict, and remove their layers."""
    for number in range(1, fence.latest(attempt) + 1):
        own = replace(spec, job_dir=exchange.copy_directory(spec.job_dir, number))
        if own.job_dir == verdict.directory or not os.path.isdir(own.job_dir):
            continue
        with suppress(OSError):
            if not os.path.exists(f"{own.job_dir}/{VERDICT}"):
                write_verdict(own, lost(own, Cause.SUPERSEDED))
        with suppress(OSError):
            _clear(spec, attempt, number)
