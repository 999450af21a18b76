"""The definition of what pip installs: requirements, the files that they include, and packages on this host.

A relative path means another package in another directory, and what is at a path may change: neither is in the text.

Source: pip's documentation, "Requirements File Format"; ``_looks_like_path()`` in pip/_internal/req/constructors.py.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from ..kernel.tree import walk
from ..record.checksum import file_digest
from .store import source_text

_INCLUDED = ("-r", "--requirement", "-c", "--constraint")
_EDITABLE = ("-e", "--editable")
_PLACES = ("-f", "--find-links", "-i", "--index-url", "--extra-index-url")
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")
_COMMENT = re.compile(r"(^|\s+)#.*$")
_MADE = ("build", "dist", "__pycache__")
"""Directories in a project that builds make."""


def describe(text: str, path: str, where: str) -> dict[str, str]:
    """Everything but the text itself on which it depends, by name.

    Args:
        path: of the file with this text; the paths of included files begin beside it.
        where: the directory in which pip is run, where the paths of packages begin.

    Raises:
        UsageError: for an included file that cannot be read.
    """
    found: dict[str, str] = {}
    seen = [os.path.normpath(path)]
    for line in _lines(text):
        _add(line, os.path.dirname(path), where, found, seen)
    return found


def _add(line: str, directory: str, where: str, found: dict[str, str], seen: list[str]) -> None:
    option, value = _parts(line)
    if option in _INCLUDED:
        path = os.path.normpath(os.path.join(directory, value))
        if path in seen:
            return
        seen.append(path)
        text = source_text(path, "The requirements")
        found[f"requirements {len(seen) - 1}"] = text
        for inner in _lines(text):
            _add(inner, os.path.dirname(path), where, found, seen)
        return
    path = _local(value, is_path=option != "") if option in ("", *_EDITABLE, *_PLACES) else ""
    if not path:
        return
    if not os.path.isabs(path):
        found["directory"] = where
    if option == "":
        found |= {f"content of {path}": content for content in _content(os.path.join(where, path), where)}


def _lines(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", "").splitlines():
        if words := _COMMENT.sub("", line).strip():
            yield words


def _parts(line: str) -> tuple[str, str]:
    """An option and its value; a requirement has the option ""."""
    if not line.startswith("-"):
        return "", line
    if line.startswith("--"):
        option, _, value = line.replace("=", " ", 1).partition(" ")
    else:
        option, value = line[:2], line[2:]
    try:
        words = shlex.split(value)
    except ValueError:  # pip will say so
        words = []
    return option, words[0] if words else ""


def _local(text: str, *, is_path: bool) -> str:
    """The path of a package or a place on this host; empty for others.

    Args:
        is_path: whether what is no address can only be a path.
    """
    text = text.partition(";")[0].strip()
    if " @ " in text or "file:" in text:
        address = urlsplit(text.rpartition("@")[2].strip() if " @ " in text else text)
        return unquote(address.path) if address.scheme == "file" else ""
    path = re.sub(r"\[[^]]*\]$", "", text.split(" --")[0].strip())  # without extras
    looks_like_path = is_path or "/" in path or path.startswith(".") or path.endswith(_ARCHIVES)
    return path if looks_like_path and "://" not in path else ""


def _content(path: str, where: str) -> Iterator[str]:
    """The checksum of an archive, or of a project's sources; not of a project around ``where``: results lie in it."""
    if os.path.isfile(path):
        yield file_digest(path, "sha256")
    elif os.path.isdir(path) and not f"{os.path.realpath(where)}/".startswith(f"{os.path.realpath(path)}/"):
        total = hashlib.sha256()
        for here in walk(path, quiet=True, through_link=True):
            here.directories[:] = sorted(d for d in here.directories if not _is_made(d))
            for file in sorted(f"{here.path}/{name}" for name in here.files):
                if os.path.isfile(file):
                    entry = f"{os.path.relpath(file, path)} {file_digest(file, 'sha256')}\n"
                    total.update(entry.encode("utf-8", "surrogateescape"))
        yield total.hexdigest()


def _is_made(directory: str) -> bool:
    return directory.startswith(".") or directory in _MADE or directory.endswith(".egg-info")
