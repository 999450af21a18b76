"""The processes that a job's command has left behind, and the files that they still write."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from ..kernel import open_files, process_tree
from ..spec.file_policy import below
from ..spec.job import LaunchSpec, Undeclared
from ..spec.verdict import Writer, WritesTo
from ..staging.attempt_files import FilesBefore
from .lifecycle import Left
from .process_group import names, tries

_CPU = slice(11, 15)  # of process_tree.stat(): its own times, and those of its children
_DELETED = " (deleted)"


def look(pids: Iterable[int], files: FilesBefore, *, failed: bool, is_urgent: Callable[[], bool]) -> Left | None:
    """Find out what processes write; None if that was interrupted.

    A process that holds no file may be about to open one, if it runs the command's own script (a subshell, or a fork on
    its way to its program), if it reads a pipe, or if an output is missing.

    Args:
        pids: the processes.
        files: those of the job.
        failed: whether the job's command has failed.
        is_urgent: whether there is something to do that cannot wait: many descriptors of many processes take minutes.
    """
    writers: list[Writer] = []
    progress, may_write, alive, left = 0, False, False, tries()
    for pid in pids:
        try:
            fields = process_tree.stat(pid)
            alive = alive or not process_tree.is_ending(pid)
            progress += sum(map(int, fields[_CPU]))
            may_write = may_write or open_files.is_forked_only(fields)
            found = set()
            for path in open_files.written(pid):
                if is_urgent():
                    return None
                if path is not None:
                    found.add(path.removeprefix(files.spec.root or ""))
        except FileNotFoundError:  # it has ended
            continue
        except OSError:
            may_write = True
            continue
        with suppress(OSError):
            may_write = may_write or open_files.reads_pipe(pid)
        written = [(path, to) for path in sorted(found) if (to := writes_to(path, files.spec)) is not None]
        name = "".join(names([pid], left)) if written else ""
        for path, to in written:
            writers.append(Writer(name, files.named(path), to))
            progress += _size(files.staged(path))
    may_write = may_write or (alive and any(map(_is_missing, _declared(files))))
    return Left(tuple(writers), alive, may_write, progress, failed)


def writes_to(path: str, spec: LaunchSpec) -> WritesTo | None:
    """Return the meaning of a file; None: it does not matter, because Forge discards it, or it belongs to others."""
    if not path.startswith("/") or path.endswith(_DELETED):
        return None
    if any(below(path, product.path) for product in spec.checks.outputs):
        return WritesTo.OUTPUT
    if any(path == os.path.join(spec.workdir, log) for log in spec.logs):
        return WritesTo.LOG
    if spec.files.undeclared is Undeclared.DISCARD or below(path, f"{spec.workdir}/.snakemake"):
        return None
    others = (*spec.files.live, *spec.files.writable, *spec.files.mounts)
    is_undeclared = any(below(path, root) for root in spec.files.layers) and not any(below(path, p) for p in others)
    return WritesTo.UNDECLARED if is_undeclared else None


def _declared(files: FilesBefore) -> Iterator[str]:
    """Yield where the outputs are until they are published, but those that Snakemake may make itself."""
    optional = {target.path for target in files.spec.files.targets if target.optional}
    return (files.staged(product.path) for product in files.spec.checks.outputs if product.path not in optional)


def _is_missing(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.lstat(path).st_mode)  # which hides an earlier version
    except OSError:
        return True


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
