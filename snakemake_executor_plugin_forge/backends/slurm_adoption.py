"""What a run whose Snakemake was killed has left in Slurm, and a later run takes over or ends.

::

    first answer of the queue ──► it is alive, or has succeeded ──► kept until a job comes that writes the same
                              └─► all else is given up                 ├─► it is the same job: waited for
                                                                       └─► it is another one: given up, cancelled

What nobody asks for is ended with the run, if that was a success; else the next one may want it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from .. import fence
from ..model import RECORD_SCHEMA, LaunchSpec, Outcome, Usage, Verdict
from ..record.jsonfile import amend, load
from ..record.layout import VERDICT
from ..sameness import Identity, differences, identify
from . import handover
from .slurm_job import Job, batch_name
from .slurm_leftovers import clear_closed, left_over, mark_closed, unclosed_runs
from .slurm_text import Row

TICKET = "job.json"
"""In an attempt directory: which job it is. JSON, for the reason that handover.py gives."""

_Key = tuple[str, int]  # name and index of a Slurm job


@dataclass(frozen=True, slots=True)
class Orphan:
    """One attempt of a dead run that may still publish, or has."""

    run: str
    attempt: str  # its directory
    batch: str
    index: int
    job_dir: str
    outputs: frozenset[str]
    identity: Identity
    ended: bool = False  # it has succeeded
    verdict: Verdict | None = None  # then, of one that is taken over

    @property
    def key(self) -> _Key:
        """Its Slurm job."""
        return batch_name(self.run, self.batch), self.index


def write_ticket(job: Job) -> None:
    """Beside what a node gets: what another run has to know of an attempt.

    Raises:
        OSError: if it cannot be written.

    """
    if not _adoptable(job.spec):
        return
    data = {
        "schema": RECORD_SCHEMA,
        "job_dir": job.spec.job_dir,
        "outputs": sorted(_outputs(job.spec)),
        "identity": identify(job.spec).as_json(),
    }
    with open(f"{job.attempt}/{TICKET}", "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(data, file)


def _adoptable(spec: LaunchSpec) -> bool:
    """Whether another run can wait for it: all that it writes is staged, and nobody else has to do with it."""
    alone = not (spec.together or spec.interactive or spec.carried or spec.files.live)
    return spec.files.staged and alone and bool(spec.files.targets)


def _outputs(spec: LaunchSpec) -> frozenset[str]:
    named = (os.path.normpath(os.path.join(spec.workdir, path)) for path in spec.outputs)
    return frozenset((*named, *(target.path for target in spec.files.targets)))


class Earlier:
    """All that dead runs of one working directory have left. Used from the thread that calls Slurm."""

    def __init__(self, runs: str, own: str, notice: Callable[[str], None]) -> None:
        """See what there may be; nothing is changed.

        Args:
            runs: the directory of all runs.
            own: the run that asks.
            notice: shows a sentence to the user.

        """
        self._runs_directory, self._own, self._notice = runs, own, notice
        self._runs = unclosed_runs(runs, own)
        self._kept: dict[str, Orphan] = {}
        self._doomed: set[_Key] = set()
        self._met = not self._runs

    @property
    def blocking(self) -> bool:
        """Whether nothing may be submitted yet: an attempt of a dead run might write the same files in place."""
        return not self._met or bool(self._doomed)

    @property
    def open(self) -> bool:
        """Whether there is something to be closed."""
        return bool(self._runs)

    def meet(self, rows: Iterable[Row]) -> list[str]:
        """Compare with what the queue says.

        Returns:
            The ids of those that are to be ended.

        Raises:
            OSError: if the record of a run cannot be read or written.

        """
        alive = {(row.name, row.index): row for row in left_over(rows, self._runs)}
        if not self._met:
            for run in sorted(self._runs):
                self._look_through(run, alive)
            self._met = True
            self._doomed = set(alive) - {orphan.key for orphan in self._kept.values()}
            self._tell(len(alive) - len(self._doomed))
        self._doomed &= set(alive)
        return [alive[key].job_id for key in sorted(self._doomed)]

    def _tell(self, going_on: int) -> None:
        begin = "Forge: an earlier run in this directory was killed and has left"
        results = sum(len(handover.new_results(f"{self._runs_directory}/{run}/slurm")) for run in self._runs)
        said = [f"{going_on} Slurm job(s) that wait or run"] if going_on else []
        said += [f"the verdicts of {results} that ended since"] if results else []
        if said:
            self._notice(f"{begin} {' and '.join(said)}: they count for the same jobs of this run.")
        if self._doomed:
            count = len(self._doomed)
            self._notice(f"{begin} {count} Slurm job(s) that cannot be taken over and are cancelled first.")

    def _look_through(self, run: str, alive: dict[_Key, Row]) -> None:
        """Keep what can be taken over; give up all else that nobody has taken, so that it never publishes."""
        for attempt in _attempts(f"{self._runs_directory}/{run}/slurm"):
            orphan = _read(run, attempt)
            if orphan is not None and success(attempt, orphan.job_dir) is not None:
                self._kept[attempt] = replace(orphan, ended=True)
            elif orphan is not None and orphan.key in alive and not _is_given_up(attempt):
                self._kept[attempt] = orphan
            elif fence.holder(attempt) is None:
                fence.give_up(attempt, f"run {self._own}")

    def claim(self, spec: LaunchSpec) -> Orphan | None:
        """The attempt that is to be waited for in place of a job; others that write the same are ended.

        Raises:
            OSError: if one cannot be given up.

        """
        outputs = _outputs(spec)
        found = [orphan for orphan in self._kept.values() if outputs & orphan.outputs]
        if not found:
            return None
        present = identify(spec) if _adoptable(spec) else None
        chosen: Orphan | None = None
        for orphan in sorted(found, key=lambda orphan: (orphan.run, orphan.attempt), reverse=True):
            del self._kept[orphan.attempt]
            why = differences(orphan.identity, present) if present is not None else ["its outputs are not staged now"]
            verdict = success(orphan.attempt, orphan.job_dir)  # by now
            if verdict is not None and not all(os.path.lexists(path) for path in orphan.outputs):
                continue  # somebody has removed what it wrote
            if chosen is None and not why:
                chosen = replace(orphan, verdict=verdict)
            elif verdict is None:
                self._end(orphan, "; ".join(why) or "there is a newer one")
        return chosen

    def _end(self, orphan: Orphan, why: str) -> None:
        fence.give_up(orphan.attempt, f"run {self._own}")
        self._doomed.add(orphan.key)
        self._notice(
            f"Forge: rule {orphan.identity.rule}: the Slurm job that run {orphan.run} has left is cancelled: {why}."
        )

    def spare(self) -> None:
        """Leave all to the next run, and say so."""
        left = sum(not orphan.ended for orphan in self._kept.values())
        if left:
            self._notice(
                f"Forge: {left} Slurm job(s) that an earlier run has left go on; the next run in this directory takes "
                "them over."
            )

    def dismiss(self, rows: Iterable[Row]) -> list[str]:
        """Give up all that is left.

        Returns:
            The ids of those that are to be ended; if there are none, the dead runs are closed for good.

        Raises:
            OSError: if one cannot be given up.

        """
        ids = self.meet(rows)
        for attempt, orphan in list(self._kept.items()):
            del self._kept[attempt]
            if not orphan.ended:
                self._end(orphan, "no job of this run is the same")
        if self._doomed:
            ids = self.meet(rows)
        if not ids:
            self._close()
        return ids

    def _close(self) -> None:
        for run in self._runs:
            mark_closed(self._runs_directory, run)
        self._runs.clear()
        published = clear_closed(self._runs_directory, self._own)
        if published:
            self._notice(f"Forge: a job of an earlier run died while it published; done now: {', '.join(published)}")


def adopt(job: Job, orphan: Orphan, run: str) -> None:
    """Make a job that waits to be submitted the one that is in Slurm already."""
    job.spec = replace(job.spec, job_dir=orphan.job_dir)
    job.name, job.batch, job.index = batch_name(orphan.run, orphan.batch), orphan.batch, orphan.index
    job.attempt = orphan.attempt
    done = job.done

    def noted(verdict: Verdict) -> None:
        _note(verdict.directory, run)
        done(verdict)

    job.done = noted


def _note(directory: str, run: str) -> None:
    """In the verdict: who has taken it over."""
    path = f"{directory}/{VERDICT}"
    with suppress(OSError):
        if os.path.exists(path):
            amend(path, {"adopted": run})


def success(attempt: str, job_dir: str) -> Verdict | None:
    """The verdict of the copy that has taken the attempt, if it is one of success; from its result, or its record."""
    if fence.holder(attempt) is None or _is_given_up(attempt):
        return None
    state = handover.state_of(attempt)
    verdict = handover.read_result(state, handover.result_name(attempt))
    if verdict is not None:
        return verdict if verdict.ok else None
    for number in range(fence.latest(attempt), 0, -1):
        directory = handover.copy_directory(job_dir, number)
        record = load(f"{directory}/{VERDICT}") or {}
        if record.get("outcome") == Outcome.SUCCEEDED:
            with suppress(TypeError, ValueError):
                usage = Usage(**{name: value for name, value in record["usage"].items() if name in Usage.__slots__})
                seconds, started = float(record["seconds"]), str(record["started"])
                return Verdict(
                    Outcome.SUCCEEDED, str(record["reason"]), 0, None, usage, started, seconds, directory=directory
                )
    return None


def _attempts(state: str) -> Iterator[str]:
    for batch in sorted(os.listdir(state)):
        if batch.startswith("b") and batch[1:].isdigit():
            yield from (f"{state}/{batch}/{index}" for index in sorted(os.listdir(f"{state}/{batch}")))


def _read(run: str, attempt: str) -> Orphan | None:
    batch, index = attempt.rsplit("/", 2)[1:]
    data = load(f"{attempt}/{TICKET}")
    if data is None:
        return None
    try:
        identity = Identity.from_json(data["identity"])
        outputs = frozenset(map(str, data["outputs"]))
        return Orphan(run, attempt, batch, int(index), str(data["job_dir"]), outputs, identity)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_given_up(attempt: str) -> bool:
    """Whether some controller has taken it, and no copy of it."""
    return (fence.holder(attempt) or "").startswith(fence.GIVEN_UP)
