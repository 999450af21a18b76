"""Symbolic links that a job leaves undeclared: none may carry outputs of later jobs out of the working directory.

A link is kept if it leads to something in the working directory, or to an existing file elsewhere (``ln -s
/data/ref.fa``): nothing can be written through that, because jobs write to layers. See docs/decisions/0029.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from ..kernel.long_paths import reach
from ..record.checksum import TIMESTAMP
from ..spec.file_policy import PRIVATE_DIRECTORIES, ancestors, below
from ..spec.job import Files, LaunchSpec
from ..spec.verdict import Harm, HarmKind
from .declared import Declared
from .journal import Move
from .layer_files import is_whiteout

_MOST_LINKS = 40  # of one path: path_resolution(7)


def harm_of(link: str, place: str, roots: Sequence[str], declared: Declared, *, allow: bool) -> Harm | None:
    """Return the reason against publishing a link; None if there is none.

    Args:
        link: where it is now.
        place: where it is to be, with no link in its directory.
        roots: the working directory, and other directories of outputs of its job.
        declared: the outputs of the run.
        allow: whether the rule may leave links to other directories, if no output goes through them.
    """
    target = os.path.join(os.path.dirname(place), os.readlink(link))
    if declared.has_below(place):
        real = os.path.realpath(target)
        stays = any(below(real, root) for root in roots) and _stays(target, place, roots)
        is_theirs = declared.has_below(real) or declared.at(real) or declared.around(real)  # outputs would meet there
        return None if stays and not is_theirs else Harm(place, HarmKind.CARRIES)
    if allow or _stays(target, place, roots) or _is_file(target):
        return None
    return Harm(place, HarmKind.LEADS_OUT)


def led_elsewhere(spec: LaunchSpec, declared: Declared) -> Iterator[str]:
    """Yield, in sentences, the outputs that a link, made since the run began, leads to the place of another rule's."""
    for target in spec.files.targets:
        if target.path != os.path.normpath(os.path.join(spec.workdir, target.name)):
            rules = [owner.rule for owner in declared.at(target.path)]
            if rules and spec.rule not in rules:
                yield f"{target.name} is, by a link on the way to it, {target.path}, an output of rule {rules[0]}"


def leads_to_own(text: str, place: str, files: Files) -> str | None:
    """Name what a link is, if it leads to what only jobs see (in $HOME, caches or private /tmp), or to what none sees.

    Snakemake would show what is hidden from jobs in a report, or upload it to a storage.

    Args:
        text: of the link.
        place: where it is to be.
        files: what the job may see.
    """
    target = os.path.normpath(os.path.join(os.path.dirname(place), text))
    if files.hidden and any(below(os.path.realpath(target), os.path.realpath(path)) for path in files.hidden):
        return f"a link to {target}, which is hidden from jobs"
    if any(below(target, root) for root in (*files.layers, *files.writable)) or os.path.lexists(target):
        return None
    kept = [path for path in (files.home, *files.caches) if path is not None]
    if any(below(target, path) for path in kept):
        there = target
        while not os.path.isdir(there):
            there = os.path.dirname(there)
        allow = f'defaults: {{paths: {{write: ["{there}"]}}}}'
        return (
            f"a link to {target}, which only this workflow has in its home (use cp -L, or add to forge.yaml: {allow})"
        )
    if any(below(target, path) for path in PRIVATE_DIRECTORIES):
        return f"a link to {target}, which goes with the job (use cp -L)"
    return None


def cut_off(shadow: str, names: Iterable[str], workdir: str) -> Iterator[str]:
    """Replace links in a shadow directory behind which Snakemake would move files away, or make one; yield sentences.

    It moves outputs and logs to their places by path, and touches directories, when the job has ended; logs also if the
    job has failed.

    Args:
        shadow: the directory, with links in it that Snakemake has made: to the same place in the working directory.
        names: of outputs and logs.
    """
    for name in names:
        path, stamp = shadow, f"{shadow}/{name}/{TIMESTAMP}"
        for part in os.path.dirname(os.path.normpath(name)).split("/") if not os.path.isabs(name) else ():
            path = f"{path}/{part}".rstrip("/")
            there = os.path.realpath(path)
            own = os.path.realpath(f"{workdir}{path.removeprefix(shadow)}")
            if os.path.islink(path) and not below(there, shadow) and there != own:
                os.unlink(path)
                os.mkdir(path)
                yield f"{name} is behind a link to {there}, from which Snakemake would move it away"
        if os.path.islink(stamp):
            os.unlink(stamp)
            yield f"{name}/{TIMESTAMP} is a link, and Snakemake would make the file behind it"


class Afterwards:
    """The files at their places once a job's have been published, or moved from its shadow directory."""

    def __init__(self, moves: Iterable[Move], gone: Iterable[str] = (), shadow: str | None = None) -> None:
        """Remember what will be where.

        Args:
            moves: what is brought to its place.
            gone: what is deleted.
            shadow: a directory of which nothing else stays.
        """
        self._sources = {move.place: move.source for move in moves}
        self._gone = {*gone, shadow}
        self._shadow = shadow

    def text_at(self, place: str) -> str | None:
        """Return the text of a link that will be there; None if that is no link.

        Args:
            place: of an output, with no link in its directory.
        """
        with suppress(OSError):  # it is missing
            return self._link_at(place)
        return None

    def _link_at(self, place: str) -> str | None:
        """The text of what is there, if that is a link. Snakemake makes absolute links in a shadow directory relative.

        Raises:
            OSError: if nothing is there.
        """
        source = self._source(place)
        if not stat.S_ISLNK(reach(os.lstat, source).st_mode):
            return None
        text: str = reach(os.readlink, source)
        is_moved = self._shadow is not None and place in self._sources
        return os.path.relpath(text, self._shadow) if is_moved and os.path.isabs(text) else text

    def behind(self, path: str) -> str | None:
        """Return the present path of what a path will lead to, None if that is nothing: path_resolution(7)."""
        here, left, links = "", path.split("/")[::-1], 0
        try:
            while left:
                part = left.pop()
                if part in ("", "."):
                    continue
                here = os.path.dirname(here).rstrip("/") if part == ".." else f"{here}/{part}"
                if here in ("/dev", "/proc"):  # links that lead to open files: proc(5)
                    found = "/".join((here, *left[::-1]))
                    return found if os.path.exists(found) else None
                text = self._link_at(here) if here else None
                if text is not None:
                    links += 1
                    if links > _MOST_LINKS:
                        return None
                    here = "" if os.path.isabs(text) else os.path.dirname(here).rstrip("/")
                    left += text.split("/")[::-1]
            return self._source(here or "/")
        except OSError:
            return None

    def _source(self, place: str) -> str:
        """The present path of what will be there.

        Raises:
            FileNotFoundError: if it will not be there.
        """
        around = (place, *ancestors(place))
        for parent in around:
            if (source := self._sources.get(parent)) is not None:
                staged = f"{source}{place.removeprefix(parent)}"
                with suppress(OSError):
                    if not is_whiteout(reach(os.lstat, staged)):
                        return staged
        if not self._gone.isdisjoint(around):
            raise FileNotFoundError(place)
        return place


def _stays(target: str, place: str, roots: Sequence[str]) -> bool:
    """Whether a target is in one of the roots, by its text alone: what it leads to may be made in the same step.

    ``name/..`` does not count, because the name may be a link, whose parent is elsewhere.
    """
    rest = target.removeprefix(f"{os.path.dirname(place)}/").split("/")
    while rest and rest[0] in ("..", ".", ""):
        rest.pop(0)
    return ".." not in rest and any(below(os.path.normpath(target), root) for root in roots)


def _is_file(target: str) -> bool:
    with suppress(OSError, ValueError):
        return not stat.S_ISDIR(os.stat(target).st_mode)
    return False
