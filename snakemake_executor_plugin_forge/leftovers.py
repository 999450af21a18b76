"""What dead runs of a working directory have left on this host: found here, removed by ``snakemake-forge gc``.

Only what a run's own record leads to, only of this user and host, and only if its processes are certainly dead: same
boot and start time, as in recovery.py. Of a run whose record is gone nothing is known, so nothing of it is touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from .errors import UnfitError
from .files import CHECKPOINTS, STAGING, STAGING_ELSEWHERE
from .model import Files
from .publish import recover
from .record.identity import boot_id
from .record.jsonfile import load
from .record.layout import SPEC, VERDICT
from .record.reader import RUN, is_alive
from .record.retention import size_bytes
from .recovery import COPY_SIGN, STAGED, is_forge, may_live
from .sandbox import cgroup
from .sandbox.directories import remove_if_empty, remove_tree
from .sandbox.layers import left_behind
from .staged import Entry, Staging, Status, claim, entries, wanted

_SLOT = re.compile(r"slot-(?P<pid>\d+)")
_KEPT = re.compile(r"kept-forge-.+")


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that nobody uses."""

    part: str  # "scratch", "staging", "cgroups" or "checkpoints"
    path: str
    size_bytes: int
    age_seconds: float  # since it was last changed
    wanted: bool  # somebody asked for it to be kept, or may still want it
    remove: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Age:
    """How long what is left over stays. None: without end."""

    after_seconds: float | None = 86400.0  # what nobody wants
    wanted_after_seconds: float | None = 30 * 86400.0
    wanted_max_bytes: int | None = None  # of all that is wanted together: the oldest go first


def decide(found: Sequence[Leftover], age: Age) -> list[tuple[Leftover, str]]:
    """What to remove, and why; in the order in which it was found. Pure."""
    why: dict[int, str] = {}
    for number, item in enumerate(found):
        limit = age.wanted_after_seconds if item.wanted else age.after_seconds
        if limit is not None and item.age_seconds > limit:
            why[number] = "age" if item.wanted else "left by a run that is dead"
    if age.wanted_max_bytes is not None:
        rest = [n for n, item in enumerate(found) if item.wanted and n not in why]
        total = sum(found[n].size_bytes for n in rest)
        for number in sorted(rest, key=lambda n: -found[n].age_seconds):
            if total <= age.wanted_max_bytes:
                break
            why[number] = "size"
            total -= found[number].size_bytes
    return [(found[number], why[number]) for number in sorted(why)]


# -- finding -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeadRun:
    """A run of this user on this host whose Snakemake is dead."""

    name: str
    path: str
    this_boot: bool
    places: Mapping[str, frozenset[str]]  # "scratch_base" and "layers" of its attempts


def dead_runs(state: str) -> list[DeadRun]:
    """Those of a state directory."""
    found = []
    runs = f"{state}/runs"
    for name in sorted(os.listdir(runs)) if os.path.isdir(runs) else []:
        path = f"{runs}/{name}"
        record = load(f"{path}/{RUN}")
        if record is None or not _is_own(path) or record.get("host") != socket.gethostname():
            continue
        if is_alive({**record, "ended": None}):  # it has written its end, and may still be clearing up
            continue
        found.append(DeadRun(name, path, record.get("boot_id") == boot_id(), _places(path)))
    return found


def _places(run: str) -> dict[str, frozenset[str]]:
    bases: set[str] = set()
    layers: set[str] = set()
    with os.scandir(run) as entries:
        for entry in entries:
            spec: dict[str, Any] = (entry.is_dir() and load(f"{entry.path}/{SPEC}")) or {}
            if spec.get("backend", "local") == "local":
                bases.add(str(spec.get("scratch_base", "")))
                layers.update(map(str, spec.get("layers", ())))
    return {"scratch_base": frozenset(bases - {""}), "layers": frozenset(layers)}


def find_scratch(runs: Sequence[DeadRun], workdir: str) -> Iterator[Leftover]:
    """Slots of supervisors that died, and scratch directories that ``--forge-keep-scratch`` has kept."""
    waiting = _waiting(runs)
    for run in runs:
        for base in sorted(run.places["scratch_base"]):
            if os.path.basename(base) != f"forge-{run.name}" or not _is_own(base):
                continue
            for name in sorted(os.listdir(base)):
                path, slot = f"{base}/{name}", _SLOT.fullmatch(name)
                if path in waiting:  # it goes with the layers, in whose part it is
                    continue
                if not _is_own(path) or (slot and run.this_boot and is_forge(int(slot["pid"]))):
                    continue
                if slot or _KEPT.fullmatch(name):
                    remove = partial(_remove_scratch, base, path, workdir)
                    yield Leftover("scratch", path, size_bytes(path), _age(path), slot is None, remove)


def _remove_scratch(base: str, path: str, workdir: str) -> None:
    """With outputs in it that its supervisor may have begun to publish: where layers are apart."""
    slot = _SLOT.fullmatch(os.path.basename(path))
    if slot is not None:
        for journal in left_behind(Files(), workdir, os.path.basename(base), int(slot["pid"])):
            recover(journal)
    _remove(path)
    remove_if_empty(base)


def find_staging(runs: Sequence[DeadRun], workdir: str) -> Iterator[Leftover]:
    """Layers of supervisors that died: those of each together, because one has the journal of all."""
    waiting = _waiting(runs)
    yield from _find_waiting(runs)
    for run in runs:
        inside = f"{workdir}/{STAGING}"
        elsewhere = sorted(f"{root}/{STAGING_ELSEWHERE}" for root in run.places["layers"] if root != workdir)
        supervisors: dict[tuple[str, int], list[str]] = {}
        for directory in (inside, *elsewhere):
            for name in sorted(os.listdir(directory)) if _is_own(directory) else []:
                staged = STAGED.fullmatch(name)
                if f"{directory}/{name}" in waiting:
                    continue
                own = staged and staged["run"].partition(COPY_SIGN)[0] == run.name
                if staged and own and _is_own(f"{directory}/{name}"):
                    supervisors.setdefault((staged["run"], int(staged["pid"])), []).append(f"{directory}/{name}")
        for (name, pid), paths in supervisors.items():
            if not may_live(f"{os.path.dirname(run.path)}/{name}", pid):
                size = sum(size_bytes(path) for path in paths)
                age = min(_age(path) for path in paths)
                yield Leftover("staging", paths[0], size, age, False, partial(_remove_staging, paths))


def _waiting(runs: Sequence[DeadRun]) -> frozenset[str]:
    """Directories that hold what the next run may want; the runs are of one state directory."""
    return wanted(_state(runs[0])) if runs else frozenset()


def _state(run: DeadRun) -> str:
    return os.path.dirname(os.path.dirname(run.path))


def _find_waiting(runs: Sequence[DeadRun]) -> Iterator[Leftover]:
    """What succeeded jobs have staged, which went on without their Snakemake: the next run may want it."""
    names = {run.name for run in runs}
    for entry in entries(_state(runs[0])) if runs else []:
        if entry.run not in names or entry.supervised() or entry.status() is not Status.STAGED:
            continue
        with suppress(UnfitError, OSError):  # somebody publishes it just now
            paths = Staging.read(entry.directory).directories
            size = sum(size_bytes(path) for path in paths)
            age = time.time() - os.stat(f"{entry.directory}/{VERDICT}").st_mtime
            yield Leftover("staging", entry.directory, size, age, True, partial(_remove_waiting, entry))


def _remove_waiting(entry: Entry) -> None:
    held = claim(entry)
    if held is None:
        raise OSError(errno.EBUSY, "a run is about to publish it", entry.directory)
    held.discard("given up by snakemake-forge gc")


def _remove_staging(paths: Sequence[str]) -> None:
    for path in paths:
        recover(path)
    for path in paths:
        _remove(path)
        remove_if_empty(os.path.dirname(path))


def find_cgroups(runs: Iterable[DeadRun]) -> Iterator[Leftover]:
    """Cgroups of dead runs without any process in them."""
    wanted = {f"forge-{run.name}": run for run in runs if run.this_boot}
    for path in cgroup.find(wanted):
        if _is_own(path) and not cgroup.member_pids(path):
            age = _age(wanted[os.path.basename(path)].path)  # its own times are those of the look: kernfs_init_inode()
            yield Leftover("cgroups", path, 0, age, False, partial(_remove_cgroup, path))


def _remove_cgroup(path: str) -> None:
    if cgroup.member_pids(path) or not cgroup.remove_tree(path):
        raise OSError(errno.EBUSY, "processes are in it", path)


def find_checkpoints(state: str) -> Iterator[Leftover]:
    """Checkpoint directories of jobs, while no run of this directory may use them: an attempt has its own locked."""
    directory = f"{state}/{os.path.basename(CHECKPOINTS)}"
    if not _is_own(directory) or not _none_alive(state):
        return
    for name in sorted(os.listdir(directory)):
        path = f"{directory}/{name}"
        if _is_own(path) and _is_free(path):
            yield Leftover("checkpoints", path, size_bytes(path), _age(path), True, partial(_remove_checkpoint, path))


def _is_free(path: str) -> bool:
    try:
        os.close(_locked(path))
    except OSError:
        return False
    return True


def _locked(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _remove_checkpoint(path: str) -> None:
    """Under its lock, with the file beside it that says what it was made from."""
    fd = _locked(path)
    try:
        _remove(path)
        with suppress(FileNotFoundError):
            os.unlink(f"{path}.basis")
    finally:
        os.close(fd)


def _none_alive(state: str) -> bool:
    """Whether no run may be going on, here or on another host."""
    runs = f"{state}/runs"
    for name in os.listdir(runs) if os.path.isdir(runs) else []:
        record = load(f"{runs}/{name}/{RUN}") or {}
        if record.get("ended") is None and (record.get("host") != socket.gethostname() or is_alive(record)):
            return False
    return True


def _is_own(path: str) -> bool:
    """Whether it is a directory, no link, of this user."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _age(path: str) -> float:
    """Seconds since something in it was changed."""
    newest = os.lstat(path).st_mtime
    for parent, _, files in os.walk(path):
        for place in (parent, *(f"{parent}/{name}" for name in files)):
            with suppress(OSError):
                newest = max(newest, os.lstat(place).st_mtime)
    return time.time() - newest


def _remove(path: str) -> None:
    remove_tree(path)
    if os.path.lexists(path):
        raise OSError(errno.ENOTEMPTY, "it could not be removed altogether", path)
