"""The end of attempts without a supervisor: it died, or there never was one."""

from __future__ import annotations

import os
import select
import time
from dataclasses import replace

from ..record.attempt_dir import now, record_unseen, write_verdict
from ..record.codec import read_verdict
from ..sandbox.cgroups.base import RunCgroup, kill_all, remove_patiently
from ..sandbox.filesystem.directories import remove_if_empty
from ..sandbox.filesystem.overlay import layer_name
from ..sandbox.filesystem.scratch import remove_slot, slot_path
from ..spec import words
from ..spec.job import LaunchSpec
from ..spec.outcome import bare, revised
from ..spec.verdict import Cause, Order, Outcome, Verdict
from ..staging.pending import entry_path, remove_entry
from ..staging.recovery import recover_supervisor

_DEATH_SECONDS = 30.0


def reap(spec: LaunchSpec, group: RunCgroup | None, dead_pid: int) -> Verdict:
    """Clear up after a supervisor that died: kill, remove, and record the attempt as lost.

    If the supervisor had recorded a verdict, that holds. A supervisor that learned of Snakemake's death before the
    pool, continued alone and ended also looks dead; its staged outputs wait for the run that adopts them.
    """
    job = group.job(spec.name) if group is not None else None
    if job is not None:
        deadline = time.monotonic() + _DEATH_SECONDS
        while (pids := job.pids()) and time.monotonic() < deadline:
            kill_all(pids)
            select.poll().poll(2)
        remove_patiently(job.remove)
    recorded = read_verdict(spec.job_dir)
    if recorded is not None and recorded.staged:
        return recorded
    layers = layer_name(spec.layer_base, dead_pid, "")
    published = recover_supervisor(spec, layers, dead_pid)  # before its scratch goes, in which outputs may be staged
    remove_slot(spec.scratch_base, slot_path(spec.scratch_base, dead_pid))
    if spec.checkpoint is not None:
        remove_if_empty(spec.checkpoint)
    if spec.detachable:
        remove_entry(entry_path(spec))
    if recorded is not None:
        return recorded
    verdict = lost(spec, Cause.KILLED_WHILE_PUBLISHING if published else Cause.SUPERVISOR_KILLED)
    os.makedirs(spec.job_dir, exist_ok=True)
    write_verdict(spec, verdict)
    return verdict


def lost(spec: LaunchSpec, cause: Cause, *details: object) -> Verdict:
    """Return the verdict on an attempt whose end nobody has seen."""
    return revised(bare(spec, now()), Outcome.LOST, cause, words.unseen(cause, *details))


def unheard_of(spec: LaunchSpec, cause: Cause, detail: str) -> Verdict:
    """Return the verdict on record of an attempt whose supervisor tells no more; else put on record that it is lost."""
    return read_verdict(spec.job_dir) or record_unseen(spec, lost(spec, cause, detail))


def never_started(spec: LaunchSpec, order: Order, waited_for: str | None = None) -> Verdict:
    """Record an attempt that was cancelled before any of its processes started."""
    cause = Cause.NEVER_STARTED if waited_for is None else Cause.STILL_WAITING
    said = words.unseen(cause, order.words, waited_for)
    verdict = replace(revised(bare(spec, now()), Outcome.CANCELLED, cause, said), ended_by=order.ended_by)
    return record_unseen(spec, verdict)
