"""The thread that calls Slurm: what polling.py decides, carried out for the jobs of a table.

Longer than other files: it is one class, which says why.
"""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import assert_never

from ...kernel.tree import remove_tree
from ...record.jsonfile import LEFT
from ...spec import words
from ...spec.errors import ForgeError, UsageError
from ...spec.verdict import Cause, Outcome
from ...supervisor.reaper import never_started
from ..registry import Services
from . import exchange, fence, packing, polling
from .adoption import Earlier, adopt, success, write_ticket
from .client import Full, SlurmClient, Unanswered
from .copies import clear_copies, put_aside
from .groups import Groups
from .job import Job, batch_name, hand_over, has_begun, is_streamed, own_arguments, script, verdict_without_result
from .job_table import JobTable
from .parse import ClusterFacts, QueueRow, Used
from .sbatch import asks_for
from .states import NODE_AT_FAULT
from .verdicts import ended, refused

CLOSE_SECONDS = 40.0  # to wait at the end of a run for Slurm to end what is left
_MAX_ACCOUNTING_TRIES = 5  # that may fail before Forge concludes without the accounting on jobs which Slurm forgot


class Dispatcher:
    """Makes the calls to Slurm that the jobs of a table need. Used from one thread at a time.

    Longer than other classes: all calls share one limiter, and an outage or an earlier run holds all of them up.
    """

    def __init__(
        self,
        services: Services,
        client: SlurmClient,
        facts: ClusterFacts,
        table: JobTable,
        durations: packing.Durations,
    ) -> None:
        self._services, self._client, self._facts, self._table = services, client, facts, table
        self._state = f"{services.run_dir}/slurm"
        self._earlier = Earlier(os.path.dirname(services.run_dir), services.run_id, services.notice)
        self._limiter = polling.Limiter()
        self._polling = polling.Polling()
        self._settings = services.config.slurm
        self._durations = durations
        self.groups = Groups(services.run_id, self._state, table, services.notice, self._hand_over, self._settings)
        self._room, self._ended = polling.Room(), 0
        self._faulty: set[str] = set()  # nodes on which jobs of this run were lost for the node's sake
        self._nodes: int | None = None
        self._batches = 0
        self._told: set[str] = set()
        self._accounting_tries = _MAX_ACCOUNTING_TRIES if facts.accounting else 0

    def run(self) -> None:
        """Work until the table is closed."""
        while True:
            with self._table.changed:
                if self._table.closing:
                    return
                now = time.monotonic()
                pauses = (self._demand().pause_seconds(now, self._limiter.wait_seconds(now)), self.groups.pause_seconds)
                self._table.changed.wait(min((pause for pause in pauses if pause is not None), default=None))
            try:
                self._step()
            except Exception as error:  # whatever it is, the next round tries again: without this thread the run hangs
                if not isinstance(error, ForgeError | OSError):
                    traceback.print_exc()
                self._tell(f"Forge: Slurm: {error}")
                time.sleep(polling.MIN_POLL_SECONDS)

    def _demand(self) -> polling.Demand:
        table, blocked = self._table, self._polling.out_since is not None or self._earlier.blocking
        jobs = [job for job in table.unsent() if not self.groups.has_worker(job)]
        unsent = tuple(polling.Waiting(job.spec.name, job.kind, job.since) for job in jobs)
        sent, to_cancel, dropped = bool(table.sent()), bool(table.to_cancel()), bool(table.dropped())
        if table.ended != self._ended:
            self._room, self._ended = self._room.freed(), table.ended
        return polling.Demand(unsent, sent, to_cancel, blocked, self._polling.due, dropped, self._room.not_before)

    def _step(self) -> None:
        """Make the call that is due, if one is."""
        for job in self._table.dropped():
            if job.cancelled is not None:
                self._table.finish(job, never_started(job.spec, job.cancelled))
        self._take_over()
        now = time.monotonic()
        for job in self.groups.step(now):
            self._conclude(job, job.row)
        if self.groups.has_news:
            self.groups.has_news = False
            self._polling = self._polling.at_latest(now + polling.MIN_POLL_SECONDS)
        demand = self._demand()
        call = demand.next_call(now)
        if call is None or not self._limiter.take(now):
            return
        match call:
            case polling.Call.CANCEL:
                self._cancel()
            case polling.Call.SUBMIT:
                names = {job.name for job in polling.next_batch(demand.unsent, self._facts.max_array)}
                self._submit([job for job in self._table.unsent() if job.spec.name in names])
            case polling.Call.QUERY:
                self._query()
            case _:
                assert_never(call)

    def _submit(self, jobs: list[Job]) -> None:
        """Call sbatch once, for jobs of one shape: for one, for a pack, or with an array for several."""
        self._batches += 1
        batch = f"b{self._batches}"
        ready, is_array = self._place(jobs, batch)
        if not ready:
            return
        for job in ready:
            os.makedirs(exchange.script_directory(job.attempt), exist_ok=True)
        name, settings = batch_name(self._services.run_id, batch), self._settings
        own = own_arguments(name, self._state, ready, settings, is_array=is_array)
        arguments = [*own, *ready[0].arguments, *self._later_arguments(ready)]
        text = script(self._state, ready) if ready[0].grouped is None else self.groups.script(ready)
        try:
            number = self._client.submit(arguments, text)
        except Full as error:
            self._room = self._room.refused(len({job.index for job in ready}), time.monotonic())
            self._tell(f"Forge: Slurm takes no more jobs of yours for now ({error}); the others follow as jobs end.")
            self._take_back(ready, batch)
        except UsageError as error:
            self._refused(ready, batch, error)
        except Unanswered as error:  # the next query that is answered tells whether it was taken
            self._unanswered(error)
        else:
            self._room = self._room.accepted()
            for job in ready:
                job.slurm_id = f"{number}_{job.index}" if is_array else number
            self._polling = self._polling.at_latest(time.monotonic() + polling.MIN_POLL_SECONDS)

    def _place(self, jobs: list[Job], batch: str) -> tuple[list[Job], bool]:
        """Divide jobs among the Slurm jobs of a batch, as far as the queue takes them, and write what nodes need.

        Returns:
            The jobs that could be handed over, and whether they need an array.
        """
        if jobs[0].grouped is not None:
            return self.groups.place(jobs, batch, self._room.most)
        # A time limit in slurm_extra is that of one job.
        alone = jobs[0].spec.limits.wall_seconds is None and asks_for(jobs[0].shape, "-t", "--time")
        expected = [None if alone or job.alone else self._expected(job, jobs) for job in jobs]
        groups = packing.packs(expected, None if alone or any(job.alone for job in jobs) else self._settings.pack)
        groups = groups[: self._room.most]
        packed = any(len(group) > 1 for group in groups)
        places = [(jobs[n], index, part) for index, group in enumerate(groups) for part, n in enumerate(group)]
        written = [job for job, index, part in places if self._write(job, batch, index, part if packed else None)]
        for job in written:
            job.packed = len(groups[job.index]) > 1
        return [job for job in written if self._sync(job)], len(groups) > 1

    def _expected(self, job: Job, jobs: list[Job]) -> float | None:
        return self._durations.expected(job.spec.rule) if self._settings.pack is None and len(jobs) > 1 else None

    def _later_arguments(self, jobs: list[Job]) -> list[str]:
        """The options of sbatch that the shape of the jobs does not decide; they go after it, and so win."""
        arguments = []
        nodes = self._settings.exclude if self._settings.exclude is not None else sorted(self._faulty)
        if nodes and not asks_for(jobs[0].arguments, "-x", "--exclude"):
            arguments.append(f"--exclude={','.join(nodes)}")
        wall = jobs[0].spec.limits.wall_seconds
        if jobs[0].part is not None and jobs[0].grouped is None and wall is not None:
            packs: dict[int, list[float | None]] = {}
            for job in jobs:
                packs.setdefault(job.index, []).append(self._durations.expected(job.spec.rule))
            minutes = max(packing.time_minutes(wall, expected[1:]) for expected in packs.values())
            arguments.append(f"--time={minutes}")
        return arguments

    def _refused(self, jobs: list[Job], batch: str, error: UsageError) -> None:
        """Fail jobs that sbatch has refused, unless it may have done so for what Forge has added."""
        again = bool(self._faulty) and self._settings.exclude is None
        if jobs[0].grouped is not None:
            again = again or self.groups.refused(jobs, error)
        elif again := again or jobs[0].part is not None:
            if jobs[0].part is not None:
                self._tell_alone(jobs[0], error)
            for job in jobs:
                job.alone = True
        if again:
            self._faulty.clear()
            self._take_back(jobs, batch)
            return
        self.groups.forget(batch)
        self._fail(jobs, error)

    def _tell_alone(self, job: Job, error: UsageError) -> None:
        self._tell(f"Forge: {error} (jobs of rule {job.spec.rule} as a pack); it gets them one by one.")

    def _fail(self, jobs: list[Job], error: UsageError) -> None:
        for job in jobs:
            fence.forbid(job.attempt, "the controller: sbatch refused it")
            cause = Cause.SBATCH_REFUSED
            said = words.unseen(cause, error)
            self._table.finish(job, ended(job.spec, Outcome.FAILED, cause, said, {"stage": "setup"}))

    def _take_back(self, jobs: list[Job], batch: str) -> None:
        """Submit later what Slurm has not taken."""
        self.groups.forget(batch)
        for job in jobs:
            job.submissions -= 1
            self._table.is_again_unsent(job, time.monotonic())
        remove_tree(f"{self._state}/{batch}")

    def _hand_over(self, job: Job, batch: str, index: int, part: int | None) -> bool:
        """Write what the node needs, and sync it; False if that was impossible, which is the job's verdict then."""
        return self._write(job, batch, index, part) and self._sync(job)

    def _write(self, job: Job, batch: str, index: int, part: int | None) -> bool:
        try:
            hand_over(job, self._services, self._state, batch, index, part)
            write_ticket(job)
        except (ForgeError, OSError) as error:
            return self._not_handed_over(job, error)
        return True

    def _sync(self, job: Job) -> bool:
        try:
            exchange.sync_launch(job.attempt)
        except OSError as error:
            return self._not_handed_over(job, error)
        job.row, job.same_since, job.submissions = None, time.monotonic(), job.submissions + 1
        self._table.was_sent(job)
        return True

    def _not_handed_over(self, job: Job, error: Exception) -> bool:
        self._table.finish(job, refused(job.spec, f"it could not be handed over to a node: {error}"))
        return False

    # -- what Slurm says -------------------------------------------------------------------------------------------

    def _query(self) -> bool:
        """Ask for all jobs at once; False if nobody answered."""
        begun = time.monotonic()
        try:
            rows = self._client.queue()
        except Unanswered as error:
            self._unanswered(error)
            return False
        self._answers_again(begun)
        if self._earlier.blocking and (ids := self._earlier.meet(rows)):
            self._scancel(ids)
        found = {row.key: row for row in rows}
        self.groups.saw(found)
        news = self._follow(found, begun)
        self._polling = self._polling.answered(time.monotonic(), news=news)
        return True

    def _follow(self, found: Mapping[tuple[str, int], QueueRow], begun: float) -> bool:
        """Act on each job as an answer of the queue, asked for at ``begun``, says; return whether that is news."""
        news, unknown, apart, over = False, list[Job](), list[Job](), list[tuple[Job, QueueRow | None]]()
        for job in self._table.sent():
            if not job.attempt:
                continue  # taken back by _again with another member of its pipe
            row = found.get((job.name, job.index))
            news |= job.note(row, begun)
            traces = job.traces() if row is not None and row.ended else polling.Traces(packed=job.packed)
            step = polling.next_step(row, begun - job.same_since, traces, cancelled=job.cancelled is not None)
            match step:
                case polling.Step.ASK_USAGE:
                    over.append((job, row))
                case polling.Step.ASK_STATE:
                    unknown.append(job)
                case polling.Step.CONCLUDE:
                    self._conclude(job, row)
                case polling.Step.SUBMIT_AGAIN:
                    self._again(job, row)
                case polling.Step.TAKE_APART:
                    apart.append(job)
                case polling.Step.WAIT:
                    self._tell(polling.remark(row, job.spec.rule))
                case _:
                    assert_never(step)
        self._take_apart(apart)
        self._conclude_all(over)
        self._ask_accounting(unknown)
        return news

    def _ask_accounting(self, jobs: list[Job]) -> None:
        """Ask for jobs that the controller does not know: forgotten after MinJobAge, or never heard of."""
        rows: Mapping[tuple[str, int], QueueRow] = {}
        known = [job.slurm_id for job in jobs if job.slurm_id]
        if self._accounting_tries > 0 and known:
            self._await_turn()
            try:
                rows = {row.key: row for row in self._client.history(known)}
            except Unanswered as error:
                self._accounting_tries -= 1
                self._tell(f"Forge: Slurm's accounting does not answer ({error}); jobs that are gone wait for it.")
                return
        over: list[tuple[Job, QueueRow | None]] = []
        for job in jobs:
            row = rows.get((job.name, job.index))
            unknown = time.monotonic() - job.same_since
            match polling.step_after_accounting(row, unknown, job.traces()):
                case polling.Step.WAIT if unknown >= polling.WRITTEN_RESULT_SECONDS:
                    self._tell(
                        f"Forge: rule {job.spec.rule}: Slurm's controller does not know job {job.slurm_id} any more, "
                        "but the accounting takes it for alive. Forge waits for its result; if the controller has lost "
                        "its jobs, stop the run (Ctrl-C) and start it again."
                    )
                case polling.Step.SUBMIT_AGAIN:
                    self._again(job, row)
                case polling.Step.ASK_USAGE:
                    over.append((job, row))
        self._conclude_all(over)

    def _conclude_all(self, jobs: list[tuple[Job, QueueRow | None]]) -> None:
        """Conclude on jobs that have left no result, with what Slurm's accounting knows of their usage."""
        left = [(job, row) for job, row in jobs if not self._table.take(job.result)]
        alone = [(job, row) for job, row in left if not job.packed]
        unmeasured = [job.slurm_id for job, row in alone if row is not None and not job.traces().terminated]
        used: dict[str, Used] = {}
        if self._accounting_tries > 0 and unmeasured:
            self._await_turn()
            with suppress(Unanswered):
                used = self._client.used(unmeasured)
        for job, row in left:
            self._conclude(job, row, used.get(job.slurm_id))

    def _conclude(self, job: Job, row: QueueRow | None, used: Used | None = None) -> None:
        """Finish a job that is over and has left no result, unless there is one by now."""
        if self._table.take(job.result):
            return
        if (verdict := success(job.attempt, job.spec.job_dir)) is not None:
            clear_copies(job.spec, job.attempt)
            self._table.finish(job, verdict)  # its node died before it could say so, or a killed run had read it
            return
        if not fence.forbid(job.attempt, "the controller") and time.monotonic() - job.same_since < CLOSE_SECONDS:
            return  # a copy has just taken it, and is about to report
        if row is not None and row.state in NODE_AT_FAULT:
            self._avoid(row.nodes)
        self._table.finish(job, verdict_without_result(job, row, used if not job.packed else None))

    def _avoid(self, nodes: str) -> None:
        """Give no more jobs to a node that has lost one, unless half of the cluster is like that already."""
        if self._settings.exclude is not None or not re.fullmatch(r"[\w.-]+", nodes):  # else auto, and one node
            return
        if self._nodes is None:
            self._await_turn()
            with suppress(Unanswered):
                self._nodes = self._client.node_count()
        if len(self._faulty | {nodes}) * 2 <= (self._nodes or 0):
            self._faulty.add(nodes)
            self._tell(
                f"Forge: Slurm node {nodes} has lost a job; this run submits no more to it (--forge-slurm-exclude)."
            )

    def _again(self, job: Job, row: QueueRow | None) -> None:
        """Submit once more a job that Slurm has lost before it could run, so that the lost one never can.

        Members of a pipe are taken back together: in two Slurm jobs they would wait for each other without end.
        """
        if not job.attempt:
            return  # taken back already, with another member
        self.groups.lost(job)
        streamed, lost = is_streamed([job]), [job]
        if streamed:
            own = [other for other in self._table.sent() if (other.name, other.index) == (job.name, job.index)]
            lost = [other for other in own if is_streamed([other]) and other.cancelled is None]
        over = job.submissions >= polling.MAX_SUBMISSIONS or job.cancelled is not None
        over = over or (streamed and has_begun(job))  # what has gone through a pipe is gone
        free = [not over and fence.forbid(other.attempt, "the controller: submitted again") for other in lost]
        if not all(free) or over or (streamed and has_begun(job)):  # a copy has published, or one has begun just now
            self._conclude(job, row)
            return
        for other in lost:
            begun = put_aside(other.spec, other.attempt, other.submissions)
            other.alone = other.alone or (other.part is not None and not streamed and (begun or other.submissions > 1))
            self._table.is_again_unsent(other, time.monotonic())

    def _take_apart(self, jobs: list[Job]) -> None:
        """Submit one by one what Slurm never starts together, as if sbatch had refused it."""
        if not jobs or not self._scancel(list(dict.fromkeys(job.slurm_id for job in jobs))):
            return
        error = UsageError(f"Slurm will not start it: {jobs[0].row.reason if jobs[0].row is not None else ''}")
        grouped = [job for job in jobs if job.grouped is not None]
        for job in jobs:
            if job.grouped is None:
                self._tell_alone(job, error)
                job.alone = True
        if grouped and not self.groups.refused(grouped, error):
            self._fail(grouped, error)
        for job in jobs:
            if self._table.find(job.spec.name) is job:
                self._again(job, job.row)

    # -- cancelling ------------------------------------------------------------------------------------------------

    def _cancel(self) -> None:
        """End exactly the jobs that are to be ended: by ids that Slurm has just named together with our names."""
        if not self._query():
            return
        due = {job.spec.name for job in self._table.to_cancel()}
        self.groups.step(time.monotonic())  # orders the end of single members: what is left ends with its Slurm job
        seen = [job for job in self._table.to_cancel() if job.spec.name in due and job.row is not None]
        ids = list(dict.fromkeys(job.row.job_id for job in seen if job.row is not None and not job.row.ended))
        if ids and not self._scancel(ids):
            return
        self._table.cancelled(seen)
        self._polling = self._polling.at_latest(time.monotonic())

    def _scancel(self, ids: list[str]) -> bool:
        """Call scancel when a call may be made; False if nobody answered."""
        self._await_turn()
        try:
            self._client.cancel(ids)
        except Unanswered as error:
            self._unanswered(error)
            return False
        return True

    def _await_turn(self) -> None:
        while not self._limiter.take(time.monotonic()):
            time.sleep(polling.BATCH_SECONDS)

    # -- jobs of earlier runs ----------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Adopt the jobs that an earlier run has submitted already, in place of submitting them."""
        if not self._earlier.open or self._earlier.blocking or self._polling.out_since is not None:
            return
        for job in self._table.unsent():
            orphan = self._earlier.claim(job.spec)
            if orphan is None:
                continue
            adopt(job, orphan, self._services.run_id)
            job.row, job.same_since = None, time.monotonic()
            if orphan.verdict is not None:
                self._table.finish(job, orphan.verdict)
            else:
                self._table.was_sent(job)
        if self._earlier.blocking:
            self._polling = replace(self._polling, due=0.0)

    def end_earlier(self, *, succeeded: bool) -> None:
        """End what earlier runs have left and this one did not need. To be called when the thread has ended.

        Args:
            succeeded: whether this run did; if not, the next one may want what is left.
        """
        if not self._earlier.open:
            return
        if not succeeded:
            self._earlier.spare()
            return
        deadline = time.monotonic() + CLOSE_SECONDS
        with suppress(Unanswered, OSError):  # the next run does it
            while time.monotonic() < deadline:
                self._await_turn()
                ids = self._earlier.dismiss(self._client.queue())
                if not ids:
                    return
                self._await_turn()
                self._client.cancel(ids)

    def abandon(self) -> None:
        """Keep from publishing what Slurm could not be told to end. To be called when the thread has ended."""
        if not (left := self._table.sent()):
            return
        with suppress(OSError), open(f"{self._services.run_dir}/{LEFT}", "w", encoding="ascii"):
            pass
        for job in left:
            with suppress(OSError):
                if not self._table.take(job.result) and fence.forbid(job.attempt, "the controller: the run is over"):
                    self._table.finish(job, verdict_without_result(job, None))
        self._services.notice(
            f"Forge: Slurm has not confirmed the end of {len(left)} job(s) of this run ({left[0].name} …). "
            "Jobs that have not published by now never will, and the next run in this directory cancels them first."
        )

    # -- a controller that does not answer -------------------------------------------------------------------------

    def _unanswered(self, error: Exception) -> None:
        """Unknown is not dead: Forge concludes nothing about any job until the controller answers again."""
        if self._polling.out_since is None:
            self._services.notice(
                f"Forge: {error}. Running jobs continue; Forge submits nothing until it answers again."
            )
        self._polling = self._polling.unanswered(time.monotonic())

    def _answers_again(self, now: float) -> None:
        if self._polling.out_since is None:
            return
        away = now - self._polling.out_since
        self._polling = replace(self._polling, out_since=None)
        self._services.notice(f"Forge: Slurm's controller answers again, after {away:.0f} s.")
        for job in self._table.jobs():  # what it does not know right after its restart, it may know a moment later
            job.same_since = now

    def _tell(self, text: str | None) -> None:
        """Show a sentence to the user, once."""
        if text is not None and text not in self._told:
            self._told.add(text)
            self._services.notice(text)
