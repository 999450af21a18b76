"""The Slurm backend: submits, listens, asks now and then, cancels.

::

    thread "forge-slurm"      calls Slurm's commands, never more than one a second: sbatch, squeue, scancel, sacct
    thread "forge-results"    looks into one directory for the verdicts that the nodes' part of Forge has written

Decisions are made elsewhere: what to tell Slurm and what it says in slurm_text, what its states mean in slurm_states,
when and together with whom in slurm_pace, who may publish in ..fence.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

from .. import fence
from ..errors import ForgeError, UsageError
from ..model import Done, Host, LaunchSpec, Outcome
from ..unattended import never_started
from . import handover
from .services import Services
from .slurm_adoption import Earlier, adopt, success, write_ticket
from .slurm_client import SlurmClient, Unanswered
from .slurm_copies import clear_copies
from .slurm_job import Job, batch_name, hand_over, never_began, own_arguments, script, verdict_without_result
from .slurm_ledger import Ledger
from .slurm_pace import (
    GATHER_SECONDS,
    MIN_POLL_SECONDS,
    Limiter,
    Silence,
    Waiting,
    gathered,
    judge_silence,
    next_batch,
    next_poll_seconds,
)
from .slurm_states import TABLE, Fate
from .slurm_text import ClusterFacts, Row, adapt, check, shape
from .slurm_usage import Used
from .unstarted import ended, refused

_MAX_SUBMISSIONS = 5  # of a job that Slurm loses before anything of it runs
_MAX_ACCOUNTING_TRIES = 5  # that may fail before jobs which Slurm does not know are given up without it
_OVERDUE_SECONDS = 5.0
_OUTAGE_POLL_SECONDS = 10.0
_CLOSE_SECONDS = 40.0


class SlurmBackend:
    """Runs jobs in the cluster of SLURM_CONF."""

    name = "slurm"

    def __init__(self, services: Services, client: SlurmClient | None = None) -> None:
        """Find the cluster and start the threads.

        Raises:
            HostError: if there is none.

        """
        self._services = services
        self._client = client or SlurmClient()
        self.facts = self._client.facts()
        self.host = _host(self.facts)
        self._state = f"{services.run_dir}/slurm"
        os.makedirs(f"{self._state}/{handover.RESULTS}", exist_ok=True)
        self._earlier = Earlier(os.path.dirname(services.run_dir), services.run_id, services.notice)
        self._ledger = Ledger()
        self._stopped = False  # somebody wants it to end
        self._limiter = Limiter()
        self._batches = 0
        self._poll_seconds = MIN_POLL_SECONDS
        self._poll_at = 0.0
        self._out_since: float | None = None  # the controller does not answer
        self._told: set[str] = set()
        self._accounting_tries = _MAX_ACCOUNTING_TRIES if self.facts.accounting else 0
        self._threads = [threading.Thread(target=self._loop, name="forge-slurm", daemon=True),
                         threading.Thread(target=self._ledger.listen, name="forge-results", daemon=True)]  # fmt: skip
        for thread in self._threads:
            thread.start()

    # -- called by Snakemake's threads -----------------------------------------------------------------------------

    def check(self, rule: str, resources: dict[str, object]) -> None:
        """Refuse resources before anything runs.

        Raises:
            UsageError: see :func:`.slurm_text.check`.

        """
        check(rule, resources)

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        """See :class:`..model.Backend`."""
        del is_command
        spec = adapt(spec)
        self._ledger.add(Job(spec, payload, done, shape(spec), time.monotonic()))

    def cancel(self, name: str, reason: str) -> None:
        """See :class:`..model.Backend`."""
        self._ledger.cancel([name], reason)

    def cancel_all(self, reason: str, grace: bool) -> None:
        """See :class:`..model.Backend`. Slurm itself kills after its KillWait, so there is nothing to be cut short."""
        del grace
        self._stopped = True
        self._ledger.cancel(None, reason)

    def wait_idle(self, timeout_seconds: float) -> bool:
        """See :class:`..model.Backend`."""
        return self._ledger.wait_idle(timeout_seconds)

    def close(self) -> None:
        """See :class:`..model.Backend`. Jobs that are left are cancelled."""
        if self._ledger.jobs():
            self.cancel_all("the run is over", grace=True)
            self.wait_idle(_CLOSE_SECONDS)
        self._ledger.close()
        for thread in self._threads:
            thread.join()
        self._end_earlier()

    # -- the thread that calls Slurm -------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._ledger.changed:
                if self._ledger.closing:
                    return
                self._ledger.changed.wait(self._pause_seconds())
            try:
                self._step()
            except (ForgeError, OSError) as error:  # whatever it is, the next round tries again
                self._tell(f"Forge: Slurm: {error}")
                time.sleep(MIN_POLL_SECONDS)

    def _pause_seconds(self) -> float | None:
        now = time.monotonic()
        if (self._ledger.unsent() and not self._blocked()) or self._ledger.to_cancel():
            return max(GATHER_SECONDS / 2, self._limiter.wait_seconds(now))
        if self._ledger.jobs():
            return max(GATHER_SECONDS / 2, self._poll_at - now, self._limiter.wait_seconds(now))
        return None

    def _step(self) -> None:
        """Make the call that is due, if one is."""
        self._drop_unsent()
        self._take_over()
        now = time.monotonic()
        waiting = {job.spec.name: job for job in self._ledger.unsent()}
        unsent = [Waiting(name, job.shape, job.since) for name, job in waiting.items()]
        sent = bool(self._ledger.sent())
        if self._ledger.to_cancel() and self._limiter.take(now):
            self._scancel()
        elif unsent and self._may_submit(sent, now) and gathered(unsent, now) and self._limiter.take(now):
            self._submit([waiting[job.name] for job in next_batch(unsent, self.facts.max_array)])
        elif (sent or self._blocked()) and now >= self._poll_at and self._limiter.take(now):
            self._query()

    def _blocked(self) -> bool:
        """Whether nothing is submitted before the next answer: there was none, or earlier runs may have left jobs."""
        return self._out_since is not None or self._earlier.blocking

    def _may_submit(self, sent: bool, now: float) -> bool:
        """Not while something stands against it, and not if a query has waited long for its turn."""
        return not self._blocked() and not (sent and now > self._poll_at + _OVERDUE_SECONDS)

    def _drop_unsent(self) -> None:
        for job in self._ledger.jobs():
            if not job.attempt and job.cancelled is not None:
                self._ledger.finish(job, never_started(job.spec, job.cancelled))

    def _submit(self, jobs: list[Job]) -> None:
        """One call of sbatch: for one job, or an array for several of one shape."""
        self._batches += 1
        batch = f"b{self._batches}"
        ready = [job for index, job in enumerate(jobs) if self._hand_over(job, batch, index)]
        if not ready:
            return
        is_array = len(jobs) > 1
        own = own_arguments(batch_name(self._services.run_id, batch), self._state, ready, is_array=is_array)
        try:
            number = self._client.submit([*own, *ready[0].shape], script(self._state, batch))
        except UsageError as error:
            for job in ready:
                fence.give_up(job.attempt, "the controller: sbatch refused it")
                words = f"{error}; nothing of it was run"
                self._ledger.finish(job, ended(job.spec, Outcome.FAILED, words, "", {"stage": "setup"}))
        except Unanswered as error:  # the next query that is answered tells whether it was taken
            self._outage(error)
        else:
            for job in ready:
                job.slurm_id = f"{number}_{job.index}" if is_array else number
            self._poll_seconds = MIN_POLL_SECONDS
            due = time.monotonic() + MIN_POLL_SECONDS
            self._poll_at = min(self._poll_at, due) if self._poll_at else due

    def _hand_over(self, job: Job, batch: str, index: int) -> bool:
        """Write what the node needs; False if that was impossible, which is the job's verdict then."""
        try:
            hand_over(job, self._services, self._state, batch, index)
            write_ticket(job)
        except (ForgeError, OSError) as error:
            self._ledger.finish(job, refused(job.spec, f"it could not be handed over to a node: {error}"))
            return False
        job.row, job.quiet_since, job.submissions = None, time.monotonic(), job.submissions + 1
        self._ledger.was_sent(job)
        return True

    # -- what Slurm says -------------------------------------------------------------------------------------------

    def _query(self) -> bool:
        """Ask for all jobs at once; False if nobody answered."""
        begun = time.monotonic()
        try:
            rows = self._client.queue()
        except Unanswered as error:
            self._outage(error)
            return False
        self._answered(begun)
        self._meet_earlier(rows)
        found = {(row.name, row.index): row for row in rows}
        changed, gone, over = False, [], list[tuple[Job, Row | None]]()
        for job in self._ledger.sent():
            row = found.get((job.name, job.index))
            changed |= job.note(row, begun)
            self._remark(job)
            match judge_silence(row, job.quiet_since, begun):
                case Silence.ENDED:
                    over.append((job, row))
                case Silence.GONE:
                    gone.append(job)
                case Silence.WAIT if row is not None and self._ended_on_purpose(job, row):
                    self._conclude(job, row)
                case Silence.WAIT if row is not None and never_began(job, row, begun):
                    self._again(job, row)
                case Silence.WAIT:
                    pass
        self._conclude_all(over)
        if gone:
            self._ask_accounting(gone)
        self._poll_seconds = next_poll_seconds(self._poll_seconds, changed=changed)
        self._poll_at = time.monotonic() + self._poll_seconds
        return True

    def _meet_earlier(self, rows: list[Row]) -> None:
        """What runs whose Snakemake was killed have left: end what is not to be taken over, before anything is run."""
        if self._earlier.blocking and (ids := self._earlier.meet(rows)):
            self._tell_slurm_to_end(ids)

    def _take_over(self) -> None:
        """Jobs that an earlier run has submitted already are not submitted again."""
        if self._blocked() or not self._earlier.open:
            return
        for job in self._ledger.unsent():
            orphan = self._earlier.claim(job.spec)
            if orphan is None:
                continue
            adopt(job, orphan, self._services.run_id)
            job.row, job.quiet_since = None, time.monotonic()
            if orphan.verdict is not None:
                self._ledger.finish(job, orphan.verdict)
            else:
                self._ledger.was_sent(job)
        if self._earlier.blocking:
            self._poll_at = 0.0

    def _end_earlier(self) -> None:
        """At the end of the run: what nobody has asked for. To be called when the threads have ended."""
        if not self._earlier.open:
            return
        if self._stopped or not self._ledger.all_ok:
            self._earlier.spare()
            return
        deadline = time.monotonic() + _CLOSE_SECONDS
        with suppress(Unanswered, OSError):  # the next run does it
            while time.monotonic() < deadline:
                self._await_turn()
                ids = self._earlier.dismiss(self._client.queue())
                if not ids:
                    return
                self._await_turn()
                self._client.cancel(ids)

    def _remark(self, job: Job) -> None:
        """Tell the user what only a person can do something about."""
        row = job.row
        if row is not None and row.state is None:
            self._tell(
                f"Forge: Slurm says that job {row.job_id} is {row.state_text}, a state that this version of Forge does "
                "not know; it is taken to be alive."
            )
        elif row is not None and job.is_held():
            self._tell(
                f"Forge: rule {job.spec.rule}: Slurm job {row.job_id} is held ({row.reason or row.state_text}); it "
                f"goes on after: scontrol release {row.job_id}"
            )

    def _ended_on_purpose(self, job: Job, row: Row) -> bool:
        """Whether a job need not be waited for: it was ended, and its node has said so or never had it."""
        if row.state is None or TABLE[row.state].fate is not Fate.ENDED:
            return False
        return job.was_terminated() or (job.cancelled is not None and not job.may_still_speak())

    def _conclude_all(self, jobs: list[tuple[Job, Row | None]]) -> None:
        """Jobs that have ended and left no verdict, with what Slurm says: its accounting may know what they used."""
        silent = [(job, row) for job, row in jobs if not self._ledger.take(job.result)]
        unknown = [job.slurm_id for job, row in silent if row is not None and not job.was_terminated()]
        used: dict[str, Used] = {}
        if self._accounting_tries > 0 and unknown:
            self._await_turn()
            with suppress(Unanswered):
                used = self._client.used(unknown)
        for job, row in silent:
            self._conclude(job, row, used.get(job.slurm_id))

    def _conclude(self, job: Job, row: Row | None, used: Used | None = None) -> None:
        """The verdict on a job that is over and has left none, unless it is there by now."""
        if self._ledger.take(job.result):
            return
        if (verdict := success(job.attempt, job.spec.job_dir)) is not None:
            clear_copies(job.spec, job.attempt)
            self._ledger.finish(job, verdict)  # its node died before it could say so, or who was killed had read it
            return
        if not fence.give_up(job.attempt, "the controller") and time.monotonic() - job.quiet_since < _CLOSE_SECONDS:
            return  # a copy has just taken it, and is about to say so
        self._ledger.finish(job, verdict_without_result(job, row, used))

    def _ask_accounting(self, jobs: list[Job]) -> None:
        """Jobs that the controller does not know: forgotten after MinJobAge, or never heard of."""
        rows: dict[tuple[str, int], Row] = {}
        known = [job for job in jobs if job.slurm_id]
        if self._accounting_tries > 0 and known:
            self._await_turn()
            try:
                rows = {(row.name, row.index): row for row in self._client.history(job.slurm_id for job in known)}
            except Unanswered as error:
                self._accounting_tries -= 1
                self._tell(f"Forge: Slurm's accounting does not answer ({error}); jobs that are gone wait for it.")
                return
        over: list[tuple[Job, Row | None]] = []
        for job in jobs:
            row = rows.get((job.name, job.index))
            if row is None and fence.latest(job.attempt) == 0:
                self._again(job)
            elif row is None or (row.state is not None and TABLE[row.state].fate is Fate.ENDED):
                over.append((job, row))
        self._conclude_all(over)

    def _again(self, job: Job, row: Row | None = None) -> None:
        """Slurm has lost a job of which nothing has run: submit it once more, so that the lost one never can."""
        if job.submissions >= _MAX_SUBMISSIONS or job.cancelled is not None:
            self._conclude(job, row)
        elif fence.give_up(job.attempt, "the controller: submitted again"):
            self._ledger.is_again_unsent(job, time.monotonic())

    def _scancel(self) -> None:
        """End exactly those that are to be ended: by ids that Slurm has just named together with our names."""
        if not self._query():
            return
        seen = [job for job in self._ledger.to_cancel() if job.row is not None]
        rows = [job.row for job in seen if job.row is not None]
        ids = [row.job_id for row in rows if row.state is None or TABLE[row.state].fate is not Fate.ENDED]
        if ids and not self._tell_slurm_to_end(ids):
            return
        self._ledger.cancelled(seen)
        self._poll_seconds, self._poll_at = MIN_POLL_SECONDS, time.monotonic()

    def _tell_slurm_to_end(self, ids: list[str]) -> bool:
        """False if nobody answered."""
        self._await_turn()
        try:
            self._client.cancel(ids)
        except Unanswered as error:
            self._outage(error)
            return False
        return True

    def _await_turn(self) -> None:
        """Wait until one more call may be made."""
        while not self._limiter.take(time.monotonic()):
            time.sleep(GATHER_SECONDS)

    # -- a controller that does not answer -------------------------------------------------------------------------

    def _outage(self, error: Exception) -> None:
        """Unknown is not dead: nothing is concluded about any job until it answers again."""
        if self._out_since is None:
            self._out_since = time.monotonic()
            self._services.notice(f"Forge: {error}. Jobs that run go on; nothing is submitted until it answers again.")
        self._poll_seconds = next_poll_seconds(self._poll_seconds, changed=False)
        self._poll_at = time.monotonic() + min(self._poll_seconds, _OUTAGE_POLL_SECONDS)

    def _answered(self, now: float) -> None:
        if self._out_since is None:
            return
        away = now - self._out_since
        self._out_since = None
        self._services.notice(f"Forge: Slurm's controller answers again, after {away:.0f} s.")
        for job in self._ledger.jobs():  # what it does not know right after its restart, it may know a moment later
            job.quiet_since = now

    def _tell(self, text: str) -> None:
        """Once."""
        if text not in self._told:
            self._told.add(text)
            self._services.notice(text)


def open_backend(services: Services) -> SlurmBackend:
    """For :mod:`.registry`.

    Raises:
        HostError: if there is no cluster.

    """
    return SlurmBackend(services)


def _host(facts: ClusterFacts) -> Host:
    """What the plan may know of nodes that nobody has seen yet: the node itself checks the rest."""
    return Host(
        run_memory_bytes=1 << 62,
        cpus=1 << 20,
        cgroup="slurm",
        cgroup_note=f"of Slurm {facts.version}, cluster {facts.name}",
        namespaces="user",  # what can be had is planned; node.enclosed() takes away what a node does not give
        namespaces_note="",
        mechanisms=(),
    )


