"""Owners: whether jobs of this workflow have made a file, so that its jobs may change it undeclared.

Four things prove that. None of them is looked up unless a job has changed a file that was there before.

1. The mark: the attribute ``user.forge.rule``, which Forge gives to all that jobs leave undeclared.
2. The ledger, for what cannot be marked (links, file systems without attributes): path, inode and mtime of each.
3. Snakemake's record of an output: the file is one, or its job has made it in one.
4. The time of the last change or of the birth, which lies within a job that Snakemake has recorded: so it was made
   under another executor. Forge keeps these times when it makes the outputs again.

All of this gives way to a declaration: the outputs of another rule are not this job's (:meth:`Owners.other_rule`).
"""

from __future__ import annotations

import json
import os
import stat
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from ..kernel.failpoints import reached
from ..kernel.long_paths import reach
from ..kernel.syscalls import birth_time
from ..kernel.tree import Below, walk
from ..record.jsonfile import parse, read_object
from ..sandbox.filesystem.directories import attribute
from ..spec.verdict import Owner
from .declared import Declared
from .journal import Move

Entry = tuple[str, int, int]  # of the ledger: path, inode, time of the last change of the content (ns; 0: directory)
MARK = "user.forge.rule"
_LEDGER = "made.jsonl"
_WINDOWS = "windows.jsonl"
_LEDGER_BYTES = 1 << 20
_COMMENT, _COMMENT_BYTES = "# bytes of all entries when this was shortened: ", 80
_ENTRIES = [[str, int, int], [str, float, float], [str, int, float], [str, float, int]]
_NAME_MAX = 254  # of Snakemake's records: one byte less than NAME_MAX
_CLOCK_SECONDS = 1e-6  # a float of a record is not more exact


class Owners:
    """The knowledge about files in one working directory, as of the first call of each method."""

    def __init__(self, workdir: str, state: str, outputs: Iterable[str], rule: str = "", declared: str = "") -> None:
        """Look at nothing yet.

        Args:
            state: the state directory of ``workdir``.
            outputs: of the job, as its rule has them.
            rule: of the job.
            declared: the file with the outputs of the run: see staging/declared.py.
        """
        self._rule = rule
        self.declared = Declared(declared)
        self._workdir = workdir
        self._records = f"{workdir}/.snakemake/metadata"
        self._ledger = f"{state}/{_LEDGER}"
        self._windows = f"{state}/{_WINDOWS}"
        self._outputs = tuple(outputs)
        self._records_around: dict[str, tuple[str, ...]] = {}  # of directories, the nearest first

    def is_made(self, path: str) -> bool:
        """Whether jobs of this workflow have made the file, link or directory."""
        status = reach(os.lstat, path)
        return (
            maker(path) is not None
            or entry_of(path, path) in self._noted
            or self._is_output(path, status)
            or _is_of(path, status, self._own_windows)
            or _is_of(path, status, self._all_windows)
        )

    def left_by(self, path: str) -> str | None:
        """Return the rule whose job has left a file undeclared; "" if the rule is unknown; None if none has."""
        try:
            entry = entry_of(path, path)
        except OSError:
            return None
        return maker(path) or ("" if entry in self._noted else None)

    def is_left(self, path: str) -> bool:
        """Whether a job has left a file or directory undeclared."""
        return self.left_by(path) is not None

    def other_rule(self, path: str, *, is_there: bool) -> Owner | None:
        """Another rule that declares a path, or a directory around it; None if this rule does so, too.

        Args:
            is_there: whether it exists. Then Snakemake's records count as well, for outputs of an earlier run that the
                DAG of this one does not have.
        """
        owners = self.declared.at(path) or self.declared.around(os.path.dirname(path))
        if owners:
            return None if any(owner.rule == self._rule for owner in owners) else owners[0]
        found = next(self._records_of(path), None) if is_there else None
        rule = _recorded_rule(found) if found is not None else self._rule
        return Owner(rule) if rule != self._rule and self.declared.knows(rule) else None

    def must_be_noted(self, path: str) -> bool:
        """Whether only the records of this job's outputs prove it, which the end of the job will replace."""
        status = reach(os.lstat, path)
        known = maker(path) is not None or entry_of(path, path) in self._noted
        return not known and _is_of(path, status, self._own_windows)

    def note(self, made: Iterable[Entry]) -> None:
        """Add files to the ledger.

        Raises:
            OSError: if it cannot be written.
        """
        lines = [json.dumps(entry) + "\n" for entry in dict.fromkeys(made)]
        if not lines:
            return
        with suppress(FileNotFoundError):
            size = os.stat(self._ledger).st_size
            if size > _LEDGER_BYTES and size > 2 * self._shortened():
                self._shorten()
        with open(self._ledger, "a", encoding="ascii") as file:
            file.writelines(lines)
        reached("noted")

    def _shortened(self) -> int:
        """The size of the ledger when it was last shortened, in bytes: its first line has it, as a comment."""
        with suppress(OSError, ValueError), open(self._ledger, encoding="utf-8") as file:
            return int(file.readline(_COMMENT_BYTES).removeprefix(_COMMENT))
        return 0

    def _shorten(self) -> None:
        """Drop entries of files that are not there any more."""
        temporary, kept = f"{self._ledger}.new", []
        for entry in sorted(self._noted):
            with suppress(OSError):
                if entry_of(entry[0], entry[0]) == entry:
                    kept.append(json.dumps(entry) + "\n")
        with open(temporary, "w", encoding="ascii") as file:
            file.write(f"{_COMMENT}{sum(map(len, kept))}\n")
            file.writelines(kept)
        os.rename(temporary, self._ledger)

    @cached_property
    def _noted(self) -> frozenset[Entry]:
        return frozenset((path, inode, mtime_ns) for path, inode, mtime_ns in _lines(self._ledger))

    def _is_output(self, path: str, status: os.stat_result) -> bool:
        """Whether it is an output, or was made or changed in one by the job that has made that.

        Others may have put a file into an output directory later.
        """
        own = frozenset(map(self._record, _names(path, self._workdir)))
        for record in self._records_of(path):
            times, windows = (status.st_mtime, status.st_ctime), tuple(_recorded([record]))
            if record in own or _are_within(times, windows):
                return True
        return False

    def _records_of(self, path: str) -> Iterator[str]:
        """Yield Snakemake's records of a path and of the directories around it, the nearest first."""
        yield from filter(os.path.isfile, map(self._record, _names(path, self._workdir)))
        path, passed = os.path.dirname(path), list[str]()
        while path not in ("/", self._workdir) and path not in self._records_around:
            passed.append(path)
            path = os.path.dirname(path)
        around = self._records_around.get(path, ())
        for directory in reversed(passed):
            own = filter(os.path.isfile, map(self._record, _names(directory, self._workdir)))
            around = self._records_around[directory] = (*own, *around)
        yield from around

    def _record(self, name: str) -> str:
        """The path of Snakemake's record of an output: FilePersistence._record_path()."""
        return f"{self._records}/{record_name(name)}"

    @cached_property
    def _own_windows(self) -> tuple[tuple[float, float], ...]:
        kept = (window for name, *window in _lines(self._windows) if name in self._outputs)
        return (*_recorded(self._record(name) for name in self._outputs), *_bounds(kept))

    @cached_property
    def _all_windows(self) -> tuple[tuple[float, float], ...]:
        """The windows of all jobs: perhaps thousands of files, but this is the last search before a job fails."""
        records = (
            here.near(name) for here in walk(self._records, quiet=True, through_link=True) for name in here.files
        )
        return (*_recorded(records), *_bounds(window for _, *window in _lines(self._windows)))


def record_name(output: str) -> str:
    """The name of Snakemake's record of an output below its directory."""
    text = urlsafe_b64encode(os.fsencode(output)).decode()
    parts = [text[place : place + _NAME_MAX] for place in range(0, len(text), _NAME_MAX)]
    return "/".join((*(f"@{part}" for part in parts[:-1]), parts[-1]))


def keep_window(state: str, output: str, begin: float, end: float) -> None:
    """Keep begin and end of a job that another executor has run: seconds since the epoch.

    Args:
        output: one of the job, as Snakemake names it.

    Raises:
        OSError: if they cannot be written.
    """
    with open(f"{state}/{_WINDOWS}", "a", encoding="ascii") as file:
        file.write(json.dumps((output, begin, end)) + "\n")


def _lines(path: str) -> Iterator[list[Any]]:
    """Yield the whole entries: a path and two numbers each. The host may have died while one was written."""
    with suppress(OSError), open(path, "rb") as file:
        for line in file:
            with suppress(ValueError):
                entry = parse(line.decode())
                if isinstance(entry, list) and list(map(type, entry)) in _ENTRIES:
                    yield entry


def _recorded(records: Iterable[str]) -> Iterator[tuple[float, float]]:
    """Yield begin and end of the jobs that Snakemake has recorded: it writes a record when a job has ended."""
    for path in records:
        with suppress(OSError, ValueError, TypeError, KeyError):
            yield from _bounds([[read_object(path)["starttime"], os.stat(path).st_mtime]])


def _recorded_rule(record: str) -> str:
    """The rule whose job Snakemake has recorded; "" if that cannot be read."""
    with suppress(OSError, ValueError, KeyError):
        return str(read_object(record)["rule"])
    return ""


def _names(path: str, workdir: str) -> tuple[str, ...]:
    """The names under which Snakemake may know a path."""
    return tuple(dict.fromkeys((path.removeprefix(f"{workdir}/"), path)))


def _bounds(found: Iterable[Sequence[float]]) -> Iterator[tuple[float, float]]:
    for begin, end in found:
        with suppress(OverflowError):  # a damaged number
            yield begin - _CLOCK_SECONDS, end + _CLOCK_SECONDS


def _is_of(path: str, status: os.stat_result, windows: Sequence[tuple[float, float]]) -> bool:
    """Return whether a file was made or last changed in a window: of tar and ``cp -p`` it has an older mtime."""
    return bool(windows) and _are_within((status.st_mtime, birth_time(path) or 0.0), windows)


def _are_within(times: Sequence[float], windows: Sequence[tuple[float, float]]) -> bool:
    return any(begin <= time <= end for begin, end in windows for time in times)


def maker(path: str) -> str | None:
    """Return the rule whose job has left a file without declaring it, from its mark."""
    found = attribute(path, MARK)
    return None if found is None else found.decode("utf-8", "replace")


def entry_of(path: str, place: str) -> Entry:
    """The entry of the ledger for a file that is, or will be, at ``place``."""
    status = reach(os.lstat, path)
    return place, status.st_ino, 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns


def mark(moves: Iterable[Move], rule: str) -> list[Entry]:
    """Mark files, and all in directories, as made by a rule; this also sets the time of their last change (ctime).

    Returns:
        What cannot be marked, for :meth:`Owners.note`.
    """
    unmarked = []
    for move in moves:
        below = Below(move.source)
        for path in below:
            try:
                _set_mark(path, rule.encode())
            except OSError:  # links, and file systems without user attributes
                unmarked.append(entry_of(path, move.place + below.name_of(path)))
    return unmarked


def _set_mark(path: str, rule: bytes) -> None:
    try:
        os.setxattr(path, MARK, rule, follow_symlinks=False)
    except PermissionError:  # an ordinary user may not write to it, as to the objects of git: xattr(7)
        mode = stat.S_IMODE(os.lstat(path).st_mode)
        if mode & stat.S_IWUSR or os.path.islink(path):
            raise
        os.chmod(path, mode | stat.S_IWUSR)
        try:
            os.setxattr(path, MARK, rule, follow_symlinks=False)
        finally:
            os.chmod(path, mode)
