"""What a job has left in its layers, looked through: what was declared, what was not, and what cannot be published."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from .files import STAGING_ELSEWHERE, below
from .model import Files, Target, TargetKind, Undeclared
from .publish import OVERLAY_ATTRIBUTES, Move, publish_one, walk
from .sandbox.layers import Layer

_PRIVATE = ".snakemake"  # of the working directory: Snakemake's own, in which jobs leave temporary files
_MAKER = "user.forge.rule"


@dataclass(slots=True)
class Survey:
    """What a job has written."""

    outputs: list[Move] = field(default_factory=list)
    logs: list[Move] = field(default_factory=list)
    stale_logs: list[str] = field(default_factory=list)  # of an earlier attempt, and not written by this one
    extra: list[Move] = field(default_factory=list)  # new files that the rule does not declare
    missing: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)  # sentences
    changed: list[str] = field(default_factory=list)  # existing files that it changed or deleted


def survey(files: Files, layers: Iterable[Layer], rule: str, begin_ns: int) -> Survey:
    """Look through what a job has left in its layers. Nothing is changed.

    Args:
        rule: whose job it was: what it left undeclared before, it may change.
        begin_ns: when it was started: what has appeared at a place since is not what the job saw and changed.

    Raises:
        OSError: if a directory cannot be read.

    """
    found = Survey()
    targets = {target.path: target for target in files.targets}
    walk = _Walk(found, targets, frozenset((*files.inputs, *files.visible)), rule, begin_ns)
    for layer in layers:
        walk.roots.add(layer.root)
        walk.directory(layer.upper, layer.root, top=layer.root)
    for path, target in targets.items():
        if path not in walk.met:
            _not_written(target, found)
    return found


def _not_written(target: Target, found: Survey) -> None:
    if target.kind is TargetKind.LOG:
        if os.path.lexists(target.path):
            found.stale_logs.append(target.path)
    elif target.kind is TargetKind.BENCHMARK or target.optional:
        pass
    elif not (target.update and os.path.lexists(target.path)):
        found.missing.append(target.name)


@dataclass(slots=True)
class _Walk:
    found: Survey
    targets: dict[str, Target]
    shown: frozenset[str]  # mount points for inputs are not the job's
    rule: str
    begin_ns: int
    met: set[str] = field(default_factory=set)
    parents: set[str] = field(default_factory=set)
    roots: set[str] = field(default_factory=lambda: {"/"})

    def __post_init__(self) -> None:
        for path in self.targets:
            while (path := os.path.dirname(path)) not in self.parents and path != "/":
                self.parents.add(path)

    def directory(self, upper: str, real: str, top: str) -> None:
        """Look through one that is in the layer and at its place."""
        with os.scandir(upper) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                self._entry(entry, f"{real}/{entry.name}", top)

    def _entry(self, entry: os.DirEntry[str], path: str, top: str) -> None:
        target = self.targets.get(path)
        status = entry.stat(follow_symlinks=False)
        if target is not None:
            if not _is_whiteout(status):
                self.met.add(path)
                self._target(target, entry, status)
        elif path in self.shown or (below(path, f"{top}/{_PRIVATE}") and path not in self.parents):
            pass
        elif stat.S_ISDIR(status.st_mode):
            self._other_directory(entry, path, top)
        elif self._was_there(path):
            self.found.changed.append(path)
        elif _is_whiteout(status):
            pass  # of a file of its own or another job's, made meanwhile
        elif (problem := _unfit(status)) is not None:
            self.found.changed.append(f"{path} ({problem})")
        else:
            self.found.extra.append(Move(entry.path, path, status.st_ino))

    def _other_directory(self, entry: os.DirEntry[str], path: str, top: str) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            if _is_opaque(entry.path):
                self.found.changed.append(f"{path}/ (removed and made anew)")
                if path not in self.parents:
                    return
            self.directory(entry.path, path, top)
        elif path in self.parents:
            self.directory(entry.path, path, top)
        elif os.path.lexists(path) and self._was_there(path):
            self.found.changed.append(path)
        elif os.path.basename(path) != STAGING_ELSEWHERE:
            self._new_directory(entry.path, path)

    def _new_directory(self, upper: str, path: str) -> None:
        problems = list(_unfit_below(upper, path))
        if problems:
            self.found.changed.extend(problems)
        else:
            self.found.extra.append(Move.of(upper, path))

    def _was_there(self, path: str) -> bool:
        """Whether it is somebody else's file, from before the job.

        One that appeared since is another job's of the same name; the last one wins, as without layers. And what jobs
        of this rule have left before is theirs to change, itself or in a directory: an index that stayed what it was
        beside new data would do harm.
        """
        try:
            if os.lstat(path).st_ctime_ns >= self.begin_ns:
                return False
        except OSError:
            return False
        while path not in self.roots:
            if _maker(path) == self.rule:
                return False
            path = os.path.dirname(path)
        return True

    def _target(self, target: Target, entry: os.DirEntry[str], status: os.stat_result) -> None:
        is_directory = stat.S_ISDIR(status.st_mode)
        problem = _unfit(status)
        if problem is None and is_directory and not target.directory and target.kind is TargetKind.OUTPUT:
            problem = "a directory, but the rule does not say directory()"
        elif problem is None and target.directory and not is_directory and not stat.S_ISLNK(status.st_mode):
            problem = "a file, but the rule says directory()"
        elif problem is None and is_directory and not _can_be_used(status):
            mode = stat.S_IMODE(status.st_mode)
            problem = f"a directory that its owner may not read, write and enter (mode {mode:03o})"
        elif problem is None and stat.S_ISREG(status.st_mode):
            problem = _broken_promise(target, entry.path, status.st_size)
        if problem is not None:
            self.found.rejected.append(f"{target.name} is {problem}")
            return
        if is_directory:
            self.found.rejected.extend(_unfit_below(entry.path, target.name))
        move = Move(entry.path, target.path, status.st_ino)
        (self.found.logs if target.kind is TargetKind.LOG else self.found.outputs).append(move)


def _unfit(status: os.stat_result) -> str | None:
    """What it is, if it is nothing that could be published."""
    mode = status.st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
        return None
    return "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def _broken_promise(target: Target, path: str, size: int) -> str | None:
    """What a file is that its rule has promised with ``ensure()`` it would not be."""
    if target.non_empty and size == 0:
        return "empty, but the rule says ensure(non_empty=True)"
    if target.checksum is None:
        return None
    algorithm, _, digest = target.checksum.partition(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    return None if found == digest.lower() else f"not what ensure() says: its {algorithm} is {found}"


def _can_be_used(status: os.stat_result) -> bool:
    """Whether Snakemake can put its timestamp there; it gives up the whole run where it cannot."""
    return os.geteuid() == 0 or status.st_mode & stat.S_IRWXU == stat.S_IRWXU


def _unfit_below(directory: str, name: str) -> Iterator[str]:
    for parent, _, files in walk(directory):
        for file in files:
            problem = _unfit(os.lstat(f"{parent}/{file}"))
            if problem is not None:
                yield f"{name}{parent.removeprefix(directory)}/{file} is {problem}"


def _is_whiteout(status: os.stat_result) -> bool:
    """How an overlay says that something is deleted."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(directory: str) -> bool:
    """How an overlay says that a directory was made anew in place of another."""
    for prefix in OVERLAY_ATTRIBUTES:
        with suppress(OSError):
            return os.getxattr(directory, f"{prefix}opaque", follow_symlinks=False) == b"y"
    return False


def undeclared_reads(files: Files, workdir: str, opened: Iterable[str]) -> tuple[str, ...]:
    """Of the files that a job opened: those that were there and that its rule does not declare, sorted.

    Not what is Snakemake's own.
    """
    declared = {*files.inputs, *files.expected, *(target.path for target in files.targets)}
    inside = tuple(f"{path}/" for path in declared)
    found = []
    for path in opened:
        if path in declared or path.startswith((*inside, f"{workdir}/{_PRIVATE}/")):
            continue
        with suppress(OSError):
            if stat.S_ISREG(os.lstat(path).st_mode):
                found.append(path.removeprefix(f"{workdir}/"))
    return tuple(sorted(found))


def publish_logs(found: Survey) -> list[str]:
    """Bring the logs to their places, after success and after failure.

    Returns:
        What went wrong, in sentences: a log is no reason to fail a job.

    """
    problems = []
    for path in found.stale_logs:
        with suppress(OSError):
            os.unlink(path)
    for move in found.logs:
        try:
            publish_one(move)
        except OSError as error:
            problems.append(f"the log {move.place} could not be written: {error.strerror}")
    return problems


def keep_beside(found: Survey, directory: str) -> None:
    """Put what a failed job has written of its outputs into its job directory: ``--keep-incomplete``.

    Raises:
        OSError: if that is not possible.

    """
    for move in found.outputs:
        target = f"{directory}/incomplete/{move.place.lstrip('/')}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.move(move.source, target)


def kept(found: Survey, undeclared: Undeclared, rule: str) -> list[Move]:
    """Of a successful job: what is published. What is not declared is marked as this rule's."""
    if undeclared is not Undeclared.KEEP:
        return found.outputs
    for move in found.extra:
        with suppress(OSError):  # links, and file systems without user attributes: it cannot be changed again then
            os.setxattr(move.source, _MAKER, rule.encode(), follow_symlinks=False)
    return [*found.outputs, *found.extra]


def _maker(path: str) -> str | None:
    """The rule whose job left a file without declaring it."""
    try:
        return os.getxattr(path, _MAKER, follow_symlinks=False).decode("utf-8", "replace")
    except OSError:
        return None
