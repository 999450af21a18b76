"""Confines of recovery: what a journal or a list of waiting outputs may name, whoever has written it.

==================================  ==================================================
a file that lies in                 may come to, and what is there may come to it
==================================  ==================================================
the staging of the working          a place in the working directory
directory
``R/.forge-staging``                a place in ``R``
the scratch of the same run, or     a place in the working directory, a private
a copy beside its place             directory, or one with layers of the run's jobs
==================================  ==================================================

Never to the state of Forge. Whatever else is named, nobody has written but who may write to the records: a job under
``open``, or on a host without namespaces.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property

from ..record import sound
from ..record.jsonfile import SPEC, load
from ..sandbox.filesystem.overlay import parts_of_layer
from ..spec.file_policy import PRIVATE_DIRECTORIES, below
from ..spec.paths import COPY, COPY_SIGN, STAGING, STAGING_ELSEWHERE, STATE, run_name
from ..spec.printable import few
from .half_published import half_published
from .journal import UNDECIDED, Journal, Move, UndecidedError, located, read


class Confines:
    """The confines for the jobs of one supervisor."""

    def __init__(self, workdir: str, directory: str) -> None:
        """Look at nothing yet.

        Args:
            workdir: the working directory of the run.
            directory: of the journal: a layer of the supervisor.
        """
        self.workdir = workdir
        parts = parts_of_layer(os.path.basename(directory).removeprefix(UNDECIDED))
        self._run = parts[0] if parts is not None else ""

    @property
    def run(self) -> str:
        """The name of the run; "" if the name of the layer is none."""
        return self._run.partition(COPY_SIGN)[0]

    def check(self, directory: str, found: Journal) -> None:
        """Check all that a journal names.

        Raises:
            UndecidedError: if any of it is outside; nothing was moved.
        """
        wrong = self.outside(found.moves)
        if found.lock not in ("", f"{self.workdir}/{STATE}/publish.lock"):
            wrong.append(found.lock)
        if wrong:
            said = f"it names files that no job of its run publishes: {_named(wrong)}"
            raise UndecidedError(errno.EPERM, said, directory)

    def outside(self, moves: Iterable[Move]) -> list[str]:
        """Return the places of moves that are outside."""
        wrong = (move for move in moves if not self.has_move(move))
        return [move.source if move.is_deletion else move.place for move in wrong]

    def has_move(self, move: Move) -> bool:
        """Whether a move is from staging to a place in its confines, or back, as a deletion."""
        staged, place = (move.place, move.source) if move.is_deletion else (move.source, move.place)
        if not (_is_plain(staged) and _is_plain(place)) or below(place, f"{self.workdir}/{STATE}"):
            return False
        if f"/{STAGING_ELSEWHERE}/" in f"{place}/":
            return False
        if os.path.basename(staged).startswith(COPY) and os.path.dirname(staged) == os.path.dirname(place):
            return self.has_place(place)
        root = self._root_of(staged)
        return self.has_place(place) if root == "" else root is not None and below(place, root)

    def has_place(self, place: str) -> bool:
        """Whether a job of the run could have outputs or logs there."""
        if not _is_plain(place):
            return False
        is_near = below(place, self.workdir) or os.path.dirname(place) in PRIVATE_DIRECTORIES
        return is_near or any(below(place, root) for root in self._roots)

    def is_staging(self, directory: str) -> bool:
        """Whether a directory is a layer or a scratch slot of the run, or in one."""
        return _is_plain(directory) and self._root_of(f"{directory}/") is not None

    def is_layer(self, upper: str, root: str) -> bool:
        """Whether files of the run are staged there for a directory."""
        around = self._root_of(f"{upper}/") if _is_plain(upper) else None
        return self.has_place(root) if around == "" else around == root

    def _root_of(self, staged: str) -> str | None:
        """Return the directory for which a file is staged; "": for any; None: it is not in staging."""
        for sign in (f"/{STAGING}/", f"/{STAGING_ELSEWHERE}/"):
            root, found, layer = staged.partition(sign)
            if found:
                parts = parts_of_layer(layer.partition("/")[0])
                is_own = parts is not None and parts[0] == self._run and STATE not in root
                return root if is_own and (sign != f"/{STAGING}/" or root == self.workdir) else None
        slot = staged.partition(f"/{run_name(self._run)}/")[2]
        return "" if self._run and slot.strip("/") else None

    @cached_property
    def _roots(self) -> frozenset[str]:
        """The directories with layers, of all plans of the run."""
        directory, found = f"{self.workdir}/{STATE}/runs/{self.run}", set[str]()
        for name in os.listdir(directory) if os.path.isdir(directory) else ():
            found.update(map(str, sound.spec(load(f"{directory}/{name}/{SPEC}") or {}).get("layers", ())))
        return frozenset(found - {"/"})


def in_words(directory: str, workdir: str) -> str:
    """Return what a user has to know about a directory of :func:`.journal.undecided`."""
    with suppress(OSError):
        found = read(directory)
        if found is not None:
            return _of_whole(directory, workdir, located(directory, found))
    outputs = half_published(workdir, directory)
    which = f"its outputs {few(outputs)}" if outputs else "its outputs"
    return (
        f"the journal of a job that was ended while it published is damaged, so it is unknown which of {which} are in "
        f"their places. Nothing was changed: one version of each is at its place, the other in {directory}. Run its "
        "rule again with --forcerun, or move the files yourself; then remove that directory."
    )


def _of_whole(directory: str, workdir: str, found: Journal) -> str:
    """Return what a user has to know if it is not the journal that is damaged."""
    wrong = Confines(workdir, directory).outside(found.moves)
    if wrong:
        return (
            f"the journal in {directory} names files that no job of its run publishes: {_named(wrong)}. Something "
            "else than Forge has written it, so nothing was changed. Find out what, then remove that directory."
        )
    moves = [move for move in found.moves if not move.is_deletion]
    name = os.path.basename(directory)
    aside = [move.source.replace(f"/{name.removeprefix(UNDECIDED)}/", f"/{name}/") for move in moves]
    kept = [move.place for move, path in zip(moves, aside, strict=True) if move.is_at(path)]
    if not kept:
        outputs = half_published(workdir, directory) or [move.place for move in moves]
        return (
            f"a job was ended while it published {few(outputs)}, and its files in {directory} are not those that its "
            "journal names (a copy of a working directory has other ones). So it is unknown which of its outputs are "
            "new; nothing was changed. Run its rule again with --forcerun, then remove that directory."
        )
    return (
        f"a job was ended while it published, and before that could be completed, other versions have been made of its "
        f"outputs. These stay; those of that job are in {directory}: {few(kept)}. Remove it when you do not need them."
    )


def _named(wrong: Iterable[str]) -> str:
    return ", ".join(sorted(set(wrong))[:3])


def _is_plain(path: str) -> bool:
    return os.path.normpath(path) == path and not path.startswith("//")
