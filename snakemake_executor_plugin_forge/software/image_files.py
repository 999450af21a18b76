"""The files of an image, as they were when it was unpacked; Debian's lists for a root directory of other makers.

An image has no list of its files. :func:`write_list` makes one at the end of a build, beside the environment.

Sources: ``/var/lib/dpkg/info/*.md5sums`` (dpkg(1), deb-md5sums(5)).
"""

from __future__ import annotations

import glob
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from ..kernel.tree import walk
from ..record.checksum import file_digest
from ..record.jsonfile import read_object, replace_file
from .host_fit import inside

SCHEMA = 1
LIST = "image-files.json"
_INFO = "var/lib/dpkg/info"


@dataclass(frozen=True, slots=True)
class Expected:
    """A package's expectation of one file."""

    path: str  # absolute
    sha256: str | None  # hexadecimal; None: the package lists only its name
    size_bytes: int | None
    is_link: bool = False
    link: str | None = None  # where the link leads; None: anywhere
    package: str = ""  # name and version
    md5: str | None = None  # hexadecimal: Debian's lists have no other
    installed_ns: int | None = None  # since when it should be so; who changes it later means to. None: nobody may


def write_list(root: str) -> None:
    """Write the list of an unpacked image: every file with its checksum, every link with its target.

    Raises:
        OSError: if it cannot be written.
    """
    files: list[str] = []
    links: dict[str, str] = {}
    for here in walk(root, quiet=True):
        for name in here.files:
            path = f"{here.path}/{name}"
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                links[os.path.relpath(path, root)] = os.readlink(path)
            elif stat.S_ISREG(mode):
                files.append(path)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="forge-list") as pool:
        listed = dict(pool.map(lambda path: (os.path.relpath(path, root), _entry(path)), files))
    record = {"schema": SCHEMA, "files": listed, "links": links}
    replace_file(_list_of(root), json.dumps(record, separators=(",", ":")), durable=True)


def _entry(path: str) -> list[object]:
    with suppress(PermissionError):  # not root, and the image's own mode forbids it to its owner
        return [file_digest(path, "sha256"), os.stat(path).st_size]
    return [None, os.stat(path).st_size]


def _list_of(root: str) -> str:
    return f"{os.path.dirname(root)}/{LIST}"


def _has_list(root: str) -> bool:
    return os.path.basename(root) == "env" and os.path.isfile(_list_of(root))


def lists(root: str) -> list[str]:
    """The files in which the files of an image are listed."""
    if _has_list(root):
        return [_list_of(root)]
    return sorted(glob.glob(f"{glob.escape(root)}/{_INFO}/*.md5sums"))


def expected(root: str) -> Iterator[Expected]:
    """Every file of an image that is listed.

    Raises:
        OSError, ValueError, KeyError: if a list cannot be read.
    """
    if not _has_list(root):
        yield from _of_debian(root)
        return
    record = read_object(_list_of(root))
    for path, (sha256, size) in record["files"].items():
        yield Expected(f"{root}/{path}", sha256, size, package="")
    for path, target in record["links"].items():
        yield Expected(f"{root}/{path}", None, None, is_link=True, link=target)


def _of_debian(root: str) -> Iterator[Expected]:
    """The files of Debian's packages that are there: slim images leave out what they like."""
    places: dict[str, str] = {}
    diverted = _diverted(root)
    for path in lists(root):
        package = os.path.basename(path).removesuffix(".md5sums").partition(":")[0]
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            installed = os.fstat(file.fileno()).st_mtime_ns
            for line in file:
                md5, _, name = line.rstrip("\n").partition("  ")
                directory, _, base = name.rpartition("/")
                if directory not in places:
                    places[directory] = inside(root, directory)
                place = f"{places[directory]}/{base}"
                if f"/{name}" not in diverted and os.path.isfile(place) and not os.path.islink(place):
                    yield Expected(place, None, None, package=package, md5=md5, installed_ns=installed)


def _diverted(root: str) -> frozenset[str]:
    """Paths that dpkg-divert(1) has given to another package."""
    with suppress(OSError), open(f"{root}/var/lib/dpkg/diversions", encoding="utf-8", errors="replace") as file:
        return frozenset(file.read().splitlines())
    return frozenset()


def owner(root: str, path: str) -> str:
    """The package to which a file of an image belongs, by Debian's lists; empty if none has it. It reads all lists."""
    name = path.removeprefix(root)
    wanted = {name, name.removeprefix("/usr")}  # /bin is a link to /usr/bin
    for listed in glob.glob(f"{glob.escape(root)}/{_INFO}/*.list"):
        with suppress(OSError), open(listed, encoding="utf-8", errors="surrogateescape") as file:
            if not wanted.isdisjoint(file.read().splitlines()):
                return os.path.basename(listed).removesuffix(".list").partition(":")[0]
    return ""
