"""The health of an environment: every file, compared with the checksums of its packages.

Sources: conda's ``conda-meta/*.json`` (``paths_data``), Python's ``RECORD`` files (binary distribution format).
:func:`expected` reads both; :func:`verify` checks the files.

A file is read again only if its inode, size, mtime or ctime differ from those of its last sound check. Nobody can set
the change time, so this also detects a flipped byte whose mtime was restored; a file that changed within the clock's
last ticks before its check is checked again (the kernel's time stamps are that coarse).
"""

from __future__ import annotations

import base64
import csv
import enum
import glob
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..kernel.tree import walk
from ..record.jsonfile import load, read_object, replace_file
from ..spec.catalog import RuntimeKind
from .venv import site_packages

SCHEMA = 1
_RECENT_NS = 2_000_000_000
_SMALL_BATCH = 32
_UNTRACKED = ("conda-meta/", "__pycache__/", ".pyc", "pyvenv.cfg", "CACHEDIR.TAG")


class Damage(enum.StrEnum):
    """The kind of damage to a file."""

    MISSING = "is missing"
    CHANGED = "is not as it was installed"
    BROKEN_LINK = "is a link to nothing"
    UNREADABLE = "cannot be read"
    ADDED = "was added by hand"
    LIBRARY = "needs a shared library that is not there"
    INTERPRETER = "needs an interpreter that is not there"


@dataclass(frozen=True, slots=True)
class Problem:
    """One damaged file."""

    path: str
    fault: Damage
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path} {self.fault}{': ' if self.detail else ''}{self.detail}"

    @property
    def is_damage(self) -> bool:
        """Whether jobs must not use the environment. An additional file only deserves a message."""
        return self.fault is not Damage.ADDED


@dataclass(frozen=True, slots=True)
class Expected:
    """A package's expectation of one file."""

    path: str  # absolute
    sha256: str | None  # hexadecimal; None: the package lists only its name
    size_bytes: int | None
    is_link: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """The result of checking an environment."""

    problems: tuple[Problem, ...]
    files: int
    hashed: int  # files read; all others are unchanged since the last check
    seconds: float

    @property
    def damage(self) -> tuple[Problem, ...]:
        """The problems that make the environment unusable."""
        return tuple(p for p in self.problems if p.is_damage)


# -- what there should be ----------------------------------------------------------------------------------------------


def expected(prefix: str, kind: RuntimeKind) -> dict[str, Expected]:
    """Every installed file of an environment's packages, by path.

    Raises:
        OSError, ValueError: if a package's list of files cannot be read, which is damage as well.
    """
    found: dict[str, Expected] = {}
    if kind is RuntimeKind.CONDA:
        for record in sorted(glob.glob(f"{glob.escape(prefix)}/conda-meta/*.json")):
            found |= {file.path: file for file in _of_conda(prefix, record)}
    for site in site_packages(prefix):
        for record in sorted(glob.glob(f"{glob.escape(site)}/*.dist-info/RECORD")):
            if kind is RuntimeKind.CONDA and record in found:
                continue  # installed by conda, whose own list is better
            found |= {file.path: file for file in _of_record(site, record) if file.path not in found}
    return found


def _of_conda(prefix: str, record: str) -> Iterator[Expected]:
    paths = read_object(record).get("paths_data", {}).get("paths", [])
    for entry in paths:
        path, kind = f"{prefix}/{entry['_path']}", entry.get("path_type", "hardlink")
        if kind == "softlink":
            yield Expected(path, None, None, is_link=True)
        elif kind == "hardlink":
            patched = bool(entry.get("prefix_placeholder"))
            # A file with the prefix in it differs from the package; older installers record no checksum for it.
            known = entry.get("sha256_in_prefix") or (None if patched else entry.get("sha256"))
            yield Expected(path, known, None if patched else entry.get("size_in_bytes"))


def _of_record(site: str, record: str) -> Iterator[Expected]:
    with open(record, encoding="utf-8", newline="") as file:
        for path, checksum, size in csv.reader(file):
            algorithm, _, encoded = checksum.partition("=")
            if algorithm == "sha256":
                sha256 = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
                yield Expected(os.path.normpath(f"{site}/{path}"), sha256, int(size) if size else None)


# -- what there is -----------------------------------------------------------------------------------------------------


def verify(prefix: str, kind: RuntimeKind, memory: str | None, *, fully: bool = False) -> Health:
    """Check every file of an environment.

    Args:
        memory: a file that remembers sound files; None: remember nothing.
        fully: read every file, whatever is remembered, and report files added by hand.
    """
    begin = time.monotonic()
    if kind is RuntimeKind.CONTAINER:  # an image has no list of its files; it is read-only to its jobs
        return Health((), 0, 0, 0.0)
    known = {} if fully or memory is None else load(memory) or {}
    metadata = _metadata(prefix, kind)
    is_current = (known.get("schema"), known.get("metadata")) == (SCHEMA, metadata)
    files_then = known.get("files")
    remembered: Mapping[str, list[int]] = files_then if is_current and isinstance(files_then, dict) else {}
    doubtful = [path for path, signature in remembered.items() if _signature(path) != signature]
    if remembered and not doubtful:  # the common case: nothing has changed
        problems = tuple(_interpreter(prefix, kind))
        return Health(problems, len(remembered), 0, time.monotonic() - begin)
    try:
        files = expected(prefix, kind)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        path = getattr(error, "filename", None) or f"{prefix}/conda-meta"
        unreadable = Problem(str(path), Damage.UNREADABLE, f"the list of files of a package: {error}")
        return Health((unreadable,), 0, 0, time.monotonic() - begin)
    again = set(doubtful)
    wanted = [file for path, file in files.items() if path not in remembered or path in again]
    sound, faults = _look(wanted)
    problems = (*_interpreter(prefix, kind), *faults, *(_added(prefix, files) if fully else ()))
    if memory is not None and not any(p.is_damage for p in problems):
        _remember(memory, metadata, {**remembered, **sound})
    return Health(problems, len(files), len(wanted), time.monotonic() - begin)


def _interpreter(prefix: str, kind: RuntimeKind) -> Iterator[Problem]:
    """The base interpreter of a venv, which has none of its own."""
    python = f"{prefix}/bin/python"
    if kind is RuntimeKind.VENV and not os.path.exists(python):
        yield Problem(python, Damage.INTERPRETER, os.path.realpath(python))


def _look(files: list[Expected]) -> tuple[dict[str, list[int]], list[Problem]]:
    """Read files, several at a time, because hashing releases the interpreter's lock."""
    sound: dict[str, list[int]] = {}
    problems: list[Problem] = []

    def batch(part: list[Expected]) -> list[tuple[Expected, Problem | None, list[int] | None]]:
        return [(file, *_check(file)) for file in part]

    parts = [files[n : n + _SMALL_BATCH] for n in range(0, len(files), _SMALL_BATCH)]
    workers = min(8, len(os.sched_getaffinity(0)), max(1, len(parts)))
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="forge-verify") as pool:
        done = [item for part in pool.map(batch, parts) for item in part]
    for file, problem, signature in done:
        if problem is not None:
            problems.append(problem)
        elif signature is not None:
            sound[file.path] = signature
    return sound, problems


def _check(file: Expected) -> tuple[Problem | None, list[int] | None]:
    """Check one file; return its problem, or its signature to remember."""
    before = _signature(file.path)
    if before is None:
        return Problem(file.path, Damage.MISSING), None
    try:
        if file.is_link:
            if os.path.exists(file.path):
                return None, before
            return Problem(file.path, Damage.BROKEN_LINK, os.readlink(file.path)), None
        size = os.stat(file.path).st_size
        if file.size_bytes is not None and size != file.size_bytes:
            return Problem(file.path, Damage.CHANGED, f"{size} bytes instead of {file.size_bytes}"), None
        if file.sha256 is not None and _sha256(file.path) != file.sha256:
            return Problem(file.path, Damage.CHANGED, "its checksum is another one"), None
    except OSError as error:
        return Problem(file.path, Damage.UNREADABLE, error.strerror or str(error)), None
    return None, before if _signature(file.path) == before else None


def _sha256(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _signature(path: str) -> list[int] | None:
    """The signature of a file, which changes with it: inode(7). None if the file does not exist."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _added(prefix: str, files: Mapping[str, object]) -> Iterator[Problem]:
    """Files of no package, except compiled Python, which imports create."""
    for here in walk(prefix, quiet=True, through_link=True):
        directory = here.path
        for name in here.files:
            path = f"{directory}/{name}"
            if os.path.islink(path) and os.path.isdir(path):  # lib64
                continue
            if path not in files and not any(part in path.removeprefix(prefix) for part in _UNTRACKED):
                if directory.endswith(".dist-info") or (directory == f"{prefix}/bin" and _is_of_venv(path)):
                    continue
                yield Problem(path, Damage.ADDED)


def _is_of_venv(path: str) -> bool:
    """Whether ``python -m venv`` made a file: links to the interpreter, activation scripts."""
    return os.path.islink(path) or os.path.basename(path).lower().startswith("activate")


# -- what is remembered ------------------------------------------------------------------------------------------------


def _metadata(prefix: str, kind: RuntimeKind) -> list[list[Any]]:
    """The packages' own lists of files, by their signatures."""
    lists = glob.glob(f"{glob.escape(prefix)}/conda-meta/*.json") if kind is RuntimeKind.CONDA else []
    for site in site_packages(prefix):
        lists += glob.glob(f"{glob.escape(site)}/*.dist-info/RECORD")
    return [[path, _signature(path)] for path in sorted(lists)]


def _remember(memory: str, metadata: list[list[Any]], sound: Mapping[str, list[int]]) -> None:
    """Remember files that have been unchanged long enough for a later change to get another time stamp."""
    latest = time.time_ns() - _RECENT_NS
    rested = {path: signature if signature and signature[3] < latest else [] for path, signature in sound.items()}
    record = {"schema": SCHEMA, "metadata": metadata, "files": rested}
    with suppress(OSError):  # another user's store: then every check is complete
        os.makedirs(os.path.dirname(memory), exist_ok=True)
        replace_file(memory, json.dumps(record, separators=(",", ":")))
