"""What copies of an attempt leave that did not bring it to its end: their layers, and records without a verdict."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace

from .. import fence
from ..model import FilePolicy, LaunchSpec, Verdict
from ..publish import recover, remove_copies
from ..record.jobdir import write_verdict
from ..record.jsonfile import load
from ..record.layout import SPEC, VERDICT
from ..sandbox.directories import remove_if_empty, remove_tree
from ..sandbox.layers import left_behind_by
from ..unattended import lost
from . import handover


def clear_copies(spec: LaunchSpec, attempt: str) -> list[str]:
    """Do to the end what a copy had begun to publish, and remove the layers of all copies.

    To be called when the attempt was taken, and whoever has taken it is dead: no other can publish, whether it lives
    or not.

    Args:
        spec: as it was planned.
        attempt: the attempt directory.

    Returns:
        The places of what was published.

    Raises:
        OSError: if a journal cannot be followed.

    """
    published: list[str] = []
    for number in range(1, fence.latest(attempt) + 1):
        published += _clear(spec, attempt, number)
    return published


def _clear(spec: LaunchSpec, attempt: str, number: int) -> list[str]:
    published: list[str] = []
    run_id = os.path.basename(os.path.dirname(spec.job_dir))
    for layer in left_behind_by(spec.files, spec.workdir, f"{handover.copy_name(run_id, attempt, number)}-"):
        published += recover(layer)
        remove_tree(layer)
        remove_if_empty(os.path.dirname(layer))
    pid = fence.process_of(attempt, number)
    if pid is not None:
        remove_copies((target.path for target in spec.files.targets), lambda other: other == pid)
    return published


def wrote_in_place(spec: LaunchSpec, attempt: str) -> bool:
    """Whether a copy ran on a node that could not stage what was to be staged."""
    if not spec.files.staged:
        return False
    directories = (handover.copy_directory(spec.job_dir, n + 1) for n in range(fence.latest(attempt)))
    found = ((load(f"{directory}/{SPEC}") or {}).get("isolation", {}) for directory in directories)
    return any(isolation.get("files") == FilePolicy.OPEN for isolation in found)


def bury_copies(spec: LaunchSpec, attempt: str, verdict: Verdict) -> None:
    """Copies of a job that was requeued and were superseded: their records get a verdict, and their layers go."""
    for number in range(1, fence.latest(attempt) + 1):
        own = replace(spec, job_dir=handover.copy_directory(spec.job_dir, number))
        if own.job_dir == verdict.directory or not os.path.isdir(own.job_dir):
            continue
        with suppress(OSError):
            if not os.path.exists(f"{own.job_dir}/{VERDICT}"):
                write_verdict(own, lost(own, "Slurm ran the job again as another copy, which counts"))
        with suppress(OSError):
            _clear(spec, attempt, number)
