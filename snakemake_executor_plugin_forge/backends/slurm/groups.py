"""The groups of a run: each has a worker, one Slurm job that runs its members as they become ready. See worker.py.

The controller submits a worker with the first member, and orders each member when Snakemake hands it over and there is
room beside those that run. A worker ends when its last member has succeeded, or when no other has come for a while:
one that comes later has a worker of its own. Used from the thread that calls Slurm, but for :meth:`Groups.note`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from ...kernel.imports import own_command
from ...spec.errors import UsageError
from ...spec.job import LaunchSpec
from ...spec.job_group import JobGroup
from ...spec.slurm import SlurmSettings
from ...spec.units import MEBIBYTE
from ...spec.verdict import EndedBy, Verdict
from . import exchange, fence, orders, sbatch
from .job import Job, batch_name
from .job_table import JobTable
from .parse import QueueRow
from .polling import RESULT_SECONDS, WRITTEN_RESULT_SECONDS
from .states import SlurmState

_STEP_SECONDS = 1.0
_RENEW_SECONDS = 10.0
_IDLE_SECONDS = 30.0  # before a worker ends whose other members wait for jobs outside of the group
_IDLE_AFTER_FAILURE_SECONDS = 5.0

_Number = TypeVar("_Number", int, float)
HandOver = Callable[[Job, str, int, int | None], bool]


class Size(NamedTuple):
    """The resources of a node that a job takes, or a worker for all of its members."""

    cpus: int
    memory_bytes: int | None = None  # None: nobody has said
    gpus: int = 0


def fits(whole: Size, running: Iterable[Size], own: Size) -> bool:
    """Whether a member has room in its worker beside those that run. Pure."""
    beside = list(running)
    if sum(size.cpus for size in beside) + own.cpus > whole.cpus:
        return False
    if sum(size.gpus for size in beside) + own.gpus > whole.gpus:
        return False
    memory = sum(size.memory_bytes or 0 for size in beside) + (own.memory_bytes or 0)
    return whole.memory_bytes is None or memory <= whole.memory_bytes


def whole(spec: LaunchSpec, group: JobGroup) -> LaunchSpec:
    """The specification of a job that asks for all that its group needs, for :func:`.sbatch.shape`.

    That is no less than the job itself needs: the sums lack what was not known when they were made.
    """
    numbers = {key: value for key, value in group.resources.items() if isinstance(value, int | float)}
    memory, runtime = numbers.get("mem_mb"), numbers.get("runtime")
    limits = replace(
        spec.limits,
        cpus=max(1, int(numbers.get("_cores", 1)), spec.limits.cpus),
        memory_bytes=_most(int(memory * MEBIBYTE) if memory else None, spec.limits.memory_bytes),
        wall_seconds=_most(runtime * 60 if runtime else None, spec.limits.wall_seconds),
    )
    resources = {key: value for key, value in group.resources.items() if key not in ("mem_mb", "runtime")}
    return replace(spec, rule=f"group {group.name}", resources=resources, limits=limits)


def _most(summed: _Number | None, own: _Number | None) -> _Number | None:
    return max((number for number in (summed, own) if number is not None), default=None)


def size_of(spec: LaunchSpec) -> Size:
    """Return the resources that a job takes."""
    return Size(spec.limits.cpus, spec.limits.memory_bytes, sbatch.gpu_count(spec.rule, spec.resources))


@dataclass(slots=True)
class GroupWorker:
    """The Slurm job of a group."""

    group: JobGroup
    key: tuple[str, int]  # of its row in the queue
    batch: str
    size: Size
    book: orders.OrderBook
    began: bool = False
    renewed: float = 0.0
    idle_since: float | None = None


class Groups:
    """The workers of a run."""

    def __init__(
        self,
        run_id: str,
        state: str,
        table: JobTable,
        notice: Callable[[str], None],
        send: HandOver,
        settings: SlurmSettings,
    ) -> None:
        """Begin without any.

        Args:
            state: <run>/slurm.
            notice: shows a sentence to the user.
            send: writes what a node needs of a job, given batch, index and part; False if that was impossible.
        """
        self._run_id, self._state, self._table, self._notice, self._send = run_id, state, table, notice, send
        self._settings = settings
        self._workers: dict[str, GroupWorker] = {}  # those that take orders, by group
        self._succeeded: dict[str, set[tuple[str, tuple[tuple[str, str], ...]]]] = {}
        self._failed: set[str] = set()
        self.dissolved: set[str] = set()  # groups that cannot be one Slurm job
        self._exits: dict[str, float] = {}  # when a process was seen to have ended, by attempt
        self._looked = 0.0
        self.has_news = False  # a process has ended, and Slurm may say why

    @property
    def pause_seconds(self) -> float | None:
        """Return the seconds in which nothing has to be done; None if there are no workers."""
        return _STEP_SECONDS if self._workers else None

    def shape(self, spec: LaunchSpec) -> tuple[JobGroup | None, tuple[str, ...]]:
        """Return the group in whose Slurm job a job is to run, with the arguments of sbatch for it. In any thread.

        What pipes connect is never submitted one by one: if its group cannot be one Slurm job, they are by themselves.

        Returns:
            The group, and () if it cannot be one Slurm job.

        Raises:
            UsageError: if it cannot, and a pipe connects this job with others.
        """
        group = spec.group
        if group is not None and group.key in self.dissolved:
            group = (group.piped or group) if spec.together else None
        if group is None:
            return spec.group, ()
        try:
            return group, sbatch.shape(whole(spec, group), self._settings)
        except UsageError as error:
            if spec.together and group.piped is None:
                raise
            self._dissolve({group.key: group.name}, error)
            return self.shape(spec)

    def _dissolve(self, groups: Mapping[str, str], error: Exception) -> None:
        names = ", ".join(dict.fromkeys(groups.values()))
        self._notice(f"Forge: group {names} cannot be one Slurm job ({error}); its members are submitted one by one.")
        self.dissolved |= groups.keys()
        for job in self._table.jobs():
            if job.group is None or job.group.key not in groups:
                continue
            job.alone = job.alone or not job.spec.together
            if job.group.piped is not None:
                with suppress(UsageError):  # sbatch refuses it once more
                    job.group_shape = sbatch.shape(whole(job.spec, job.group.piped), self._settings)
                    job.group = job.group.piped

    def has_worker(self, job: Job) -> bool:
        """Whether a job needs no call of sbatch, because its group has a worker."""
        return job.grouped is not None and job.grouped.key in self._workers

    def note(self, spec: LaunchSpec, verdict: Verdict) -> None:
        """Remember how a member has ended. Called in any thread."""
        groups = (spec.group, spec.group.piped) if spec.group is not None else ()
        for key in (group.key for group in groups if group is not None):
            if verdict.ok or verdict.ended_by is EndedBy.FORGE:  # a service that was needed
                done = (spec.rule, tuple(sorted(spec.wildcards.items())))
                self._succeeded.setdefault(key, set()).add(done)
            else:
                self._failed.add(key)

    # -- a worker ----------------------------------------------------------------------------------------------------

    def place(self, jobs: list[Job], batch: str, most: int | None) -> tuple[list[Job], bool]:
        """Make a worker for each group of some jobs, and order those that have room.

        Args:
            most: how many Slurm jobs the queue takes; None: any number.

        Returns:
            The jobs that were handed over, and whether the workers need an array.
        """
        members: dict[str, list[Job]] = {}
        for job in jobs:
            if job.grouped is not None:
                members.setdefault(job.grouped.key, []).append(job)
        chosen = list(members.items())[:most]
        for index, (key, of_group) in enumerate(chosen):
            group = of_group[0].grouped
            assert group is not None
            book = orders.OrderBook(orders.directory(self._state, batch, index))
            size = size_of(whole(of_group[0].spec, group))
            worker = GroupWorker(group, (batch_name(self._run_id, batch), index), batch, size, book)
            self._workers[key] = worker
            try:
                self._order(worker, of_group, [])
            except OSError:
                self._take_back([job for job in jobs if job.attempt])
                self.forget(batch)
                raise
            if not any(job.attempt for job in of_group):  # none could be handed over
                del self._workers[key]
        ready = [job for _, of_group in chosen for job in of_group if job.attempt]
        return ready, len(chosen) > 1

    def script(self, jobs: list[Job]) -> str:
        """Return the batch script for the workers of jobs that :meth:`place` has handed over."""
        return _script(f"{self._state}/{jobs[0].batch}", self._of_batch(jobs[0].batch))

    def forget(self, batch: str) -> None:
        """Take back workers that Slurm has not taken."""
        for worker in self._of_batch(batch):
            del self._workers[worker.group.key]

    def _of_batch(self, batch: str) -> list[GroupWorker]:
        return [worker for worker in self._workers.values() if worker.batch == batch]

    def _order(self, worker: GroupWorker, waiting: list[Job], running: list[Job]) -> None:
        """Order the members that have room, the oldest first. Those of a pipe never wait for others."""
        beside = [size_of(job.spec) for job in running]
        blocked = False  # an older one waits for room: a smaller one must not overtake it for ever
        for job in sorted(waiting, key=lambda job: job.since):
            own = size_of(job.spec)
            if not fits(worker.size, [], own) and not job.spec.together:
                job.alone = True  # it needs more than at first: another try
                continue
            if (blocked or not fits(worker.size, beside, own)) and not job.spec.together:
                blocked = True
                continue
            if self._send(job, worker.batch, worker.key[1], worker.book.count):
                try:
                    worker.book.run(os.path.basename(job.attempt), job.checksum, first_only=job.spec.together)
                except OSError:  # a full disk, say: the next round tries again
                    self._take_back([job])
                    if not any(other.spec.together for other in (*waiting, *running)):
                        self._end(worker)  # another order would be signed with the key of this one; pipes cannot move
                    raise
                beside.append(own)

    def _take_back(self, jobs: Iterable[Job]) -> None:
        """Order later what could not be ordered."""
        for job in jobs:
            job.submissions -= 1
            self._table.is_again_unsent(job, job.since)

    # -- each round ----------------------------------------------------------------------------------------------------

    def step(self, now: float) -> list[Job]:
        """Order members that have become ready, and end workers that have nothing more to do.

        Returns:
            Members whose processes have ended without a result, and will leave none.

        Raises:
            OSError: if an order cannot be written.
        """
        if not self._workers and not self._exits and not self._table.to_cancel():
            return []
        waiting: dict[str, list[Job]] = {}
        running: dict[tuple[str, int], list[Job]] = {}
        for job in self._table.jobs():
            if job.unsent and self.has_worker(job) and job.grouped is not None:
                waiting.setdefault(job.grouped.key, []).append(job)
            elif job.attempt and job.group is not None:
                running.setdefault((job.name, job.index), []).append(job)
        for key, worker in list(self._workers.items()):
            of_worker = running.get(worker.key, [])
            self._order(worker, waiting.get(key, []), of_worker)
            self._end_or_renew(worker, bool(of_worker or key in waiting), now)
        _stop(self._table, {worker.key: worker for worker in self._workers.values()}, running)
        return self._exited([job for jobs in running.values() for job in jobs], now)

    def _end_or_renew(self, worker: GroupWorker, busy: bool, now: float) -> None:
        key = worker.group.key
        if busy:
            worker.idle_since = None
        elif worker.idle_since is None:
            worker.idle_since = now
        idle = 0.0 if worker.idle_since is None else now - worker.idle_since
        most = _IDLE_AFTER_FAILURE_SECONDS if key in self._failed else _IDLE_SECONDS
        complete = len(self._succeeded.get(key, ())) >= worker.group.members
        if not busy and (complete or idle >= most):
            self._end(worker)
        elif now - worker.renewed >= _RENEW_SECONDS:
            worker.book.renew()
            worker.renewed = now

    def _end(self, worker: GroupWorker) -> None:
        orders.say_over(worker.book.path)
        self._workers.pop(worker.group.key, None)

    def _exited(self, jobs: list[Job], now: float) -> list[Job]:
        if now - self._looked < _STEP_SECONDS:
            return []
        self._looked = now
        seen = {job.spec.name: job for job in jobs if exchange.has_exited(job.attempt)}
        self.has_news = not seen.keys() <= self._exits.keys()
        # While Slurm says anything else, it may be about to run the worker again: its next state decides.
        running = {name for name, job in seen.items() if job.row is not None and job.row.state is SlurmState.RUNNING}
        self._exits = {name: self._exits.get(name, now) if name in running else now for name in seen}
        return [job for name, job in seen.items() if name in running and now - self._exits[name] >= _patience(job)]

    # -- what Slurm says ---------------------------------------------------------------------------------------------

    def saw(self, rows: Mapping[tuple[str, int], QueueRow]) -> None:
        """Take note of an answer of the queue: a worker that has ended takes no more orders."""
        for worker in list(self._workers.values()):
            row = rows.get(worker.key)
            worker.began = worker.began or (row is not None and row.state is SlurmState.RUNNING)
            if row is not None and row.ended:
                self._end(worker)

    def lost(self, job: Job) -> None:
        """Take note of a worker that Slurm has lost, with one of its members."""
        for worker in list(self._workers.values()):
            if worker.key == (job.name, job.index):
                self._end(worker)

    def refused(self, jobs: Collection[Job], error: Exception) -> bool:
        """Dissolve groups whose workers sbatch has refused; their members run alone.

        Returns:
            False if pipes connect all of these jobs. Else some are to be submitted again: those that pipes connect too,
            which are then by themselves.
        """
        if all(job.spec.together and job.group is not None and job.group.piped is None for job in jobs):
            self._notice(_piped(jobs, error))
            return False
        self._dissolve({job.group.key: job.group.name for job in jobs if job.group is not None}, error)
        return True

    def end_all(self) -> None:
        """End all workers when their members have ended: the run is over."""
        with suppress(OSError):
            orders.say_all_over(self._state)
        self._workers.clear()


def _script(directory: str, workers: Iterable[GroupWorker]) -> str:
    command = shlex.join(own_command(f"{__package__}.worker"))
    keys = sorted((worker.key[1], worker.book.public) for worker in workers)
    cases = "".join(f"  {index}) key={public} ;;\n" for index, public in keys)
    head = '#!/bin/sh\nindex="${SLURM_ARRAY_TASK_ID:-0}"\n'
    return f'{head}case "$index" in\n{cases}esac\nexec {command} {shlex.quote(directory)} "$index" "$key"\n'


def _stop(
    table: JobTable, workers: Mapping[tuple[str, int], GroupWorker], running: Mapping[tuple[str, int], list[Job]]
) -> None:
    """End single members, also of workers that get no more orders; one that is to end as a whole Slurm cancels."""
    to_cancel = {job.spec.name for job in table.to_cancel()}
    for key, of_worker in running.items() if to_cancel else ():
        ended = [job for job in of_worker if job.spec.name in to_cancel]
        worker = workers.get(key)
        began = (worker is not None and worker.began) or any(fence.latest(job.attempt) > 0 for job in ended)
        if worker is not None:
            worker.began = began  # Slurm may say so later
        if len(ended) == len(of_worker) and not began:
            continue
        for job in ended:
            by_forge = job.cancelled is not None and job.cancelled.ended_by is EndedBy.FORGE
            if by_forge and (order := orders.of_attempt(job.attempt)) is not None:
                orders.stop(*order)
                table.cancelled([job])


def _piped(jobs: Collection[Job], error: Exception) -> str:
    """Say why jobs that pipes connect are not submitted one by one."""
    names = ", ".join(dict.fromkeys(job.group.name for job in jobs if job.group is not None))
    rules = ", ".join(dict.fromkeys(job.spec.rule for job in jobs))
    return (
        f"Forge: group {names} cannot be one Slurm job ({error}). Pipes or services connect {rules}, which can "
        "only run on one node: they fail. Give them a group without the other rules, or lower its resources."
    )


def _patience(job: Job) -> float:
    """Seconds that the result of a member may take to appear after the end of its process."""
    if exchange.terminated(job.attempt) is not None:
        return 0.0 if job.cancelled is not None else WRITTEN_RESULT_SECONDS  # else Slurm's next state says why
    return 1.0 if job.cancelled is not None else RESULT_SECONDS
