"""The processes of Forge that may be alive, as far as files say it. In doubt, one is."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ..kernel.descriptors import closing
from ..kernel.process_tree import command_name, is_dead
from ..record import sound
from ..record.identity import boot_id, is_here
from ..record.jsonfile import CLOSED, LEFT, load
from ..record.reader import RUN, is_alive
from ..sandbox.filesystem.overlay import layer_directories, staging_of
from ..spec.errors import UnfitError
from ..spec.paths import COPY_SIGN
from .journal import exists
from .pending import Entry, Status, entries, waiting_outputs


def occupied(found: Iterable[Entry]) -> tuple[frozenset[str], frozenset[tuple[str, int]]]:
    """Directories with outputs that wait to be adopted; and run and pid of each supervisor that may be detached."""
    directories: set[str] = set()
    detached: set[tuple[str, int]] = set()
    for entry in found:
        status = entry.status()
        if status is Status.WAITING:
            with suppress(UnfitError):
                directories.update(waiting_outputs(entry).directories)
        elif status is not Status.OVER:
            detached.add((entry.run, entry.pid))
    return frozenset(directories), frozenset(detached)


def detached_supervisors(state: str) -> dict[int, Entry]:
    """The supervisors on this host that are alive and have an entry, by pid."""
    return {entry.pid: entry for entry in entries(state) if entry.supervised()}


def signal_supervisor(entry: Entry, number: int) -> None:
    """Send a signal to an entry's supervisor, never to another process with its pid; do nothing if it is dead."""
    with suppress(OSError), closing(os.pidfd_open(entry.pid)) as fd:
        if entry.supervised():
            signal.pidfd_send_signal(fd, number)


def may_live(run_dir: str, pid: int) -> bool:
    """Whether the supervisor ``pid`` of a run may be alive; in doubt, it is.

    Args:
        run_dir: of the run. With COPY_SIGN and the name of a copy, the supervisor ran on a node, which cannot be asked.
    """
    runs, name = os.path.split(run_dir)
    plain, sign, _ = name.partition(COPY_SIGN)
    if sign:
        return not is_over_on_nodes(f"{runs}/{plain}")
    found = load(f"{run_dir}/{RUN}")
    if found is None:  # removed by hand, or the run never began
        return is_forge(pid)
    run = sound.run(found)
    if not is_here(run):
        return run.get("ended") is None
    if run.get("boot_id") != boot_id():
        return False
    return is_alive({**run, "ended": None}) or is_forge(pid)


def open_elsewhere(state: str, workdir: str) -> Iterator[tuple[str, str]]:
    """Yield host and directory of each journal of a run on another host, which may be alive there."""
    for path, name, pid in layer_directories(staging_of(workdir, workdir)):
        run_dir = f"{state}/runs/{name}"
        if COPY_SIGN not in name and exists(path) and (found := load(f"{run_dir}/{RUN}")) is not None:
            run = sound.run(found)
            if not is_here(run) and may_live(run_dir, pid):
                yield str(run.get("host")), path


def is_over_on_nodes(run_dir: str) -> bool:
    """Whether no job of a run is alive on nodes of a cluster: the run was closed, or Snakemake itself has ended it."""
    if os.path.exists(f"{run_dir}/{CLOSED}"):
        return True
    run = load(f"{run_dir}/{RUN}") or {}
    return bool(run.get("ended")) and not run.get("declared_dead") and not os.path.exists(f"{run_dir}/{LEFT}")


def is_forge(pid: int) -> bool:
    """Whether ``pid`` is a living process of Forge, not one of another program that has got its number since."""
    return not is_dead(pid) and command_name(pid).startswith("forge-")  # dead and not reaped: process 1 can be slow


def is_own(path: str, *, is_file: bool = False) -> bool:
    """Whether a path is a directory of this user, and no link; with ``is_file`` any kind of file of this user."""
    with suppress(OSError):
        status = os.lstat(path)
        return (is_file or stat.S_ISDIR(status.st_mode)) and status.st_uid == os.geteuid()
    return False
