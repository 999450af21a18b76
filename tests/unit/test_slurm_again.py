"""Jobs that Slurm has lost: Forge submits them again or gives a verdict, and never waits forever. No cluster."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.backends.registry import Services
from snakemake_executor_plugin_forge.backends.slurm import backend, exchange, fence, orders, worker
from snakemake_executor_plugin_forge.backends.slurm.adoption import unclosed_runs
from snakemake_executor_plugin_forge.backends.slurm.client import SlurmClient, Unanswered
from snakemake_executor_plugin_forge.backends.slurm.dispatcher import CLOSE_SECONDS, Dispatcher
from snakemake_executor_plugin_forge.backends.slurm.job import Job
from snakemake_executor_plugin_forge.backends.slurm.job_table import JobTable
from snakemake_executor_plugin_forge.backends.slurm.packing import Durations
from snakemake_executor_plugin_forge.backends.slurm.parse import ClusterFacts, QueueRow
from snakemake_executor_plugin_forge.backends.slurm.states import SlurmState
from snakemake_executor_plugin_forge.spec.job import Config
from snakemake_executor_plugin_forge.spec.job_group import JobGroup
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Order, Outcome, Verdict
from snakemake_executor_plugin_forge.workers.launcher import Command
from tests.property.specs import spec

GROUP = JobGroup("g1", "g", 2, {"_cores": 2})
ENDED = QueueRow("7", "n", 0, SlurmState.TIMEOUT, "TIMEOUT", "", "")


class Controller:
    """A dispatcher that calls no program, with jobs of one Slurm job."""

    def __init__(self, root: Path) -> None:
        self.state = root / ".snakemake/forge/runs/run/slurm"
        self.state.mkdir(parents=True)
        services = Services("run", str(self.state.parent), Config(), lambda *_: pytest.fail("not called"), print)
        self.table = JobTable()
        facts = ClusterFacts("c", "22.05", 1000, accounting=False)
        self.dispatcher = Dispatcher(services, SlurmClient(), facts, self.table, Durations(str(self.state.parents[1])))
        self.verdicts: dict[str, Verdict] = {}

    def sent(self, part: int, *, together: bool) -> Job:
        """A job that was submitted."""
        name = f"0000{part}-a"
        planned = replace(spec(name, None), job_dir=str(self.state.parent / name), together=together,
                          group=GROUP if together else None)
        job = Job(planned, b"", lambda verdict: self.verdicts.__setitem__(name, verdict), (), 0.0,
                  attempt=exchange.attempt_directory(str(self.state), "b1", 0, part), name="n", batch="b1", part=part,
                  submissions=1, row=ENDED, same_since=time.monotonic(), group=planned.group)
        Path(job.attempt).mkdir(parents=True)
        self.table.add(job)
        self.table.was_sent(job)
        return job


def test_a_job_that_was_killed_while_it_published_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """The limit of its pack ended it; it cannot be submitted again, as its copy holds the attempt forever."""
    controller = Controller(tmp_path)
    job = controller.sent(0, together=False)
    mine = fence.claim(job.attempt, "node")
    assert mine is not None
    assert fence.take(mine)
    controller.dispatcher._again(job, ENDED)
    assert not controller.verdicts, "it may be about to report"
    job.same_since -= CLOSE_SECONDS
    controller.dispatcher._again(job, ENDED)
    assert controller.verdicts[job.spec.name].outcome is Outcome.TIMEOUT


def test_a_pipe_of_which_nothing_has_begun_is_submitted_again_as_a_whole(tmp_path: Path) -> None:
    for submissions in (1, 2):
        controller = Controller(tmp_path / str(submissions))
        jobs = [controller.sent(part, together=True) for part in range(2)]
        places = [job.attempt for job in jobs]
        for job in jobs:
            job.submissions = submissions
        controller.dispatcher._again(jobs[0], None)
        assert [job.unsent for job in jobs] == [True, True]
        assert [job.grouped for job in jobs] == [GROUP, GROUP], "in two Slurm jobs they would wait for each other"
        assert all(map(fence.is_forbidden, places))
        controller.dispatcher._again(jobs[1], None)
        assert not controller.verdicts


def test_a_pipe_of_which_one_end_has_begun_is_lost(tmp_path: Path) -> None:
    controller = Controller(tmp_path)
    jobs = [controller.sent(part, together=True) for part in range(2)]
    assert fence.claim(jobs[1].attempt, "node") is not None
    controller.dispatcher._again(jobs[0], None)
    assert controller.verdicts[jobs[0].spec.name].outcome is Outcome.LOST
    assert not jobs[1].unsent


def test_what_slurm_never_starts_together_is_submitted_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default sbatch takes a job that is too long for its partition, and the queue keeps it forever."""
    controller, cancelled = Controller(tmp_path), list[str]()
    waits = replace(ENDED, state=SlurmState.PENDING, state_text="PENDING", reason="PartitionTimeLimit")
    monkeypatch.setattr(SlurmClient, "queue", lambda _: [waits])
    monkeypatch.setattr(SlurmClient, "cancel", lambda _, ids: cancelled.extend(ids))
    jobs = [controller.sent(part, together=False) for part in range(2)]
    attempts = [job.attempt for job in jobs]
    for job in jobs:
        job.packed = True
    assert controller.dispatcher._query()
    assert cancelled == ["7"]
    assert all(job.unsent and job.alone for job in jobs)
    assert all(map(fence.is_forbidden, attempts))


def test_a_job_beside_packs_is_in_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit is the job's own, so reaching it must not make the job run again."""
    controller = Controller(tmp_path)
    jobs = [Job(spec(f"0000{n}-a", None), b"", lambda _: None, (), 0.0, alone=n == 9) for n in range(10)]
    monkeypatch.setattr(Durations, "expected", lambda *_: 0.1)
    monkeypatch.setattr(Dispatcher, "_sync", lambda *_: True)

    def write(_: Dispatcher, job: Job, batch: str, index: int, part: int | None) -> bool:
        job.batch, job.index, job.part, job.packed = batch, index, part, part is not None
        return True

    monkeypatch.setattr(Dispatcher, "_write", write)
    controller.dispatcher._place(jobs, "b1")
    assert [job.packed for job in jobs] == [True] * 9 + [False]
    assert None not in {job.part for job in jobs}


def test_what_slurm_could_not_be_told_to_end_publishes_nothing_and_the_next_run_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes while the controller is away."""
    away, said, verdicts = threading.Event(), list[str](), list[Verdict]()

    def queue(_: SlurmClient) -> list[QueueRow]:
        if away.is_set():
            raise Unanswered("it is away")
        return []

    monkeypatch.setattr(SlurmClient, "facts", lambda _: ClusterFacts("c", "22.05", 1000, accounting=False))
    monkeypatch.setattr(SlurmClient, "submit", lambda *_: "7")
    monkeypatch.setattr(SlurmClient, "queue", queue)
    monkeypatch.setattr(backend, "CLOSE_SECONDS", 0.1)
    run = tmp_path / ".snakemake/forge/runs/run"
    run.mkdir(parents=True)
    slurm = backend.SlurmBackend(Services("run", str(run), Config(), lambda *_: (Command("", (), "", {}, ()), "launcher"), said.append))
    slurm.submit(replace(spec("00000-a", None), job_dir=str(run / "00000-a")), b"", verdicts.append, is_command=True)
    while not (sent := slurm._table.sent()) or not sent[0].slurm_id:
        time.sleep(0.01)
    away.set()
    slurm.cancel_all(Order(EndedBy.USER, "Ctrl-C"))
    slurm.close()
    assert fence.is_forbidden(sent[0].attempt)
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CANCELLED]
    assert "has not confirmed the end of 1 job(s) of this run (forge-run.b1 …)" in said[-1]
    (run / "run.json").write_text('{"ended": "2026-01-01T00:00:00+00:00"}')
    assert unclosed_runs(str(run.parent), "next") == {"run"}


def test_a_worker_that_slurm_runs_again_repeats_no_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs the members that had not begun."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    book = orders.OrderBook(orders.directory(str(tmp_path), "b1", 0))
    began, new = (tmp_path / "b1" / name for name in ("0.0", "0.1"))
    for path in (began, new):
        path.mkdir(parents=True)
    assert fence.claim(str(began), "before") is not None
    again = worker.NodeWorker(f"{tmp_path}/b1", 0, book.public)
    order = orders.RunOrder(0, "0.0", "", first_only=True)
    assert again._is_repeated(order, str(began))
    assert not again._is_repeated(order, str(new))
    assert not again._is_repeated(replace(order, first_only=False), str(began))
