"""Whether an environment is as it was installed: every file against the checksums that its packages came with.

Sources: conda's ``conda-meta/*.json`` (``paths_data``), Python's ``RECORD`` files (binary distribution format). Both
are read by :func:`expected`; :func:`verify` looks at the files.

A file is looked at again only if its inode, size, mtime or ctime differ from those under which it was found sound. The
change time cannot be set by anybody, so that this also sees a flipped byte whose mtime was put back; what was changed
within the clock's last ticks before it was looked at is not believed (the kernel's time stamps are that coarse).
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
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..catalog import Kind
from .venv import site_packages

SCHEMA = 1
_RECENT_NS = 2_000_000_000
_SMALL_BATCH = 32
_UNTRACKED = ("conda-meta/", "__pycache__/", ".pyc", "pyvenv.cfg", "CACHEDIR.TAG")


class Fault(enum.StrEnum):
    """What is wrong with a file."""

    MISSING = "is missing"
    CHANGED = "is not as it was installed"
    BROKEN_LINK = "is a link to nothing"
    UNREADABLE = "cannot be read"
    ADDED = "was added by hand"
    LIBRARY = "needs a shared library that is not there"
    INTERPRETER = "needs an interpreter that is not there"


@dataclass(frozen=True, slots=True)
class Problem:
    """One file that is not as it should be."""

    path: str
    fault: Fault
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path} {self.fault}{': ' if self.detail else ''}{self.detail}"

    @property
    def is_damage(self) -> bool:
        """Whether jobs must not use the environment. A file that is there in addition is worth a word and no more."""
        return self.fault is not Fault.ADDED


@dataclass(frozen=True, slots=True)
class Expected:
    """What a package says of one file."""

    path: str  # absolute
    sha256: str | None  # hexadecimal; None: nothing is known but that it is there
    size_bytes: int | None
    is_link: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """What a look at an environment has found."""

    problems: tuple[Problem, ...]
    files: int
    hashed: int  # of these, the others were found unchanged since the last time
    seconds: float

    @property
    def damage(self) -> tuple[Problem, ...]:
        """Those problems that keep jobs away."""
        return tuple(p for p in self.problems if p.is_damage)


# -- what there should be ----------------------------------------------------------------------------------------------


def expected(prefix: str, kind: Kind) -> dict[str, Expected]:
    """Every file that the packages of an environment have installed, by path.

    Raises:
        OSError, ValueError: if a package's own list of files cannot be read: that is damage as well.

    """
    found: dict[str, Expected] = {}
    if kind is Kind.CONDA:
        for record in sorted(glob.glob(f"{glob.escape(prefix)}/conda-meta/*.json")):
            found |= {file.path: file for file in _of_conda(prefix, record)}
    for site in site_packages(prefix):
        for record in sorted(glob.glob(f"{glob.escape(site)}/*.dist-info/RECORD")):
            if kind is Kind.CONDA and record in found:
                continue  # installed by conda, which knows these files better
            found |= {file.path: file for file in _of_record(site, record) if file.path not in found}
    return found


def _of_conda(prefix: str, record: str) -> Iterator[Expected]:
    with open(record, "rb") as file:
        paths = json.load(file).get("paths_data", {}).get("paths", [])
    for entry in paths:
        path, kind = f"{prefix}/{entry['_path']}", entry.get("path_type", "hardlink")
        if kind == "softlink":
            yield Expected(path, None, None, is_link=True)
        elif kind == "hardlink":
            patched = bool(entry.get("prefix_placeholder"))
            # A file with the prefix in it is not what the package has; older installers do not say what it is then.
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


def verify(prefix: str, kind: Kind, memory: str | None, *, fully: bool = False) -> Health:
    """Look at every file of an environment.

    Args:
        memory: a file that remembers what was found sound; None: nothing is remembered.
        fully: read every file, whatever is remembered, and say what was added by hand.

    """
    begin = time.monotonic()
    if kind is Kind.CONTAINER:  # nothing in an image says what its files should be; it is read-only to its jobs
        return Health((), 0, 0, 0.0)
    known = {} if fully or memory is None else _recall(memory)
    metadata = _metadata(prefix, kind)
    remembered: Mapping[str, list[int]] = known.get("files", {}) if known.get("metadata") == metadata else {}
    doubtful = [path for path, signature in remembered.items() if _signature(path) != signature]
    if remembered and not doubtful:  # the common case: nothing was touched since
        problems = tuple(_interpreter(prefix, kind))
        return Health(problems, len(remembered), 0, time.monotonic() - begin)
    try:
        files = expected(prefix, kind)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Health((_unreadable(prefix, error),), 0, 0, time.monotonic() - begin)
    again = set(doubtful)
    wanted = [file for path, file in files.items() if path not in remembered or path in again]
    sound, faults = _look(wanted)
    problems = (*_interpreter(prefix, kind), *faults, *(_added(prefix, files) if fully else ()))
    if memory is not None and not any(p.is_damage for p in problems):
        _remember(memory, metadata, {**remembered, **sound})
    return Health(problems, len(files), len(wanted), time.monotonic() - begin)


def _interpreter(prefix: str, kind: Kind) -> Iterator[Problem]:
    """A venv has none of its own: it leads to that with which it was made."""
    python = f"{prefix}/bin/python"
    if kind is Kind.VENV and not os.path.exists(python):
        yield Problem(python, Fault.INTERPRETER, os.path.realpath(python))


def _look(files: list[Expected]) -> tuple[dict[str, list[int]], list[Problem]]:
    """Read files, several at a time: the checksum is worked out without the interpreter's lock."""
    sound: dict[str, list[int]] = {}
    problems: list[Problem] = []

    def batch(part: list[Expected]) -> list[tuple[Expected, Problem | None, list[int] | None]]:
        return [(file, *_check(file)) for file in part]

    parts = [files[n : n + _SMALL_BATCH] for n in range(0, len(files), _SMALL_BATCH)]
    workers = min(8, len(os.sched_getaffinity(0)), max(1, len(parts)))
    if workers == 1:
        results: Iterable[Any] = map(batch, parts)
        done = [item for part in results for item in part]
    else:
        with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="forge-verify") as pool:
            done = [item for part in pool.map(batch, parts) for item in part]
    for file, problem, signature in done:
        if problem is not None:
            problems.append(problem)
        elif signature is not None:
            sound[file.path] = signature
    return sound, problems


def _check(file: Expected) -> tuple[Problem | None, list[int] | None]:
    """One file: what is wrong with it, or its signature if that may be remembered."""
    before = _signature(file.path)
    if before is None:
        return Problem(file.path, Fault.MISSING), None
    if file.is_link:
        if os.path.exists(file.path):
            return None, before
        return Problem(file.path, Fault.BROKEN_LINK, _target(file.path)), None
    try:
        size = os.stat(file.path).st_size
        if file.size_bytes is not None and size != file.size_bytes:
            return Problem(file.path, Fault.CHANGED, f"{size} bytes instead of {file.size_bytes}"), None
        if file.sha256 is not None and _sha256(file.path) != file.sha256:
            return Problem(file.path, Fault.CHANGED, "its checksum is another one"), None
    except OSError as error:
        return Problem(file.path, Fault.UNREADABLE, error.strerror or str(error)), None
    return None, before if _signature(file.path) == before else None


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _sha256(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _signature(path: str) -> list[int] | None:
    """What changes when a file does: inode(7). None if it is not there."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _added(prefix: str, files: Mapping[str, object]) -> Iterator[Problem]:
    """Files that no package has installed. Compiled Python is made when it is used."""
    for directory, _, names in os.walk(prefix):
        for name in names:
            path = f"{directory}/{name}"
            if path not in files and not any(part in path.removeprefix(prefix) for part in _UNTRACKED):
                if directory.endswith(".dist-info") or (directory == f"{prefix}/bin" and _is_of_venv(path)):
                    continue
                yield Problem(path, Fault.ADDED)


def _is_of_venv(path: str) -> bool:
    """Made by ``python -m venv``: links to the interpreter and the scripts that activate."""
    return os.path.islink(path) or os.path.basename(path).lower().startswith("activate")


def _unreadable(prefix: str, error: Exception) -> Problem:
    path = getattr(error, "filename", None) or f"{prefix}/conda-meta"
    return Problem(str(path), Fault.UNREADABLE, f"the list of files of a package: {error}")


# -- what is remembered ------------------------------------------------------------------------------------------------


def _metadata(prefix: str, kind: Kind) -> list[list[Any]]:
    """The packages' own lists of files, by their signatures."""
    lists = glob.glob(f"{glob.escape(prefix)}/conda-meta/*.json") if kind is Kind.CONDA else []
    for site in site_packages(prefix):
        lists += glob.glob(f"{glob.escape(site)}/*.dist-info/RECORD")
    return [[path, _signature(path)] for path in sorted(lists)]


def _recall(memory: str) -> dict[str, Any]:
    try:
        with open(memory, "rb") as file:
            record = json.load(file)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("schema") == SCHEMA else {}


def _remember(memory: str, metadata: list[list[Any]], sound: Mapping[str, list[int]]) -> None:
    """Only what has been at rest for a while: a later change gets another time stamp."""
    latest = time.time_ns() - _RECENT_NS
    rested = {path: signature if signature and signature[3] < latest else [] for path, signature in sound.items()}
    record = {"schema": SCHEMA, "metadata": metadata, "files": rested}
    try:
        os.makedirs(os.path.dirname(memory), exist_ok=True)
        with open(f"{memory}.{os.getpid()}", "w", encoding="utf-8") as file:
            file.write(json.dumps(record, separators=(",", ":")))
        os.replace(f"{memory}.{os.getpid()}", memory)
    except OSError:
        return  # a store of somebody else: then every look is a whole one
