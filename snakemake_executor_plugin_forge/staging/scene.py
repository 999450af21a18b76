"""The facts about a job from which its undeclared changes follow; they can wait in a file for a run that adopts it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .contents import begin_alike, is_changed_under_locks
from .owners import Owners


class LayerPlace(NamedTuple):
    """A layer, as a JSON list in files."""

    root: str
    upper: str
    shows_root: bool  # False under strict: the job did not see what it has written over


@dataclass(frozen=True, slots=True)
class Scene:
    """The facts from which the undeclared changes of a job follow."""

    rule: str
    workdir: str
    state: str  # the state directory
    begin_ns: int  # when the job was started, by the clock of the file system
    layers: tuple[LayerPlace, ...]
    targets: tuple[str, ...]
    shown: tuple[str, ...]  # mount points for inputs are not the job's
    outputs: tuple[str, ...]  # as the rule has them
    allow: bool = False  # changes to files that are nobody's are carried out, too
    appended: Mapping[str, int] = field(default_factory=dict)  # files only appended to: size before; 0: not there
    begun: Mapping[str, int] = field(default_factory=dict)  # files written, then appended to: size in between
    linked: Mapping[str, int] = field(default_factory=dict)
    """Files in directories that it has renamed, with the times (ctime, ns) that they have only because of that."""
    locks: bool = False  # the job relied on a lock that kept no other job out
    inputs: tuple[str, ...] = ()  # of which the job can change what its layer shows
    declared: str = ""  # the file with the outputs of the run: see staging/declared.py

    def owners(self) -> Owners:
        """The knowledge about files in the working directory, as it is now."""
        return Owners(self.workdir, self.state, self.outputs, self.rule, self.declared)

    def size_before(self, upper: str, path: str) -> int | None:
        """Return the size of what a file had before the job appended to it; None if it has done something else, too.

        A job that finds no table writes its header and appends a line: another one may have done so meanwhile.
        """
        begun = self.begun.get(path, 0)
        if path not in self.appended and begun and begin_alike(upper, path, begun):
            return begun
        return self.appended.get(path)

    def is_new(self, path: str, now: os.stat_result) -> bool:
        """Whether a file was made or changed at its place since the job began: its time tells (ctime)."""
        # An interrupted publication has changed the time of both names of a linked file; a new file has one name.
        same = self.linked.get(path) == now.st_ctime_ns or (now.st_nlink > 1 and now.st_mtime_ns < self.begin_ns)
        return now.st_ctime_ns >= self.begin_ns and not (path in self.linked and same)

    def relied_on_lock(self, upper: str, path: str) -> bool:
        """Whether the job has changed a file in the belief that no other one does so meanwhile."""
        return not self.allow and (self.locks or is_changed_under_locks(upper, path))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scene:
        """Read what was written of ``asdict(scene)``.

        Raises:
            TypeError, ValueError, KeyError: if it is damaged.
        """
        names = ("targets", "shown", "outputs", "inputs")
        layers = tuple(LayerPlace(*layer) for layer in data["layers"])
        return cls(**{**data, "layers": layers} | {name: tuple(data.get(name, ())) for name in names})
