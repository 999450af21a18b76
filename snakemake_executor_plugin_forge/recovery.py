"""After a crash: what runs that are dead have left half done is done to the end, and what they have left is removed."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from .faults import reached
from .files import STAGING, STAGING_ELSEWHERE
from .publish import recover
from .record.identity import boot_id
from .record.jsonfile import load
from .record.layout import CLOSED, SPEC, VERDICT
from .record.reader import RUN, is_alive
from .sandbox.directories import remove_if_empty, remove_tree
from .sandbox.sweep import command_name, is_dead
from .staged import Status, entries, settle, wanted

COPY_SIGN = "@"
"""Between the name of a run and that of one copy of an attempt, on a node of a cluster: see backends/handover.py."""

PROMPT_PROCESS = "forge-shell"
"""What the process of a ``snakemake-forge shell`` calls itself: it is no part of a run, and may be open beside any."""

STAGED = re.compile(r"forge-(?P<run>.+)-(?P<pid>\d+)-\d+")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done."""

    published: tuple[str, ...]  # places of outputs that are whole now
    removed: int  # directories of layers
    kept: tuple[str, ...]  # that another host's run may still use


def recover_dead_runs(state: str, workdir: str, adopted: str) -> Recovered:
    """Do to the end what dead runs of this directory had begun to publish, and remove their layers.

    A layer is left alone as long as its supervisor may live: on this host, or on another one that shares the file
    system; and as long as outputs wait in it for a run that wants them.

    Args:
        state: the state directory of ``workdir``.
        adopted: who does it, for the record of what had waited and was being published.

    Raises:
        OSError: if a journal cannot be followed to its end.

    """
    published = settle(state, adopted)
    wait = wanted(state)
    alone = {(entry.run, entry.pid) for entry in entries(state) if entry.status() is not Status.OVER}
    removed = 0
    kept: list[str] = []
    for name, run, pid in _staged(f"{workdir}/{STAGING}"):
        if f"{workdir}/{STAGING}/{name}" in wait:
            continue
        if (run, pid) in alone or may_live(f"{state}/runs/{run}", pid):
            kept.append(name)
            continue
        published += recover(f"{workdir}/{STAGING}/{name}")
        remove_tree(f"{workdir}/{STAGING}/{name}")
        reached("layer removed")
        removed += 1
    if removed:
        for directory in _layers_elsewhere(state, workdir):
            for name, run, pid in _staged(directory):
                if f"{directory}/{name}" in wait or (run, pid) in alone:
                    continue
                if not may_live(f"{state}/runs/{run}", pid):
                    remove_tree(f"{directory}/{name}")
                    removed += 1
            remove_if_empty(directory)
    return Recovered(tuple(published), removed, tuple(kept))


def _staged(directory: str) -> Iterator[tuple[str, str, int]]:
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            match = STAGED.fullmatch(name)
            if match is not None:
                yield name, match["run"], int(match["pid"])


def may_live(run_dir: str, pid: int) -> bool:
    """Whether the supervisor ``pid`` of a run may still be alive: when in doubt, yes.

    Args:
        run_dir: of the run; or that with COPY_SIGN and the name of a copy, which ran on a node that nobody can ask.

    """
    runs, name = os.path.split(run_dir)
    plain, sign, _ = name.partition(COPY_SIGN)
    if sign:
        return not is_over_on_nodes(f"{runs}/{plain}")
    run = load(f"{run_dir}/{RUN}")
    if run is None:  # it was removed by hand, or is of a run that never began
        return is_forge(pid)
    if run.get("host") != socket.gethostname():
        return run.get("ended") is None
    if run.get("boot_id") != boot_id():
        return False
    return is_alive({**run, "ended": None}) or is_forge(pid)


def is_over_on_nodes(run_dir: str) -> bool:
    """Whether nothing of a run is alive on nodes of a cluster: it was closed, or Snakemake itself has ended it."""
    if os.path.exists(f"{run_dir}/{CLOSED}"):
        return True
    run = load(f"{run_dir}/{RUN}") or {}
    return bool(run.get("ended")) and not run.get("declared_dead")


def is_forge(pid: int) -> bool:
    """Whether it is a process of Forge that lives: numbers are used again."""
    return not is_dead(pid) and command_name(pid).startswith("forge-")  # dead and not reaped: process 1 can be slow


def _layers_elsewhere(state: str, workdir: str) -> Iterator[str]:
    """Of attempts without a verdict: the staging directories outside the working directory."""
    seen = {workdir}
    for run in _directories(f"{state}/runs"):
        for attempt in _directories(run):
            if os.path.exists(f"{attempt}/{VERDICT}"):
                continue
            for root in (load(f"{attempt}/{SPEC}") or {}).get("layers", ()):
                if root not in seen:
                    seen.add(root)
                    yield f"{root}/{STAGING_ELSEWHERE}"


def _directories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir()]
    except OSError:
        return []
