"""Attempts that no supervisor has brought to their end: one that died, one that was never started."""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress

from .model import LaunchSpec, Outcome, Usage, Verdict
from .publish import recover, remove_copies
from .record.jobdir import JobDirectory, now, write_verdict
from .record.verdicts import read_verdict
from .sandbox.cgroup import RunCgroup, kill_all, remove_patiently
from .sandbox.directories import remove_if_empty, remove_tree
from .sandbox.layers import left_behind
from .sandbox.scratch import remove_slot, slot_path
from .staged import entry_path, withdraw

_DEATH_SECONDS = 30.0


def bury(spec: LaunchSpec, group: RunCgroup | None, dead_pid: int) -> Verdict:
    """Clear up after a supervisor that died: kill, remove, and record the attempt as lost.

    Unless it had recorded its verdict: then that holds. One that has learned of Snakemake's death before the pool, went
    on alone and came to its end also looks like one that died; what it has staged waits for who adopts it.
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
    published = _recover_staging(spec, dead_pid)  # before its scratch goes, in which outputs may be staged
    remove_slot(spec.scratch_base, slot_path(spec.scratch_base, dead_pid))
    if spec.checkpoint is not None:
        remove_if_empty(spec.checkpoint)
    if spec.goes_on:
        withdraw(entry_path(spec))
    if recorded is not None:
        return recorded
    done = "it was publishing its outputs, and all of them are in their places" if published else "run it again"
    verdict = lost(spec, f"its supervisor was killed from outside; whatever it had started is dead, {done}")
    os.makedirs(spec.job_dir, exist_ok=True)
    write_verdict(spec, verdict)
    return verdict


def _recover_staging(spec: LaunchSpec, dead_pid: int) -> list[str]:
    """Publish to the end what a dead supervisor had begun to publish, and remove its layers.

    Returns:
        The places of what was published.

    """
    published: list[str] = []
    for layer in left_behind(spec.files, spec.workdir, os.path.basename(spec.scratch_base), dead_pid):
        published += recover(layer)
        remove_tree(layer)
        remove_if_empty(os.path.dirname(layer))
    remove_copies((target.path for target in spec.files.targets), lambda pid: pid == dead_pid)
    return published


def lost(spec: LaunchSpec, reason: str) -> Verdict:
    """The verdict on an attempt of which nobody can say how it ended."""
    return Verdict(Outcome.LOST, f"lost: {reason}", None, None, Usage(), now(), 0.0, directory=spec.job_dir)


def never_started(spec: LaunchSpec, reason: str) -> Verdict:
    """Record an attempt that was cancelled before anything of it had run."""
    text = f"cancelled, nothing of it was run: {reason}"
    verdict = Verdict(Outcome.CANCELLED, text, None, None, Usage(), now(), 0.0, directory=spec.job_dir)
    with suppress(OSError):  # its verdict counts all the same
        record = JobDirectory(spec)
        record.close()
        record.describe()
        record.finish(verdict)
    return verdict
