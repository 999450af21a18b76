"""The files of one attempt: staged before it, looked through when it has ended, and published or not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from .files import STAGING
from .inspection import Inspection, Version, changed, inspect, versions
from .model import LaunchSpec, Product, TargetKind
from .publish import Identity, Move, identity, publish
from .sandbox.inside import Inside
from .sandbox.layers import Layer, layer_of
from .sandbox.scratch import Scratch
from .staged import Staging
from .survey import Survey, keep_beside, kept, publish_logs, survey, undeclared_reads


class Delivery:
    """What one attempt reads and writes. Without a sandbox, it has written nothing."""

    def __init__(self, spec: LaunchSpec) -> None:
        self.survey = Survey()
        self.inputs_changed: tuple[str, ...] = ()
        self._spec = spec
        self._layers: tuple[Layer, ...] = ()
        self._scratch: Scratch | None = None
        self._before: dict[str, Identity | None] = {}  # what was at the places of its outputs
        self._inputs: dict[str, Version] = {}  # before it
        self._begin_ns = 0

    def begin(self, inside: Inside) -> None:
        """Have the job not see the present versions of its outputs, and remember what they and its inputs are.

        Raises:
            OSError: if they cannot be hidden.

        """
        files = self._spec.files
        self._layers, self._scratch = inside.layers, inside.scratch
        if files.staged:
            inside.stage(files)
            self._before = {t.path: identity(t.path) for t in files.targets if t.kind is TargetKind.OUTPUT}
            self._begin_ns = time.time_ns()
        self._inputs = versions(self._spec.checks.inputs)

    def look_at_inputs(self) -> None:
        """Whether somebody has changed them meanwhile."""
        self.inputs_changed = tuple(self.named(path) for path in changed(self._inputs))

    def look_through(self) -> None:
        """What it has written to its layers.

        Raises:
            OSError: if that cannot be read.

        """
        files = self._spec.files
        if not files.staged:
            return
        self.survey = survey(files, self._layers[: len(files.layers)], self._spec.rule, self._begin_ns)
        others = [path for path, before in self._before.items() if identity(path) != before]
        self.survey.rejected += [f"{path} was changed by somebody else while the job ran" for path in others]

    def undeclared_reads(self, opened: set[str]) -> tuple[str, ...]:
        """Of the files that it has opened, those that were there before and that its rule does not declare."""
        made = {move.place for move in self.survey.extra}
        return undeclared_reads(self._spec.files, self._spec.workdir, opened - made)

    def inspect(self, seconds: float) -> Inspection:
        """Formats and checksums of its outputs; what is wrong with them is a reason not to publish them."""
        found = inspect(self._spec.checks, self._places_of, seconds)
        self.survey.rejected += found.rejected
        return found

    def publish_logs(self) -> list[str]:
        """Bring its logs to their places, after success and after failure.

        Returns:
            What went wrong, in sentences.

        """
        return publish_logs(self.survey)

    def publish(self) -> None:
        """Bring what it has written to its places: all of it, or nothing.

        Raises:
            OSError: if that is not possible.

        """
        moves = kept(self.survey, self._spec.files.undeclared, self._spec.rule)
        publish([*moves, *self._carried()], self._journal_directory())

    def stage(self) -> None:
        """Have what it has written wait, on disk, for a run that wants it.

        Raises:
            OSError: if that is not possible.

        """
        moves = (*kept(self.survey, self._spec.files.undeclared, self._spec.rule), *self._carried())
        logs, stale = tuple(self.survey.logs), tuple(self.survey.stale_logs)
        staging = Staging(moves, logs, stale, self._before, self.kept_directories(), self._journal_directory())
        staging.save(self._spec.job_dir)

    def kept_directories(self) -> tuple[str, ...]:
        """What holds that."""
        found = [layer.directory for layer in self._layers[: len(self._spec.files.layers)]]
        if self._scratch is not None and (self._spec.files.apart or self._spec.carried):
            found.append(self._scratch.slot)
        return tuple(dict.fromkeys((*found, self._journal_directory())))

    def keep_beside(self) -> None:
        """Put its outputs into its job directory, where the settings say so.

        Raises:
            OSError: if that is not possible.

        """
        if self._spec.files.keep_incomplete:
            keep_beside(self.survey, self._spec.job_dir)

    def staged(self, path: str) -> str:
        """Where a file of the job is before it is published.

        Args:
            path: absolute, or relative to the working directory.

        """
        path = os.path.join(self._spec.workdir, path)
        layer = layer_of(path, self._layers)
        return path if layer is None else f"{layer.upper}/{path.removeprefix(layer.root + '/')}"

    def named(self, path: str) -> str:
        """As the author of the rule would write it."""
        return path.removeprefix(self._spec.workdir + "/")

    def file_of_size(self, size: int) -> str | None:
        """An output that has just that many bytes."""
        for path in self._spec.outputs:
            with suppress(OSError):
                if os.lstat(self.staged(path)).st_size == size:
                    return path
        return None

    def _places_of(self, product: Product) -> Sequence[str]:
        """Where an output may be before it is published: in its layer, the scratch, or at its place."""
        inner = self._inner_path(product.path) if product.path in self._spec.carried else None
        return [path for path in (self.staged(product.path), inner, product.path) if path is not None]

    def _carried(self) -> Iterator[Move]:
        """Outputs that lie directly in a private directory, where they are in the scratch."""
        for path in self._spec.carried:
            inner = self._inner_path(path)
            if inner is not None and os.path.lexists(inner):
                yield Move.of(inner, path)

    def _inner_path(self, path: str) -> str | None:
        return self._scratch.inner_path(path) if self._scratch is not None else None

    def _journal_directory(self) -> str:
        """One in which whoever comes after a crash looks: see recovery.py."""
        if self._layers and self._spec.files.layers and not self._spec.files.apart:
            return self._layers[0].directory
        run = os.path.basename(self._spec.scratch_base)
        return f"{self._spec.workdir}/{STAGING}/{run}-{os.getpid()}-0"
