"""Directories that a job has renamed: an overlay only notes where they were, so they are filled before publication.

With ``redirect_dir=on`` (overlayfs.rst), rename(2) of a directory that was there before the job leaves in the layer a
directory with the attribute ``trusted.overlay.redirect``, which names its old place, and in it only what the job has
changed since. What it has not changed is linked into it here, so that all the rest of Forge meets a directory as if
the job had made it, and its deletion at the old place. An ordinary user has no such attributes: see
sandbox/renames.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from ..kernel.long_paths import reach
from ..kernel.tree import Directory, copy, copy_status, walk
from ..sandbox.filesystem.directories import attribute
from ..sandbox.filesystem.overlay import Layer
from ..spec.paths import STAGING_ELSEWHERE, STATE
from .file_version import status_of

_REDIRECT, _OPAQUE, _IMPURE = ("trusted.overlay.redirect", "trusted.overlay.opaque", "trusted.overlay.impure")


@dataclass(slots=True)
class Renamed:
    """The files that were linked."""

    times: dict[str, int] = field(default_factory=dict)
    """The times (ctime, ns) that files at their old places have only because of their second link."""
    links: set[str] = field(default_factory=set)  # in layers, which the job has not written


def fill_renamed(layers: Iterable[Layer]) -> Renamed:
    """Fill the directories that a job has renamed.

    Raises:
        OSError: if one cannot be filled.
    """
    found = Renamed()
    for layer in layers:
        # The kernel notes in a directory that something in it was copied from below: so it does with what is renamed.
        if layer.lower == layer.root and attribute(layer.upper, _IMPURE) is not None:
            _fill_in(layer, found)
    for path in found.times:
        found.times[path] = reach(os.lstat, path).st_ctime_ns  # after the last link: a file may have several names
    return found


def _fill_in(layer: Layer, found: Renamed) -> None:
    """Fill those in a layer."""
    behind: dict[tuple[Directory | None, str], str | None] = {(None, layer.upper): layer.root}
    for here in walk(layer.upper, open_up=True):
        own = behind.pop((here.up, here.name))
        for name in here.directories:
            near, path = here.near(name), f"{here.path}/{name}"
            lower = None if own is None or attribute(near, _OPAQUE) == b"y" else f"{own}/{name}"
            redirect = attribute(near, _REDIRECT)
            if redirect is not None:
                lower = _redirected(os.fsdecode(redirect), own, layer.root)
                _fill(path, lower, found, f"{layer.root}/{STATE}")
                os.removexattr(near, _REDIRECT)
                os.setxattr(near, _OPAQUE, b"y")
            behind[here, name] = lower


def _redirected(redirect: str, around: str | None, root: str) -> str:
    """The old place of a directory: from the root of the overlay, or the name of another one beside it."""
    return f"{root}{redirect}" if redirect.startswith("/") else f"{around}/{redirect}"


def _fill(directory: str, lower: str, found: Renamed, state: str) -> None:
    """Link all from below into a directory that the job has renamed, but for what it has changed or deleted there.

    Args:
        state: what is left out: it has the layer, which has the directory, and so on without end.
    """
    left, times = [(directory, lower)] if lower != state else [], list[tuple[str, str | os.stat_result]]()
    while left:
        upper, old = left.pop()
        names: list[str] = []
        with suppress(FileNotFoundError):  # another job has removed it
            names = reach(os.listdir, old)
        if names and (not times or times[-1][0] != upper):
            times.append((upper, reach(os.lstat, upper)))
        for name in names:
            here, below = f"{upper}/{name}", f"{old}/{name}"
            status, there = reach(os.lstat, below), status_of(here)
            if name == STAGING_ELSEWHERE or below == state:
                continue
            if there is None and stat.S_ISDIR(status.st_mode):
                reach(os.mkdir, here, mode=0o700)
                times.append((here, below))
                left.append((here, below))
            elif there is None:
                _link(here, below, found)
            elif stat.S_ISDIR(there.st_mode) and stat.S_ISDIR(status.st_mode) and _is_merged(here):
                left.append((here, below))
    for upper, like in reversed(times):
        if isinstance(like, str):
            reach(copy_status, like, upper, owners=True)
        else:
            reach(os.utime, upper, ns=(like.st_atime_ns, like.st_mtime_ns))


def _is_merged(directory: str) -> bool:
    """Whether the job saw the files of the directory of this name below, too."""
    return attribute(directory, _OPAQUE) != b"y" and attribute(directory, _REDIRECT) is None


def _link(here: str, below: str, found: Renamed) -> None:
    try:
        reach(os.link, below, here, follow_symlinks=False)
    except OSError:  # on another file system, or with too many links
        reach(copy, below, here)
    else:
        found.times[below] = 0
    found.links.add(here)
