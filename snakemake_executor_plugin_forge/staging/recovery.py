"""The inventory of what dead runs have left, with how each leftover is finished or removed.

It has three readers: the start of a run (:func:`recover_dead_runs`), ``snakemake-forge resume`` and ``snakemake-forge
gc``. Nothing that a living process may use is in it, here or on another host; in doubt, a process lives.
"""

from __future__ import annotations

import enum
import errno
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from ..kernel.failpoints import reached
from ..kernel.tree import remove_tree, weigh
from ..record import sound
from ..record.identity import is_here
from ..record.jsonfile import SPEC, VERDICT, load
from ..record.reader import RunDirectory, is_alive, read_run, run_directories
from ..record.sound import DAMAGED
from ..sandbox.cgroups import base as cgroups
from ..sandbox.filesystem.directories import remove_if_empty
from ..sandbox.filesystem.kept import in_use as home_in_use
from ..sandbox.filesystem.kept import places as home_places
from ..sandbox.filesystem.kept import remove as remove_home
from ..sandbox.filesystem.overlay import layer_directories, layer_name, left_behind, staging_of
from ..sandbox.filesystem.scratch import kept_directories, kept_path, remove_slot, slots
from ..spec.errors import UnfitError
from ..spec.file_policy import PRIVATE_DIRECTORIES
from ..spec.job import Files, LaunchSpec
from ..spec.paths import CHECKPOINTS, COPY_SIGN, HOME, run_name
from .checkpoints import in_use, remove_unused
from .confines import Confines
from .half_published import half_published, mark
from .interrupted import recover, recovering
from .journal import UndecidedError
from .journal import undecided as all_undecided
from .liveness import detached_supervisors, is_forge, is_own, may_live, occupied, open_elsewhere
from .pending import Entry, Status, claim, entries, waiting_outputs
from .publish import copies

PROMPT_PROCESS = "forge-shell"
"""The process name of a ``snakemake-forge shell``, which belongs to no run and may be open beside any run."""


class Kind(enum.Enum):
    """The kinds of leftovers: see the methods of :class:`Inventory`."""

    INTERRUPTED = enum.auto()
    LAYERS = enum.auto()
    COPY = enum.auto()
    SCRATCH = enum.auto()
    CGROUP = enum.auto()
    WAITING = enum.auto()
    KEPT_SCRATCH = enum.auto()
    CHECKPOINT = enum.auto()
    HOME = enum.auto()


@dataclass(frozen=True, slots=True)
class Leftover:
    """Files or cgroups that no living process uses."""

    kind: Kind
    paths: tuple[str, ...]
    run: str  # "" for a checkpoint directory and a home
    size_bytes: int
    age_seconds: float  # since the newest of its files was changed
    clear: Callable[[str], list[str]]
    """Finish what can be finished and remove the rest, in the name of the argument; return the published places.

    It raises OSError if a publication cannot be completed, or a living process has come to use the leftover.
    """

    @property
    def wanted(self) -> bool:
        """Whether a user asked to keep it, or a later run may use it."""
        return self.kind in (Kind.WAITING, Kind.KEPT_SCRATCH, Kind.CHECKPOINT, Kind.HOME)


class Inventory:
    """The leftovers in one working directory, as they are when each method is called."""

    def __init__(
        self, state: str, workdir: str, *, every_attempt: bool = False, own: str = "", scratch: Collection[str] = ()
    ) -> None:
        """Look at nothing yet.

        Args:
            state: the state directory of ``workdir``.
            own: the run of this process, which has ended all its jobs: only what is left of that.
            scratch: the directories that may have scratch; none: those in which any attempt had it.
            every_attempt: read the plans of all attempts, which takes time, for what only they lead to. Else those of
                attempts without a verdict and of one more per run, because nearly all use the same directories.
        """
        self._state = state
        self._workdir = workdir
        self._every_attempt = every_attempt
        self._own = own
        self._scratch = scratch

    @cached_property
    def dead(self) -> dict[str, RunDirectory]:
        """Runs without a living Snakemake on this host, by name; one that has noted its end may still be closing."""
        if self._own:
            return {self._own: read_run(f"{self._state}/runs/{self._own}")}
        own = {name: run for name, run in self._runs.items() if is_own(run.path)}
        return {name: run for name, run in own.items() if not is_alive({**run.record, "ended": None})}

    @cached_property
    def _runs(self) -> dict[str, RunDirectory]:
        return {os.path.basename(run.path): run for run in run_directories(self._state)}

    def others(self) -> list[int]:
        """Processes of Snakemake that are at work in this directory, beside this one."""
        return [run.record["pid"] for run in self._runs.values() if run.alive and run.record["pid"] != os.getpid()]

    def _plans(self) -> Iterator[Mapping[str, Any]]:
        """Yield the plans of dead runs' attempts."""
        for run in self.dead.values():
            skip = False
            with suppress(OSError):
                for name in run.names():
                    if not self._every_attempt and os.path.exists(f"{run.path}/{name}/{VERDICT}"):
                        if skip:
                            continue
                        skip = True
                    yield sound.spec(load(f"{run.path}/{name}/{SPEC}") or {})

    def interrupted(self) -> Iterator[Leftover]:
        """Yield entries of jobs that are over, or whose publication was interrupted."""
        for entry in entries(self._state):
            if not entry.supervised() and (entry.status() is Status.OVER or _is_interrupted(entry)):
                yield Leftover(Kind.INTERRUPTED, (entry.path,), entry.run, 0, 0.0, partial(_finish, entry))

    def waiting(self) -> Iterator[Leftover]:
        """Yield outputs of jobs that have ended without Snakemake, which the next run may adopt."""
        for entry in entries(self._state):
            if entry.supervised() or entry.status() is not Status.WAITING:
                continue
            with suppress(UnfitError, OSError):  # another process publishes it now
                size, _ = _weigh(waiting_outputs(entry).directories)
                age = time.time() - os.stat(f"{entry.directory}/{VERDICT}").st_mtime
                yield Leftover(Kind.WAITING, (entry.directory,), entry.run, size, age, partial(_discard, entry))

    def _may_live(self, run: str, pid: int) -> bool:
        return is_forge(pid) if run == self._own else may_live(f"{self._state}/runs/{run}", pid)

    def layers(self) -> Iterator[Leftover]:
        """Yield layers of dead supervisors, one of which may have a journal."""
        waiting, detached = occupied(entries(self._state))
        supervisors: dict[tuple[str, int], list[str]] = {}
        for staging in self._staging_directories(supervisors):
            for path, run, pid in layer_directories(staging):
                free = path not in waiting and (run, pid) not in detached and (not self._own or run == self._own)
                if free and is_own(path) and ((run, pid) in supervisors or not self._may_live(run, pid)):
                    supervisors.setdefault((run, pid), []).append(path)
        for (run, _), paths in supervisors.items():
            name = run.partition(COPY_SIGN)[0]
            yield Leftover(Kind.LAYERS, tuple(paths), name, *_weigh(paths), _by(_finish_layers, self._workdir, paths))

    def _staging_directories(self, found: Collection[object]) -> Iterator[str]:
        """Yield that of the working directory; then the others, but only if anything was found in the first."""
        yield staging_of(self._workdir, self._workdir)
        if found or self._every_attempt:  # else it is not worth the time to read the plans
            roots = {str(root) for plan in self._plans() for root in plan.get("layers", ())}
            yield from (staging_of(root, self._workdir) for root in sorted(roots - {self._workdir}))

    def copies(self) -> Iterator[Leftover]:
        """Yield copies beside outputs of attempts on this host, if no journal can name one and nobody makes one."""
        is_named = any(self.layers()) or all_undecided(staging_of(self._workdir, self._workdir))
        if is_named or self._may_be_used_elsewhere():
            return
        local = (plan for plan in self._plans() if plan.get("backend", "local") == "local")
        outputs = {os.path.join(self._workdir, path) for plan in local for path in plan.get("outputs", ())}
        for path, pid in copies(outputs):
            if not is_forge(pid):
                yield Leftover(Kind.COPY, (path,), "", *_weigh([path]), _by(remove_tree, path))

    def _may_be_used_elsewhere(self) -> bool:
        runs = run_directories(self._state)
        return any(run.record.get("ended") is None and not is_here(run.record) for run in runs)

    def _scratch_bases(self) -> Iterator[tuple[str, str]]:
        """Yield the run and path of each scratch base of dead runs that belongs to this user."""
        names = {run_name(run): run for run in self.dead}
        bases = {f"{directory}/{name}" for name in names for directory in self._scratch or PRIVATE_DIRECTORIES[:1]}
        if not self._scratch:
            bases |= {str(p.get("scratch_base")) for p in self._plans() if p.get("backend", "local") == "local"}
        for path in sorted(bases):
            if os.path.basename(path) in names and is_own(path):
                yield names[os.path.basename(path)], path

    def scratch(self) -> Iterator[Leftover]:
        """Yield scratch slots of dead supervisors."""
        waiting, detached = occupied(entries(self._state))
        for run, path in self._scratch_bases():
            for slot, pid in slots(path):
                if slot in waiting or (run, pid) in detached or self._may_live(run, pid):
                    continue
                clear = _by(_remove_scratch, self._workdir, slot, pid, waiting)
                yield Leftover(Kind.SCRATCH, (slot,), run, *_weigh([slot]), clear)

    def kept_scratch(self) -> Iterator[Leftover]:
        """Yield scratch directories that --forge-keep-scratch has kept."""
        for run, path in self._scratch_bases():
            for kept in kept_directories(path):
                yield Leftover(Kind.KEPT_SCRATCH, (kept,), run, *_weigh([kept]), _by(remove_slot, path, kept))

    def cgroups(self) -> Iterator[Leftover]:
        """Yield cgroups of dead runs, whose names are unique; processes of dead jobs may still be in them.

        If the run has detached jobs, these are the cgroups of its other jobs and supervisors.
        """
        living = detached_supervisors(self._state)
        for path in cgroups.find({run_name(name): name for name, run in self.dead.items() if is_here(run.record)}):
            run = os.path.basename(path).removeprefix(run_name(""))
            kept = {entry.name for entry in living.values() if entry.run == run}
            paths = [path]
            if kept:
                kept |= {cgroups.spare_name(pid) for pid in living}
                with suppress(OSError):
                    paths = [entry.path for entry in os.scandir(path) if entry.is_dir() and entry.name not in kept]
            _, age = _weigh([self.dead[run].path])  # kernfs sets a cgroup's own times when it is looked up
            for own in paths:
                yield Leftover(Kind.CGROUP, (own,), run, 0, age, _by(_remove_cgroup, own))

    def checkpoints(self) -> Iterator[Leftover]:
        """Yield checkpoint directories, unless a run may be alive, here or on another host."""
        if self._may_be_used_elsewhere() or any(run.alive for run in run_directories(self._state)):
            return
        directory = f"{self._workdir}/{CHECKPOINTS}"
        for name in sorted(os.listdir(directory)) if is_own(directory) else []:
            path = f"{directory}/{name}"
            if is_own(path) and not in_use(path):
                yield Leftover(Kind.CHECKPOINT, (path,), "", *_weigh([path]), _by(remove_unused, path))

    def homes(self) -> Iterator[Leftover]:
        """Yield what jobs have written to $HOME and to caches, unless jobs use it now."""
        temporary = {PRIVATE_DIRECTORIES[0], *(os.path.dirname(str(p.get("scratch_base"))) for p in self._plans())}
        first = home_places(f"{self._workdir}/{HOME}", self._workdir, "", apart=False)
        for place in (*first, *(p for t in temporary for p in home_places("", self._workdir, t, apart=True))):
            if os.path.isdir(place) and is_own(place) and not home_in_use(place):
                yield Leftover(Kind.HOME, (place,), "", *_weigh([place]), _by(remove_home, place))


@dataclass(frozen=True, slots=True)
class Recovered:
    """The result of :func:`recover_dead_runs`."""

    published: tuple[str, ...]  # places of outputs
    removed: int  # supervisors whose layers are removed
    undecided: tuple[str, ...]  # directories with what was to be published, whose journal is damaged
    marked: tuple[str, ...]  # outputs of these jobs, which Snakemake takes for incomplete from now on
    others: tuple[int, ...]  # processes of Snakemake that are at work in the same directory
    elsewhere: tuple[tuple[str, str], ...] = ()  # other hosts, with the directory of an open journal


def clear_after_own(state: str, workdir: str, run: str, scratch: str) -> None:
    """Remove what killed supervisors of this process's run have left, when all its processes have ended.

    It costs a few system calls where there is nothing. What cannot be removed now is left for the next run.

    Args:
        scratch: the directory with the scratch of this run.
    """
    inventory = Inventory(state, workdir, own=run, scratch=(scratch,))
    for leftover in list(inventory.layers()):
        with suppress(OSError):
            leftover.clear(run)
    remove_remains(inventory)


def remove_remains(inventory: Inventory) -> None:
    """Remove scratch and cgroups of an inventory, with the processes that are left in them, as far as possible."""
    for leftover in list(inventory.scratch()):
        with suppress(OSError):
            leftover.clear("")
    # Of a run whose record is damaged, Snakemake may be alive.
    known = {name: run.record for name, run in inventory.dead.items() if run.record and DAMAGED not in run.record}
    if any(os.path.isdir(record["cgroup"]) for record in known.values()):
        for leftover in list(inventory.cgroups()):
            if leftover.run in known:
                cgroups.kill_all(cgroups.member_pids(leftover.paths[0]))
                with suppress(OSError):
                    leftover.clear("")


def recover_dead_runs(state: str, workdir: str, adopted: str, scratch: str = "") -> Recovered:
    """Finish the publications that dead runs of this directory had begun, and remove what else is left of them.

    Args:
        state: the state directory of ``workdir``.
        adopted: who does it, for the records of adopted jobs.
        scratch: the directory in which runs have their scratch; "": the system's.

    Raises:
        OSError: if a publication cannot be finished.
    """
    inventory = Inventory(state, workdir, scratch={PRIVATE_DIRECTORIES[0], scratch or PRIVATE_DIRECTORIES[0]})
    published: list[str] = []
    undecided: set[str] = set()
    marked: list[str] = []

    def clear(leftover: Leftover) -> None:
        try:
            published.extend(leftover.clear(adopted))
        except UndecidedError as error:
            undecided.add(error.filename)
            if error.half:
                marked.extend(mark(workdir, half_published(workdir, error.filename)))

    for leftover in inventory.interrupted():
        clear(leftover)
    dead = list(inventory.layers())
    for leftover in dead:
        clear(leftover)
        reached("layer removed")
    for leftover in inventory.copies() if dead else ():
        clear(leftover)
    remove_remains(inventory)
    undecided |= set(all_undecided(staging_of(workdir, workdir)))
    everywhere = tuple(inventory.others()), tuple(open_elsewhere(state, workdir))
    return Recovered(tuple(published), len(dead), tuple(sorted(undecided)), tuple(marked), *everywhere)


# -- finishing and removing --------------------------------------------------------------------------------------------


def _weigh(paths: Iterable[str]) -> tuple[int, float]:
    """Bytes on disk, and seconds since the newest change."""
    size, newest = 0, 0.0
    for path in paths:
        bytes_of_it, changed = weigh(path)
        size, newest = size + bytes_of_it, max(newest, changed)
    return size, max(0.0, time.time() - newest)


def _is_interrupted(entry: Entry) -> bool:
    """Whether a process had begun to publish outputs that wait; it is finished then, because a run wanted them."""
    if entry.status() is not Status.WAITING:
        return False
    try:
        return waiting_outputs(entry).is_begun()
    except UnfitError:
        return True


def _finish(entry: Entry, by: str) -> list[str]:
    held = None
    with suppress(OSError):
        held = claim(entry)
    if held is None:  # another process finishes it
        return []
    try:
        if entry.status() is not Status.WAITING:
            held.discard("")
            return []
        places = [move.place for move in waiting_outputs(entry).moves]
        held.publish(by)
        return places
    except UnfitError as error:
        held.discard(str(error))
        return []
    except UndecidedError as error:
        held.discard(str(error))
        raise
    finally:
        held.release()


def _discard(entry: Entry, by: str) -> list[str]:
    held = claim(entry)
    if held is None:
        raise OSError(errno.EBUSY, "a run is about to publish it", entry.directory)
    held.discard(f"removed by {by}")
    return []


def recover_supervisor(spec: LaunchSpec, prefix: str, pid: int | None) -> list[str]:
    """Finish the publication that the dead supervisor of an attempt had begun, and remove its layers and copies.

    Args:
        prefix: with which the names of its layers begin: see sandbox/filesystem/overlay.py.
        pid: of the supervisor; None if it is unknown.

    Returns:
        The published places.

    Raises:
        OSError: if the publication cannot be finished.
    """
    published = _finish_layers(spec.workdir, list(left_behind(spec.files, spec.workdir, prefix)))
    for path, owner in copies(target.path for target in spec.files.targets):
        if owner == pid:
            remove_tree(path)
    return published


def _finish_layers(workdir: str, paths: list[str]) -> list[str]:
    """Finish the publication whose journal is in one of a dead supervisor's layers, and remove all of them."""
    with recovering(workdir, paths):
        published = [place for path in paths for place in recover(path, Confines(workdir, path))]
        for path in paths:
            remove_tree(path)
            remove_if_empty(os.path.dirname(path))
        return published


def _remove_scratch(workdir: str, slot: str, pid: int, waiting: Collection[str]) -> list[str]:
    """Remove a slot, and finish what its supervisor had begun to publish; outputs that wait for a run stay."""
    base = os.path.dirname(slot)
    found = left_behind(Files(), workdir, layer_name(os.path.basename(base), pid, ""))
    try:
        published = _finish_layers(workdir, [path for path in found if path not in waiting])
    except UndecidedError:
        os.rename(slot, kept_path(base, f"undecided-{pid}"))
        raise
    remove_slot(base, slot)
    return published


def _remove_cgroup(path: str) -> None:
    if cgroups.member_pids(path) or not cgroups.remove_patiently(partial(cgroups.remove_tree, path)):
        raise OSError(errno.EBUSY, "processes are in it", path)


def _by(remove: Callable[..., list[str] | bool | None], *arguments: object) -> Callable[[str], list[str]]:
    """The ``clear`` of a leftover whose record does not say who has cleared it."""

    def clear(by: str) -> list[str]:
        del by
        found = remove(*arguments)
        return found if isinstance(found, list) else []

    return clear
