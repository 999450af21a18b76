"""The files of one attempt: what was there before it, what it wrote, and what becomes of that.

::

    FilesBefore ── the job ──► WrittenFiles ── verdict ──► Disposal: published, staged, kept beside or discarded
"""

from __future__ import annotations

import enum
import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from ..kernel.open_for_writing import held
from ..kernel.tree import remove_tree
from ..sandbox.filesystem.overlay import Layer, layer_name, layer_of, staging_of
from ..sandbox.filesystem.scratch import Scratch
from ..sandbox.inside import Inside
from ..spec import words
from ..spec.job import LaunchSpec, Product, TargetKind, Undeclared
from ..spec.verdict import Outcome
from . import salvage
from .checks import Inspection, empty, inspect
from .collect import Collected, collect, discarded, publish_logs, undeclared_reads, unfit_link
from .declared import DECLARED, Declared
from .file_version import FileVersion, file_version, input_version
from .journal import Move
from .links import Afterwards, cut_off, led_elsewhere
from .merge import lock_of, merging
from .owners import mark
from .publish import publish, sync
from .renamed import Renamed, fill_renamed
from .scene import LayerPlace, Scene
from .undeclared import decide, in_words
from .waiting import WaitingOutputs

_TICK_NS = 100_000_000  # more than a tick of that clock, and less than clocks of two hosts matter
_FILE_CLOCK = 5  # CLOCK_REALTIME_COARSE of clock_gettime(2), from which file systems take their times


def file_time_ns(directory: str) -> int:
    """The present time by the clock that gives files near a directory their times: on NFS that of the server.

    Where both are this host's, the coarse one counts, of which no file that is changed from now on is ahead.
    """
    here = time.clock_gettime_ns(_FILE_CLOCK)
    try:
        os.utime(directory)
        there = os.stat(directory).st_ctime_ns
    except OSError:
        return here
    return here if 0 <= there - here < _TICK_NS else there


class Disposal(enum.Enum):
    """A use for the files that an attempt has written."""

    PUBLISH = "outputs and logs go to their places"
    STAGE = "all of it waits for a run that wants it"
    KEEP_BESIDE = "logs go to their places, outputs into the job directory"
    DISCARD = "logs go to their places"
    LEAVE = "another process may be publishing them"


def disposal(outcome: Outcome, *, detached: bool, keep_incomplete: bool) -> Disposal:
    """Decide what becomes of an attempt's files.

    Args:
        outcome: of the attempt. ``lost``: nobody knows whether this supervisor may publish.
        detached: whether it has ended without Snakemake: only a later run may say that its outputs still belong there.
        keep_incomplete: whether the outputs of failed jobs are kept.
    """
    match outcome:
        case Outcome.LOST:
            return Disposal.LEAVE
        case Outcome.SUCCEEDED:
            return Disposal.STAGE if detached else Disposal.PUBLISH
        case _:
            return Disposal.KEEP_BESIDE if keep_incomplete else Disposal.DISCARD


@dataclass(frozen=True, slots=True)
class FilesBefore:
    """The places where an attempt writes, and the files that were there when it began."""

    spec: LaunchSpec
    layers: tuple[Layer, ...]
    scratch: Scratch
    outputs: Mapping[str, FileVersion | None]  # at the places of its outputs
    inputs: Mapping[str, FileVersion | None]
    begin_ns: int  # by the clock of file systems
    roots: Mapping[str, Layer]  # the layers by their directories

    @classmethod
    def begin(cls, spec: LaunchSpec, inside: Inside) -> FilesBefore:
        """Hide the present versions of the outputs from the job, and remember what they and the inputs are.

        Raises:
            OSError: if they cannot be hidden.
        """
        outputs: dict[str, FileVersion | None] = {}
        if spec.files.staged:
            inside.stage(spec.files)
            outputs = {t.path: file_version(t.path) for t in spec.files.targets if t.kind is TargetKind.OUTPUT}
        begin_ns = file_time_ns(spec.job_dir)
        inputs = {path: input_version(path) for path in spec.checks.inputs}
        return cls(spec, inside.layers, inside.scratch, outputs, inputs, begin_ns, inside.roots)

    def written(
        self, appended: Mapping[str, int], begun: Mapping[str, int], *, locks: bool, failed: bool = False
    ) -> WrittenFiles:
        """Find out what the job has written to its layers.

        Args:
            appended: files that it has opened only to append to them, with their sizes in bytes before; 0 for new ones.
            begun: files that it has written and then appended to, with their sizes in bytes in between.
            locks: whether it has locked files that other jobs can find.
            failed: whether it is known already that nothing of it will be published.

        Raises:
            OSError: if a layer cannot be read.
        """
        spec = self.spec
        if not spec.files.staged:
            return WrittenFiles(self, Collected(rejected=[*self._shadowed_nowhere()]))
        for layer in self.layers:
            layer.reset_root()
        layers = self.layers[: len(spec.files.layers)]
        renamed = Renamed() if failed else fill_renamed(layers)
        found = collect(spec.files, layers)
        others = [path for path, before in self.outputs.items() if file_version(path) != before]
        found.rejected += [f"{path} was changed by somebody else while the job ran" for path in others]
        found.rejected += led_elsewhere(spec, Declared(self._declared))
        if spec.checks.shadow is not None:
            found.rejected += cut_off(spec.checks.shadow, (*spec.outputs, *spec.logs), spec.workdir)
        scene = self._scene(appended, begun, renamed.times, locks=locks)
        found.undeclared = decide(scene)
        if not failed:
            found.rejected += self._unfit_links(found)
            found.rejected += self._shadowed_nowhere()
        found.undeclared.left_out.extend(discarded(layers))
        found.undeclared.left_out += [in_words(self._place_of(path)) for path in found.private]
        return WrittenFiles(self, found, scene, frozenset(renamed.links))

    def _unfit_links(self, found: Collected) -> Iterator[str]:
        """Yield, in sentences, the outputs that are links to nothing, or to what their rule does not promise."""
        if not found.links:
            return
        kept = self.spec.files.undeclared in (Undeclared.KEEP, Undeclared.ALLOW)
        gone = [move.source for move in found.undeclared.removals] if kept else ()
        after = Afterwards([*(found.extra if kept else ()), *found.outputs, *self.carried()], gone)
        for target in found.links:
            text = after.text_at(target.path)
            if text is not None and (problem := unfit_link(target, text, after.behind(target.path))) is not None:
                yield f"{target.name} is {problem}"

    def _shadowed_nowhere(self) -> Iterator[str]:
        """Yield, in sentences, the outputs that are links to nothing once Snakemake has moved them to their places."""
        shadow = self.spec.checks.shadow
        if shadow is None:
            return
        found = {}
        for name in self.spec.outputs:
            directory, base = os.path.split(os.path.join(self.spec.workdir, name))
            place = os.path.join(os.path.realpath(directory), base)
            path = os.path.join(shadow, name)
            if os.path.realpath(path) != os.path.realpath(place) and os.path.lexists(path):
                found[name] = Move.of(path, place)
        after = Afterwards(found.values(), shadow=shadow)
        for name, move in found.items():
            if after.behind(move.place) is None:
                text = after.text_at(move.place)
                yield f"{name} is a link to {text}, which would not exist outside of the shadow directory"

    def carried(self) -> list[Move]:
        """Return the moves of outputs in private temporary directories."""
        inner = ((self.scratch.inner_path(path), path) for path in self.spec.carried)
        return [Move.of(source, path) for source, path in inner if source is not None and os.path.lexists(source)]

    def _scene(
        self, appended: Mapping[str, int], begun: Mapping[str, int], linked: Mapping[str, int], *, locks: bool
    ) -> Scene:
        spec, files = self.spec, self.spec.files
        layers = self.layers[: len(files.layers)]
        return Scene(
            rule=spec.rule,
            workdir=spec.workdir,
            state=os.path.dirname(os.path.dirname(os.path.dirname(spec.job_dir))),
            begin_ns=self.begin_ns,
            layers=tuple(LayerPlace(layer.root, layer.upper, layer.lower == layer.root) for layer in layers),
            targets=tuple(target.path for target in files.targets),
            shown=(*files.mounted_inputs, *files.visible, *files.live),
            inputs=files.compared_inputs,
            outputs=spec.outputs,
            declared=self._declared,
            allow=files.undeclared is Undeclared.ALLOW,
            appended=appended,
            begun=begun,
            linked=linked,
            locks=locks,
        )

    @property
    def _declared(self) -> str:
        return f"{os.path.dirname(self.spec.job_dir)}/{DECLARED}"

    def inputs_changed(self) -> tuple[str, ...]:
        """Return the inputs that somebody has changed since."""
        changed = (path for path, before in self.inputs.items() if before and input_version(path) != before)
        return tuple(self.named(path) for path in changed)

    def named(self, path: str) -> str:
        """Return a path as the author of the rule would write it."""
        return path.removeprefix(self.spec.workdir + "/") or "."

    def staged(self, path: str) -> str:
        """Return where a file of the job is before it is published.

        Args:
            path: absolute, or relative to the working directory.
        """
        path = os.path.join(self.spec.workdir, path)
        layer = layer_of(path, self.roots)
        return path if layer is None else f"{layer.upper}/{path.removeprefix(layer.root + '/')}"

    def _place_of(self, staged: str) -> str:
        """Return where a file in a layer is to be."""
        layer = next((layer for layer in self.layers if staged.startswith(f"{layer.upper}/")), None)
        return staged if layer is None else f"{layer.root}{staged.removeprefix(layer.upper)}"

    def file_of_size(self, size: int) -> str | None:
        """Return an output that has just that many bytes."""
        for path in self.spec.outputs:
            with suppress(OSError):
                if os.lstat(self.staged(path)).st_size == size:
                    return path
        return None


@dataclass(frozen=True, slots=True)
class WrittenFiles:
    """The files that an attempt has written, when all of its processes are dead."""

    before: FilesBefore
    found: Collected
    scene: Scene | None = None  # of what it has done undeclared
    linked: frozenset[str] = frozenset()  # files in layers that it has only renamed, with their directories

    def undeclared_reads(self, opened: set[str]) -> tuple[str, ...]:
        """Return, of the files that the job has opened, those that its rule does not declare and others have made."""
        made = {move.place for move in self.found.extra}
        return undeclared_reads(self.before.spec.files, self.before.spec.workdir, opened - made)

    def inspect(self, seconds: float) -> Inspection:
        """Check the formats of the outputs, and compute their checksums.

        Args:
            seconds: how long the job took, which bounds how long this takes.
        """
        checks = self.before.spec.checks
        found = inspect(checks, self._places_of, seconds)
        made = [empty(product) for product in checks.outputs if product.path in self.found.untouched]
        return replace(found, outputs=(*found.outputs, *made))

    def held(self, frozen: bool | None) -> tuple[str, ...]:
        """Return the files and directories that are to be published, and to which a process of another job can write.

        Args:
            frozen: see :meth:`.inside.Inside.freeze`.
        """
        if not self.before.layers:
            return ()
        moves = self._moves()
        if frozen:  # but for what is carried, which is in no layer
            moves = moves[len(self.found.outputs) :]
        elif self._kept_scene() is not None:
            moves += self.found.undeclared.moves
        places = {move.source: move.place for move in moves}
        found = tuple(self.before.named(places[path]) for path in held(places))
        return found or (("a file that it wrote or deleted",) if frozen is False else ())

    def carry_out(self, decided: Disposal) -> tuple[str, ...]:
        """Do with the files what is decided.

        Returns:
            What went wrong with the logs, and what was kept beside the record, in sentences.

        Raises:
            OSError: if the outputs cannot be published (then none is), staged or kept.
            ContestedError: if what was not declared cannot be published; nothing but the logs is then.
        """
        has_logs = decided in (Disposal.PUBLISH, Disposal.KEEP_BESIDE, Disposal.DISCARD)
        problems = publish_logs(self.found, self.before.spec.rule) if has_logs else ()
        if decided in (Disposal.PUBLISH, Disposal.STAGE):
            for path in self.found.private:
                if not remove_tree(path):
                    raise OSError(errno.EACCES, "it cannot be removed, and must not be published", path)
            mark(self.found.benchmarks, self.before.spec.rule)  # Snakemake keeps no record of them
        match decided:
            case Disposal.PUBLISH:
                scene, moves = self._kept_scene(), [*self._moves(), *self._removals()]
                if scene is None:
                    problems += publish(moves, self._journal_directory())
                else:
                    problems += publish(moves, self._journal_directory(), merging(scene), lock=lock_of(scene))
            case Disposal.STAGE:
                self._stage()
            case Disposal.KEEP_BESIDE:
                problems += self._keep_outputs()
            case Disposal.DISCARD | Disposal.LEAVE:
                pass
        if decided in (Disposal.KEEP_BESIDE, Disposal.DISCARD):
            problems += tuple(
                f"the log {log} is a directory, which is published after a success only"
                for log in self.found.log_directories
            )
            problems += self.keep_undeclared()
        return problems

    def _keep_outputs(self) -> tuple[str, ...]:
        outputs = [(move.source, self.before.named(move.place)) for move in self.found.outputs]
        kept = salvage.keep(outputs, f"{self.before.spec.job_dir}/{salvage.INCOMPLETE}")
        return words.kept("what it wrote of its outputs", kept.directory, kept.places, kept.left_out)

    def keep_undeclared(self) -> tuple[str, ...]:
        """Keep what a failed job has written undeclared, such as the logs of its tools; that it fails is only noted."""
        files, before = self.before.spec.files, self.before
        try:
            found = salvage.undeclared(files, before.layers[: len(files.layers)])
            kept = salvage.keep(
                [(source, before.named(place)) for source, place in found if source not in self.linked],
                f"{before.spec.job_dir}/{salvage.UNDECLARED}",
                salvage.MOST_BYTES,
                salvage.MOST_FILES,
            )
        except OSError as error:
            return (f"not all that it wrote undeclared could be kept: {error.strerror}",)
        return words.kept("what it wrote undeclared", kept.directory, kept.places, kept.left_out)

    def kept_directories(self) -> tuple[str, ...]:
        """Return the directories that hold what is staged."""
        before, files = self.before, self.before.spec.files
        found = [layer.directory for layer in before.layers[: len(files.layers)]]
        if files.apart or before.spec.carried:
            found.append(before.scratch.slot)
        return tuple(dict.fromkeys((*found, self._journal_directory())))

    def _stage(self) -> None:
        found = self.found
        moves, logs, stale = tuple(self._moves()), tuple(found.logs), tuple(found.stale_logs)
        journal = self._journal_directory()
        waiting = WaitingOutputs(
            moves, logs, stale, self.before.outputs, self.kept_directories(), journal, self._kept_scene()
        )
        sync(self.found.undeclared.moves)
        waiting.save(self.before.spec.job_dir)

    def _kept_scene(self) -> Scene | None:
        """Return the scene if anything is published that is not declared."""
        is_kept = self.before.spec.files.undeclared in (Undeclared.KEEP, Undeclared.ALLOW)
        return self.scene if is_kept and self.found.undeclared else None

    def _moves(self) -> list[Move]:
        """Return the moves of the outputs."""
        return [*self.found.outputs, *self.before.carried()]

    def _removals(self) -> Iterator[Move]:
        """Yield the removals of the ``touch()`` outputs of an earlier run: Snakemake would keep their content."""
        for number, path in enumerate(self.found.untouched):
            layer = layer_of(path, self.before.roots)
            if layer is not None:
                inode = os.lstat(path).st_ino
                yield Move(path, f"{layer.trash}/t{number}", inode, merge=True, is_deletion=True)

    def _places_of(self, product: Product) -> list[str]:
        """Return where an output may be before it is published: in its layer, the scratch, or at its place."""
        before = self.before
        if product.path in self.found.untouched:
            return []
        inner = before.scratch.inner_path(product.path) if product.path in before.spec.carried else None
        return [path for path in (before.staged(product.path), inner, product.path) if path is not None]

    def _journal_directory(self) -> str:
        """Return a directory in which recovery after a crash finds a journal: see staging/recovery.py."""
        spec, layers = self.before.spec, self.before.layers
        if layers and spec.files.layers and not spec.files.apart:
            return layers[0].directory
        name = layer_name(spec.layer_base, os.getpid(), 0)
        return f"{staging_of(spec.workdir, spec.workdir)}/{name}"
