"""The health of an environment: every file, compared with the checksums of its packages.

Sources: conda's ``conda-meta/*.json`` (``paths_data``), Python's ``RECORD`` files (binary distribution format); images:
:mod:`.image_files`.
:func:`expected` reads them; :func:`verify` checks the files, the packages, and whether this host can run them.

A file is read again only if its inode, size, mtime or ctime differ from those of its last sound check. Nobody can set
the change time, so this also detects a flipped byte whose mtime was restored; a file that changed within the clock's
last ticks before its check is checked again (the kernel's time stamps are that coarse).
"""

from __future__ import annotations

import base64
import csv
import glob
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ..kernel.tree import walk
from ..record.checksum import file_digest
from ..record.jsonfile import load, read_object, replace_file
from ..spec.catalog import RuntimeKind
from . import conda, host_fit, image_files
from .damage import Damage, Health, Problem, package_of
from .image_files import Expected
from .venv import PIP, by_pip, distributions, normalized, site_packages

SCHEMA = 2
_RECENT_NS = 2_000_000_000
_SMALL_BATCH = 32
_NAMED = 3  # so many damaged files of an image get the name of their package
_UNTRACKED = ("conda-meta/", "__pycache__/", ".pyc", "pyvenv.cfg", "CACHEDIR.TAG")


# -- what there should be ----------------------------------------------------------------------------------------------


def expected(prefix: str, kind: RuntimeKind) -> dict[str, Expected]:
    """Every installed file of an environment's packages, by path.

    Raises:
        OSError, ValueError: if a package's list of files cannot be read, which is damage as well.
    """
    found: dict[str, Expected] = {}
    if kind is RuntimeKind.CONTAINER:
        return {file.path: file for file in image_files.expected(prefix)}
    if kind is RuntimeKind.CONDA:
        pip_has = {site: by_pip(site) for site in site_packages(prefix)}
        for record in sorted(glob.glob(f"{glob.escape(prefix)}/conda-meta/*.json")):
            files = {file.path: file for file in _of_conda(prefix, record)}
            found |= {} if _is_replaced(files, pip_has) else files
    for site in site_packages(prefix):
        for record in sorted(glob.glob(f"{glob.escape(site)}/*.dist-info/RECORD")):
            if kind is RuntimeKind.CONDA and record in found:
                continue  # installed by conda, whose own list is better
            found |= {file.path: file for file in _of_record(site, record)}  # pip comes after conda
    return found


def _is_replaced(files: Mapping[str, Expected], pip_has: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether pip has installed its own package over one of conda, as pip: in a file may want: conda does not know."""
    for path in files:
        info, name = os.path.split(path)
        if name == "METADATA" and normalized(os.path.basename(info)) in pip_has.get(os.path.dirname(info), ()):
            installer = files.get(f"{info}/INSTALLER")  # some packages of conda say pip, too
            said_pip = installer is not None and installer.sha256 == hashlib.sha256(PIP).hexdigest()
            return not (said_pip and os.path.isdir(info))
    return False


def _of_conda(prefix: str, record: str) -> Iterator[Expected]:
    package = package_of(record.removesuffix(".json"))
    for entry in read_object(record).get("paths_data", {}).get("paths", []):
        path, kind = f"{prefix}/{entry['_path']}", entry.get("path_type", "hardlink")
        if kind == "softlink":
            yield Expected(path, None, None, is_link=True, package=package)
        elif kind == "hardlink":
            patched = bool(entry.get("prefix_placeholder"))
            # A file with the prefix in it differs from the package; older installers record no checksum for it.
            known = entry.get("sha256_in_prefix") or (None if patched else entry.get("sha256"))
            yield Expected(path, known, None if patched else entry.get("size_in_bytes"), package=package)


def _of_record(site: str, record: str) -> Iterator[Expected]:
    package = package_of(os.path.dirname(record))
    with open(record, encoding="utf-8", newline="") as file:
        for path, checksum, size in csv.reader(file):
            algorithm, _, encoded = checksum.partition("=")
            if algorithm == "sha256":
                sha256 = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
                yield Expected(os.path.normpath(f"{site}/{path}"), sha256, int(size) if size else None, package=package)


# -- what there is -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Built:
    """The state of an environment when Forge had built it."""

    packages: Mapping[str, str]  # name to version
    libc: str | None = None  # the C library; None: not known


def verify(
    prefix: str,
    kind: RuntimeKind,
    memory: str | None,
    *,
    built: Built | None = None,
    set_up_ns: int | None = None,
    fully: bool = False,
) -> Health:
    """Check every file of an environment, its packages, and whether this host can run them.

    Args:
        memory: a file that remembers sound files; None: remember nothing.
        built: None for environments that Forge did not build.
        set_up_ns: what has changed until then, a script has changed that set the environment up; None: nothing may.
        fully: read every file, whatever is remembered, and report files added by hand.
    """
    begin = time.monotonic()
    libc = built.libc if built is not None else None
    interpreter = tuple(host_fit.misfits(prefix, kind, libc))
    known = {} if fully or memory is None else load(memory) or {}
    metadata = [host_fit.describe(prefix, kind), _metadata(prefix, kind)]
    is_current = (known.get("schema"), known.get("metadata")) == (SCHEMA, metadata)
    files_then = known.get("files")
    remembered: Mapping[str, list[int]] = files_then if is_current and isinstance(files_then, dict) else {}
    doubtful = [path for path, signature in remembered.items() if _signature(path) != signature]
    if remembered and not doubtful:  # the common case: nothing has changed
        return Health(interpreter, len(remembered), 0, time.monotonic() - begin)
    try:
        files = expected(prefix, kind)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        path = getattr(error, "filename", None) or f"{prefix}/conda-meta"
        unreadable = Problem(str(path), Damage.UNREADABLE, f"the list of files of a package: {error}")
        return Health((*interpreter, unreadable), 0, 0, time.monotonic() - begin)
    again = set(doubtful)
    wanted = [file for path, file in files.items() if path not in remembered or path in again]
    sound, faults = _look(wanted)
    if set_up_ns is not None:
        faults = [replace(p, fault=Damage.EDITED) if _changed_ns(p.path) <= set_up_ns else p for p in faults]
    if kind is RuntimeKind.CONTAINER:
        problems = (*interpreter, *_with_owners(prefix, faults))
    else:
        packages = _other_packages(prefix, kind, built.packages) if built is not None else ()
        unfit = host_fit.misfit_packages(prefix, kind, libc)
        problems = (*interpreter, *packages, *unfit, *faults, *(_added(prefix, files) if fully else ()))
    if memory is not None and not any(p.is_damage for p in problems):
        _remember(memory, metadata, {**remembered, **sound})
    return Health(problems, len(files), len(wanted), time.monotonic() - begin)


def _with_owners(prefix: str, faults: list[Problem]) -> Iterator[Problem]:
    """The damaged files of an image, the first ones with their packages."""
    for number, fault in enumerate(faults):
        named = fault.package or number >= _NAMED
        yield fault if named else replace(fault, package=image_files.owner(prefix, fault.path))


def _other_packages(prefix: str, kind: RuntimeKind, built: Mapping[str, str]) -> Iterator[Problem]:
    """Packages that are not those of the build: removed, added or exchanged by hand, with lists of files that agree.

    The record of each run names the packages of the build, so that it would be wrong.
    """
    places = _places(prefix, kind)
    for name in sorted(built.keys() | places.keys()):
        version, place = places.get(name, (None, prefix))
        if version == built.get(name):
            continue
        if version is None:
            yield Problem(_record_of(prefix, kind, name, built[name]), Damage.MISSING, package=f"{name} {built[name]}")
        elif name in built:
            yield Problem(place, Damage.PACKAGE, f"{version} instead of {built[name]}", name)
        else:
            yield Problem(place, Damage.PACKAGE, f"{name} {version} was added by hand", name)


def _record_of(prefix: str, kind: RuntimeKind, name: str, version: str) -> str:
    """Return the place of a package's record."""
    if kind is RuntimeKind.CONDA and not version.endswith(conda.OF_PIP):
        return f"{prefix}/conda-meta/{name}-{version.replace(' ', '-')}.json"
    return f"{next(iter(site_packages(prefix)), prefix)}/{name}-{version.removesuffix(conda.OF_PIP)}.dist-info"


def _places(prefix: str, kind: RuntimeKind) -> dict[str, tuple[str, str]]:
    """Version and place of every installed package, by name."""
    if kind is RuntimeKind.CONDA:
        return conda.installed(prefix)
    return {str(d.metadata["Name"]): (d.version, str(getattr(d, "_path", prefix))) for d in distributions(prefix)}


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
        return (None if _is_hidden(file.path) else Problem(file.path, Damage.MISSING, package=file.package)), None
    try:
        if file.is_link:
            if file.link is not None and os.readlink(file.path) != file.link:
                return Problem(file.path, Damage.CHANGED, f"a link to {os.readlink(file.path)}", file.package), None
            if file.link is not None or os.path.exists(file.path):
                return None, before
            return Problem(file.path, Damage.BROKEN_LINK, os.readlink(file.path), file.package), None
        status = os.stat(file.path)
        size = status.st_size
        if file.size_bytes is not None and size != file.size_bytes:
            detail = f"{size} bytes instead of {file.size_bytes}"
            return Problem(file.path, Damage.CHANGED, detail, file.package), None
        for algorithm, checksum in (("sha256", file.sha256), ("md5", file.md5)):
            if checksum is not None and file_digest(file.path, algorithm) != checksum:
                is_edited = file.installed_ns is not None and status.st_mtime_ns > file.installed_ns
                fault = Damage.EDITED if is_edited else Damage.CHANGED
                return Problem(file.path, fault, "its checksum is another one", file.package), None
    except PermissionError:  # its owner's alone, such as /etc/shadow: other users cannot check it
        return None, None
    except OSError as error:
        return Problem(file.path, Damage.UNREADABLE, error.strerror or str(error), file.package), None
    return None, before if _signature(file.path) == before else None


def _changed_ns(path: str) -> int:
    """The time of the last change of a file; of its directory, if it was removed."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return os.lstat(path).st_ctime_ns


def _is_hidden(path: str) -> bool:
    """Whether this user may not see if a file exists."""
    try:
        os.lstat(path)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


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
                # python -m venv makes links to the interpreter, and activation scripts
                is_of_venv = os.path.islink(path) or name.lower().startswith("activate")
                if not directory.endswith(".dist-info") and not (directory == f"{prefix}/bin" and is_of_venv):
                    yield Problem(path, Damage.ADDED)


# -- what is remembered ------------------------------------------------------------------------------------------------


def _metadata(prefix: str, kind: RuntimeKind) -> list[list[Any]]:
    """The packages' own lists of files, by their signatures."""
    if kind is RuntimeKind.CONTAINER:
        return [[path, _signature(path)] for path in image_files.lists(prefix)]
    lists = glob.glob(f"{glob.escape(prefix)}/conda-meta/*.json") if kind is RuntimeKind.CONDA else []
    for site in site_packages(prefix):
        lists += glob.glob(f"{glob.escape(site)}/*.dist-info/RECORD")
    return [[path, _signature(path)] for path in sorted(lists)]


def _remember(memory: str, metadata: list[Any], sound: Mapping[str, list[int]]) -> None:
    """Remember files that have been unchanged long enough for a later change to get another time stamp."""
    latest = time.time_ns() - _RECENT_NS
    rested = {path: signature if signature and signature[3] < latest else [] for path, signature in sound.items()}
    record = {"schema": SCHEMA, "metadata": metadata, "files": rested}
    with suppress(OSError):  # another user's store: then every check is complete
        os.makedirs(os.path.dirname(memory), exist_ok=True)
        replace_file(memory, json.dumps(record, separators=(",", ":")))
