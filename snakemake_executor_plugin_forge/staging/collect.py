"""The files that a job has left in its layers: declared, undeclared, and unfit to be published."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from ..kernel.long_paths import reach
from ..kernel.plain_paths import unlink
from ..kernel.tree import walk
from ..record.checksum import TIMESTAMP
from ..sandbox.filesystem.overlay import Layer
from ..spec.file_policy import inside_outputs
from ..spec.job import Files, Target, TargetKind
from .journal import Move
from .layer_files import is_whiteout, unfit
from .links import leads_to_own
from .owners import mark
from .publish import publish_one
from .undeclared import PRIVATE, Decided, take_own

_FILES_OF_SNAKEMAKE = """
auxiliary benchmarks conda conda-archive forge incomplete iocache locks log metadata metadata.db
scripts shadow singularity software source_cache storage tmp
"""

_IN_THE_WAY = "to be a file, but a directory with files is at its place"


@dataclass(slots=True)
class Collected:
    """The files that a job has written."""

    outputs: list[Move] = field(default_factory=list)
    benchmarks: list[Move] = field(default_factory=list)  # which are outputs, too
    logs: list[Move] = field(default_factory=list)
    log_directories: list[str] = field(default_factory=list)  # which are outputs, too
    stale_logs: list[str] = field(default_factory=list)  # of an earlier attempt, and not written by this one
    untouched: list[str] = field(default_factory=list)  # touch() outputs of an earlier run, and not written by this one
    links: list[Target] = field(default_factory=list)  # outputs and benchmarks that are links
    missing: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)  # sentences
    private: list[str] = field(default_factory=list)  # names of Snakemake's and Forge's, in output directories
    undeclared: Decided = field(default_factory=Decided)

    @property
    def extra(self) -> list[Move]:
        """The undeclared files that the job has written, and their places."""
        appends = [Move.of(append.source, append.place) for append in self.undeclared.appends]
        return [*self.undeclared.moves, *appends]


def collect(files: Files, layers: Iterable[Layer]) -> Collected:
    """Collect what a job has left in its layers of what it declares. Nothing is changed.

    Args:
        files: what the job declares.
        layers: in which it has written.

    Raises:
        OSError: if a directory cannot be read.
    """
    found = Collected()
    targets = {target.path: target for target in files.targets}
    nested = inside_outputs(files.targets)
    walk = _LayerWalk(found, targets, nested, files)
    for layer in layers:
        walk.directory(layer.upper, layer.root)
    inside_others = {target.path for inside in nested.values() for target in inside}
    for path, target in targets.items():
        if path not in walk.met and not (path in inside_others and (target.kind is TargetKind.LOG or target.optional)):
            _not_written(target, found)
    return found


def discarded(layers: Iterable[Layer]) -> Iterator[str]:
    """Yield what a job has left in Snakemake's own directory, but for what Snakemake has there itself."""
    for layer in layers:
        with suppress(FileNotFoundError):
            names = sorted({*os.listdir(f"{layer.upper}/{PRIVATE}")}.difference(_FILES_OF_SNAKEMAKE.split()))
            yield from (f"{layer.root}/{PRIVATE}/{name} (in Snakemake's own directory)" for name in names)


def _not_written(target: Target, found: Collected) -> None:
    if target.kind is not TargetKind.LOG and os.path.islink(target.path):
        found.links.append(target)
    if target.kind is TargetKind.LOG:
        if os.path.lexists(target.path):
            found.stale_logs.append(target.path)
    elif target.optional:
        if _is_in_the_way(target):
            found.rejected.append(f"{target.name} is {_IN_THE_WAY}")
        elif os.path.lexists(target.path):
            found.untouched.append(target.path)
    elif target.kind is TargetKind.BENCHMARK:
        pass
    elif not (target.update and os.path.lexists(target.path)):
        found.missing.append(target.name)


@dataclass(slots=True)
class _LayerWalk:
    found: Collected
    targets: dict[str, Target]
    nested: dict[str, list[Target]]  # see inside_outputs
    files: Files
    met: set[str] = field(default_factory=set)
    parents: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for path in self.targets:
            while (path := os.path.dirname(path)) not in self.parents and path != "/":
                self.parents.add(path)

    def directory(self, upper: str, real: str) -> None:
        """Collect the targets in a directory."""
        with os.scandir(upper) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                self._entry(entry, f"{real}/{entry.name}")

    def _entry(self, entry: os.DirEntry[str], path: str) -> None:
        target = self.targets.get(path)
        if target is not None:
            status = entry.stat(follow_symlinks=False)
            if not is_whiteout(status):
                self.met.add(path)
                self._target(target, entry, status)
        elif path in self.parents and entry.is_dir(follow_symlinks=False):
            self.directory(entry.path, path)

    def _target(self, target: Target, entry: os.DirEntry[str], status: os.stat_result) -> None:
        inside = self.nested.get(target.path, ())
        is_log = target.kind is TargetKind.LOG
        is_special = is_log and unfit(status.st_mode) is not None  # no reason to fail the job: see publish_logs()
        if not is_special and not self._is_fit(target, entry.path, status):
            self.met.update(inner.path for inner in inside)
            return
        if stat.S_ISDIR(status.st_mode):
            self.found.rejected.extend(_unfit_below(entry.path, target, self.files, self.found.private))
        for inner in inside:
            path = f"{entry.path}{inner.path.removeprefix(target.path)}"
            with suppress(FileNotFoundError, NotADirectoryError):
                found = os.lstat(path)
                if inner.kind is TargetKind.LOG and stat.S_ISLNK(found.st_mode):
                    self.found.rejected.append(f"{inner.name} is a symbolic link, but a log")
                self._is_fit(inner, path, found)
                self.met.add(inner.path)
        move = Move(entry.path, target.path, status.st_ino)
        if is_log and stat.S_ISDIR(status.st_mode):
            self.found.log_directories.append(target.name)
            is_log = False  # all in it is examined, and published, like an output
        (self.found.logs if is_log else self.found.outputs).append(move)
        if target.kind is TargetKind.BENCHMARK:
            self.found.benchmarks.append(move)

    def _is_fit(self, target: Target, path: str, status: os.stat_result) -> bool:
        problem = unfit_target(target, status.st_mode, status.st_size, is_root=os.geteuid() == 0)
        if problem is None and target.checksum is not None and stat.S_ISREG(status.st_mode):
            problem = _wrong_checksum(target.checksum, path)
        if problem is None and not stat.S_ISDIR(status.st_mode) and _is_in_the_way(target):
            problem = _IN_THE_WAY
        if stat.S_ISLNK(status.st_mode):
            if target.kind is not TargetKind.LOG:
                self.found.links.append(target)
            problem = problem or leads_to_own(os.readlink(path), target.path, self.files)
        if problem is not None:
            self.found.rejected.append(f"{target.name} is {problem}")
        return problem is None


def _is_in_the_way(target: Target) -> bool:
    """Whether a directory with files is at the place of a file. Snakemake does not remove it either."""
    if target.directory or target.kind is not TargetKind.OUTPUT:
        return False
    with suppress(OSError):  # nothing
        return stat.S_ISDIR(os.lstat(target.path).st_mode) and bool({*os.listdir(target.path)} - {TIMESTAMP})
    return False


def unfit_target(target: Target, mode: int, size: int, *, is_root: bool) -> str | None:
    """Name what an output is, if it breaks a promise of its rule or cannot be published.

    Args:
        mode: st_mode of stat(2).
        size: in bytes.
        is_root: whether its owner is root, whom no mode keeps out.
    """
    if (problem := unfit(mode)) is not None:
        return problem
    is_directory = stat.S_ISDIR(mode)
    if is_directory and not target.directory and target.kind is TargetKind.OUTPUT:
        return "a directory, but the rule does not say directory()"
    if target.directory and stat.S_ISREG(mode):
        return "a file, but the rule says directory()"
    if is_directory and not is_root and mode & stat.S_IRWXU != stat.S_IRWXU:  # Snakemake's run ends if it cannot enter
        return f"a directory that its owner may not read, write and enter (mode {stat.S_IMODE(mode):03o})"
    if target.non_empty and stat.S_ISREG(mode) and size == 0:
        return "empty, but the rule says ensure(non_empty=True)"
    return None


def unfit_link(target: Target, text: str, behind: str | None) -> str | None:
    """Name what an output is, if it is a link to what Snakemake would not accept.

    Snakemake would fail the job and delete its outputs, when their previous versions are gone.

    Args:
        text: of the link.
        behind: what it leads to; None: nothing.
    """
    if behind is None:
        return f"a link to {text}, which would not exist"
    status = reach(os.lstat, behind)
    if target.kind is TargetKind.OUTPUT and stat.S_ISDIR(status.st_mode) != target.directory:
        found, says = ("file", "says") if target.directory else ("directory", "does not say")
        return f"a link to a {found}, but the rule {says} directory()"
    if not stat.S_ISREG(status.st_mode):
        return None
    problem = unfit_target(target, status.st_mode, status.st_size, is_root=True)
    return problem if problem is not None or target.checksum is None else _wrong_checksum(target.checksum, behind)


def _wrong_checksum(expected: str, path: str) -> str | None:
    algorithm, _, digest = expected.partition(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    return None if found == digest.lower() else f"not what ensure() says: its {algorithm} is {found}"


def _unfit_below(directory: str, target: Target, files: Files, private: list[str]) -> Iterator[str]:
    for here in walk(directory, open_up=True):
        private += [f"{here.path}/{name}" for name in take_own(here)]
        for name in here.files:
            relative = f"{here.path.removeprefix(directory)}/{name}"
            mode = os.stat(name, dir_fd=here.fd, follow_symlinks=False).st_mode
            problem = unfit(mode)
            if stat.S_ISLNK(mode):
                problem = leads_to_own(os.readlink(name, dir_fd=here.fd), target.path + relative, files)
                if target.directory and relative == f"/{TIMESTAMP}":
                    problem = "a link, and Snakemake would make the file behind it"  # when it touches the directory
            if problem is not None:
                yield f"{target.name}{relative} is {problem}"


def undeclared_reads(files: Files, workdir: str, opened: Iterable[str]) -> tuple[str, ...]:
    """Return the files that a job opened and its rule does not declare, sorted.

    Files that are not there, and Snakemake's own, do not count.
    """
    declared = {*files.inputs, *files.expected, *(target.path for target in files.targets)}
    inside = tuple(f"{path}/" for path in declared)
    found = []
    for path in opened:
        if path in declared or path.startswith((*inside, f"{workdir}/{PRIVATE}/")):
            continue
        with suppress(OSError):
            if stat.S_ISREG(os.lstat(path).st_mode):
                found.append(path.removeprefix(f"{workdir}/"))
    return tuple(sorted(found))


def publish_logs(found: Collected, rule: str) -> tuple[str, ...]:
    """Bring the logs to their places, after success and after failure; jobs of other rules may change them there.

    Returns:
        What went wrong, in sentences: a log is no reason to fail a job.
    """
    problems = []
    for path in found.stale_logs:
        with suppress(OSError):
            unlink(path)
    mark(found.logs, rule)
    for move in found.logs:
        try:
            publish_one(move)
        except OSError as error:
            problems.append(f"the log {move.place} could not be written: {error.strerror}")
    return tuple(problems)
