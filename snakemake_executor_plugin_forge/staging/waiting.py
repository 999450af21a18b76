"""The outputs and logs of a job that wait to be published by a run that wants them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..record.jsonfile import STAGED, read_object, replace_file
from ..spec.errors import UnfitError
from ..spec.job import RECORD_SCHEMA
from . import journal
from .confines import Confines
from .file_version import NOTHING, FileVersion, as_path, file_version
from .interrupted import recover, recovering
from .journal import PUBLISHED, DamagedError, Journal, Move
from .merge import ContestedError, lock_of, merging
from .publish import publish, sync
from .scene import Scene
from .writable import writable


@dataclass(frozen=True, slots=True)
class WaitingOutputs:
    """The outputs and logs of a job that wait to be published."""

    moves: tuple[Move, ...]
    logs: tuple[Move, ...]
    stale_logs: tuple[str, ...]
    before: Mapping[str, FileVersion | None]  # versions at the places when the job started
    directories: tuple[str, ...]  # contain all of this, and are removed after the publication
    journal: str  # directory
    undeclared: Scene | None = None  # what it has done undeclared is decided at the publication

    def save(self, job_dir: str) -> None:
        """Write this, and all files that it names, to the disk.

        Raises:
            OSError: if that is not possible.
        """
        sync(list(self.moves))
        data = json.dumps({"schema": RECORD_SCHEMA, **asdict(self)})
        replace_file(f"{job_dir}/{STAGED}", data, durable=True)

    @classmethod
    def read(cls, job_dir: str) -> WaitingOutputs:
        """Read what :meth:`save` has written.

        Raises:
            UnfitError: if the file is missing or damaged.
        """
        try:
            data = read_object(f"{job_dir}/{STAGED}")
            return cls(
                moves=tuple(map(Move.from_json, data["moves"])),
                logs=tuple(map(Move.from_json, data["logs"])),
                stale_logs=tuple(map(as_path, data["stale_logs"])),
                before={
                    as_path(place): None if found is None else FileVersion.from_json(found)
                    for place, found in data["before"].items()
                },
                directories=tuple(map(as_path, data["directories"])),
                journal=as_path(data["journal"]),
                undeclared=Scene.from_json(data["undeclared"]) if data.get("undeclared") else None,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UnfitError(f"{job_dir}/{STAGED} cannot be read: {error}") from error

    def published(self) -> bool:
        """Whether all outputs, and what was not declared, are at their places."""
        if self.undeclared is not None:
            return os.path.exists(f"{self.journal}/{PUBLISHED}")
        return all(move.is_at(move.place) for move in self.moves)

    def is_begun(self) -> bool:
        """Whether a process has begun to publish the outputs, and perhaps finished."""
        return journal.exists(self.journal) or self.published()

    def recover(self, confines: Confines) -> list[str]:
        """Complete the publication if it was begun: see :func:`.interrupted.recover`. This knows what its journal had.

        Raises:
            UndecidedError: if that cannot be decided; its files are where the error says.
            OSError: if the publication cannot be completed.
        """
        with recovering(confines.workdir, self.directories):
            try:
                return recover(self.journal, confines)
            except DamagedError:
                if self.undeclared is not None:  # what led to it was in the journal alone
                    raise
                before = {place: NOTHING if found is None else found for place, found in self.before.items()}
                journal.write(self.journal, Journal(tuple(m._replace(was=before.get(m.place)) for m in self.moves)))
                return recover(self.journal, confines)

    def check(self) -> None:
        """Check that the outputs can be published now.

        Raises:
            UnfitError: if one is missing, or another process has changed its place.
        """
        with writable(self.moves):
            missing = [move for move in self.moves if not move.is_at(move.source)]
        if missing:
            raise UnfitError(f"{missing[0].source}, which was staged for {missing[0].place}, is missing")
        for place, before in self.before.items():
            if file_version(place) != before:
                raise UnfitError(f"{place} was changed by another process since the job started")

    def publish(self) -> None:
        """Bring all of this to its places, but for the logs.

        Raises:
            UnfitError: if what was not declared cannot be published any more.
            OSError: if that failed; all places are then as they were.
        """
        if self.undeclared is None:
            with writable(self.moves):
                publish(self.moves, self.journal)
            return
        scene = self.undeclared
        try:
            with writable(self.moves):
                publish(self.moves, self.journal, merging(scene), lock=lock_of(scene), noted=True)
        except ContestedError as error:
            raise UnfitError(f"undeclared changes of the job cannot be kept any more: {error}") from error
