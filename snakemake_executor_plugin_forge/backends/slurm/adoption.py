"""Jobs of dead runs in Slurm, which a later run adopts or ends.

::

    first answer of the queue ──► alive, or has succeeded ──► kept until a job comes that writes the same outputs
                              └─► otherwise: forbidden to publish       ├─► it is the same job: waited for
                                                                        └─► another one: forbidden, cancelled

Jobs that nobody asks for are ended with the run if it succeeds; otherwise the next run may want them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from ...record.codec import read_verdict
from ...record.jsonfile import CLOSED, VERDICT, amend, load, write_file
from ...record.reader import is_alive
from ...spec.job import RECORD_SCHEMA, LaunchSpec
from ...spec.paths import run_name
from ...spec.verdict import Verdict
from ...staging.fingerprint import Fingerprint, differences, take_fingerprint
from ...staging.liveness import is_over_on_nodes
from ...staging.recovery import recover_dead_runs
from . import exchange, fence, orders
from .job import Job, batch_name
from .parse import QueueRow, own_name

TICKET = "job.json"
"""The file in an attempt directory that says which job it is. JSON, for the reason that exchange.py gives."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """One attempt of a dead run that may still publish, or has."""

    run: str
    attempt: str  # its directory
    batch: str
    index: int
    job_dir: str
    outputs: frozenset[str]
    identity: Fingerprint
    ended: bool = False  # it has succeeded
    verdict: Verdict | None = None  # of a success that this run adopts

    @property
    def key(self) -> tuple[str, int]:
        """Names its Slurm job: see :attr:`.parse.QueueRow.key`."""
        return batch_name(self.run, self.batch), self.index


def write_ticket(job: Job) -> None:
    """Write what a later run has to know of an attempt, if it may adopt it.

    Raises:
        OSError: if it cannot be written.
    """
    if not job.spec.adoptable:
        return
    data = {
        "schema": RECORD_SCHEMA,
        "job_dir": job.spec.job_dir,
        "outputs": sorted(_outputs(job.spec)),
        "identity": take_fingerprint(job.spec).as_json(),
    }
    write_file(f"{job.attempt}/{TICKET}", json.dumps(data))


def _outputs(spec: LaunchSpec) -> frozenset[str]:
    named = (os.path.normpath(os.path.join(spec.workdir, path)) for path in spec.outputs)
    return frozenset((*named, *(target.path for target in spec.files.targets)))


class Earlier:
    """The jobs that dead runs of one working directory have left. Used from the thread that calls Slurm."""

    def __init__(self, runs: str, own: str, notice: Callable[[str], None]) -> None:
        """Find the dead runs; nothing is changed.

        Args:
            notice: shows a sentence to the user.
        """
        self._runs_directory, self._own, self._notice = runs, own, notice
        self._runs = unclosed_runs(runs, own)
        self._kept: dict[str, Orphan] = {}
        self._to_end: set[tuple[str, int]] = set()
        self._stopped: dict[str, tuple[str, int]] = {}  # attempts that end in Slurm jobs which go on for others
        self._waited_for: set[tuple[str, int]] = set()  # Slurm jobs of what this run has adopted
        self._met = not self._runs

    @property
    def blocking(self) -> bool:
        """Whether nothing may be submitted yet: an attempt of a dead run might write the same files in place."""
        return not self._met or bool(self._to_end) or bool(self._stopped)

    @property
    def open(self) -> bool:
        """Whether there are dead runs that may have left jobs."""
        return bool(self._runs)

    def meet(self, rows: Iterable[QueueRow]) -> list[str]:
        """Compare what dead runs have left with the queue.

        Returns:
            The ids of the Slurm jobs that are to be ended.

        Raises:
            OSError: if the record of a run cannot be read or written.
        """
        alive = {row.key: row for row in rows if not row.ended and run_of(row.name) in self._runs}
        if not self._met:
            for run in sorted(self._runs):
                self._look_through(run, alive)
            self._met = True
            self._to_end = set(alive) - {orphan.key for orphan in self._kept.values()}
            self._tell(len(alive) - len(self._to_end))
        self._to_end &= set(alive)
        running = {attempt for attempt, key in self._stopped.items() if key in alive}
        self._stopped = {name: self._stopped[name] for name in running if not exchange.has_exited(name)}
        return [alive[key].job_id for key in sorted(self._to_end)]

    def _tell(self, alive: int) -> None:
        begin = "Forge: an earlier run in this directory was killed and has left"
        results = sum(len(exchange.new_results(f"{self._runs_directory}/{run}/slurm")) for run in self._runs)
        said = [f"{alive} Slurm job(s) that wait or run"] if alive else []
        said += [f"the verdicts of {results} that ended since"] if results else []
        if said:
            self._notice(f"{begin} {' and '.join(said)}: they count for the same jobs of this run.")
        if self._to_end:
            count = len(self._to_end)
            self._notice(f"{begin} {count} Slurm job(s) that cannot be adopted; they are cancelled first.")

    def _look_through(self, run: str, alive: Mapping[tuple[str, int], QueueRow]) -> None:
        """Keep what can be adopted; take every other attempt that is free, so that no copy of it publishes.

        Workers end when what they run has ended. Members that cannot be adopted end now: the new ones use their pipes.
        """
        orders.say_all_over(f"{self._runs_directory}/{run}/slurm")
        for attempt in _attempts(f"{self._runs_directory}/{run}/slurm"):
            orphan = _read(run, attempt)
            if orphan is not None and success(attempt, orphan.job_dir) is not None:
                self._kept[attempt] = replace(orphan, ended=True)
            elif orphan is not None and orphan.key in alive and not fence.is_forbidden(attempt):
                self._kept[attempt] = orphan
            elif fence.holder(attempt) is None:
                fence.forbid(attempt, f"run {self._own}")
                if (order := orders.of_attempt(attempt)) is not None:
                    orders.stop(*order)

    def claim(self, spec: LaunchSpec) -> Orphan | None:
        """The attempt to wait for in place of a job; ends the others that write the same outputs.

        Raises:
            OSError: if the attempt directory of one cannot be written.
        """
        outputs = _outputs(spec)
        found = [orphan for orphan in self._kept.values() if outputs & orphan.outputs]
        if not found:
            return None
        present = take_fingerprint(spec) if spec.adoptable else None
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
                self._end(orphan, "; ".join(why) or "there is a newer one", spare_others=True)
        if chosen is not None and chosen.verdict is None:
            self._waited_for.add(chosen.key)
        return chosen

    def _is_shared(self, orphan: Orphan) -> bool:
        """Whether other jobs that are wanted, or may be, are in the Slurm job of one."""
        kept = {other.key for other in self._kept.values() if not other.ended}
        return orphan.key in kept or orphan.key in self._waited_for

    def _end(self, orphan: Orphan, why: str, *, spare_others: bool = False) -> None:
        free = fence.forbid(orphan.attempt, f"run {self._own}")
        runs = free and fence.latest(orphan.attempt) > 0
        order = orders.of_attempt(orphan.attempt)
        shared, what = spare_others and self._is_shared(orphan), "the Slurm job"
        if shared and order is not None:  # of a worker: the others may run beside it
            if free:
                orders.stop(*order)
            what = "the member of a group"
            if runs:
                self._stopped[orphan.attempt] = orphan.key
        elif runs or not shared:
            self._to_end.add(orphan.key)  # else its Slurm job skips it or is done with it, and does the others
        self._notice(f"Forge: rule {orphan.identity.rule}: {what} that run {orphan.run} has left is cancelled: {why}.")

    def spare(self) -> None:
        """Leave the jobs to the next run, and say so."""
        left = sum(not orphan.ended for orphan in self._kept.values())
        if left:
            self._notice(
                f"Forge: {left} Slurm job(s) that an earlier run has left continue; the next run in this directory "
                "adopts them."
            )

    def dismiss(self, rows: Iterable[QueueRow]) -> list[str]:
        """End the jobs that nobody has asked for.

        Returns:
            The ids of the Slurm jobs that are to be ended; if there are none, the dead runs are closed for good.

        Raises:
            OSError: if the attempt directory of one cannot be written.
        """
        ids = self.meet(rows)
        for attempt, orphan in list(self._kept.items()):
            del self._kept[attempt]
            if not orphan.ended:
                self._end(orphan, "no job of this run is the same")
        if self._to_end:
            ids = self.meet(rows)
        if not ids:
            self._close()
        return ids

    def _close(self) -> None:
        """Mark the dead runs, finish publications that their copies began, and remove the layers."""
        for run in self._runs:
            with suppress(OSError), open(f"{self._runs_directory}/{run}/{CLOSED}", "w", encoding="ascii"):
                pass
        self._runs.clear()
        state = os.path.dirname(self._runs_directory)
        published = recover_dead_runs(state, os.path.dirname(os.path.dirname(state)), self._own).published
        if published:
            self._notice(f"Forge: a job of an earlier run died while it published; done now: {', '.join(published)}")


def adopt(job: Job, orphan: Orphan, run: str) -> None:
    """Let a job of this run stand for one that is in Slurm already."""
    job.spec = replace(job.spec, job_dir=orphan.job_dir)
    job.name, job.batch, job.index = batch_name(orphan.run, orphan.batch), orphan.batch, orphan.index
    job.attempt, job.part = orphan.attempt, exchange.part_of(orphan.attempt)
    job.packed = job.part is not None
    done = job.done

    def noted(verdict: Verdict) -> None:
        path = f"{verdict.directory}/{VERDICT}"
        with suppress(OSError):
            if os.path.exists(path):
                amend(path, {"adopted": run})
        done(verdict)

    job.done = noted


def success(attempt: str, job_dir: str) -> Verdict | None:
    """The verdict of the copy that has taken the attempt, if it has succeeded; from its result, or its record."""
    if fence.holder(attempt) is None or fence.is_forbidden(attempt):
        return None
    state = exchange.state_of(attempt)
    verdict = exchange.read_result(state, exchange.result_name(attempt))
    if verdict is not None:
        return verdict if verdict.ok else None
    for number in range(fence.latest(attempt), 0, -1):
        verdict = read_verdict(exchange.copy_directory(job_dir, number))
        if verdict is not None and verdict.ok:
            return verdict
    return None


def _attempts(state: str) -> Iterator[str]:
    for batch in sorted(os.listdir(state)):
        if batch.startswith("b") and batch[1:].isdigit():
            yield from (f"{state}/{batch}/{place}" for place in sorted(os.listdir(f"{state}/{batch}")))


def _read(run: str, attempt: str) -> Orphan | None:
    batch = attempt.rsplit("/", 2)[1]
    data = load(f"{attempt}/{TICKET}")
    if data is None:
        return None
    try:
        identity = Fingerprint.from_json(data["identity"])
        outputs = frozenset(map(str, data["outputs"]))
        exchange.part_of(attempt)  # adopt() relies on it
        return Orphan(run, attempt, batch, exchange.index_of(attempt), str(data["job_dir"]), outputs, identity)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def unclosed_runs(runs: str, own: str) -> set[str]:
    """Runs before ``own`` that may have left jobs; ``runs`` is the directory of all runs."""
    found = set()
    for name in os.listdir(runs):
        state = f"{runs}/{name}/slurm"
        if name == own or not os.path.isdir(state) or is_over_on_nodes(f"{runs}/{name}"):
            continue
        if not is_alive(load(f"{runs}/{name}/run.json") or {}):
            found.add(name)
    return found


def run_of(name: str) -> str:
    """The run in the name of a Slurm job, if Forge has submitted it; otherwise ""."""
    own = own_name(name)
    return own.removeprefix(run_name("")).rpartition(".")[0] if own.startswith(run_name("")) else ""


def forbid_earlier(runs: str, own: str) -> int:
    """Forbid all attempts of dead runs to publish, for a run that does not use Slurm.

    Returns:
        How many attempts nobody had taken before.

    Raises:
        OSError: if an attempt directory cannot be written.
    """
    states = [f"{runs}/{run}/slurm" for run in unclosed_runs(runs, own)]
    for state in states:
        orders.say_all_over(state)
    left = [attempt for state in states for attempt in _attempts(state)]
    return sum(fence.holder(attempt) is None and fence.forbid(attempt, f"run {own}") for attempt in left)
