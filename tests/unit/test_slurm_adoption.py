"""Jobs of a killed run that a later one adopts or forbids to publish; with real files, without a cluster."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_forge.backends.slurm import exchange, fence, orders
from snakemake_executor_plugin_forge.backends.slurm.adoption import (
    TICKET,
    Earlier,
    adopt,
    forbid_earlier,
    success,
    write_ticket,
)
from snakemake_executor_plugin_forge.backends.slurm.job import Job, batch_name
from snakemake_executor_plugin_forge.backends.slurm.parse import QueueRow, parse_squeue
from snakemake_executor_plugin_forge.record.reader import read_run
from snakemake_executor_plugin_forge.spec.job import FilePolicy, Files, LaunchSpec, Target
from snakemake_executor_plugin_forge.spec.verdict import Outcome, Usage, Verdict
from tests.unit.test_slurm_parse import spec

SUCCESS = Verdict(Outcome.SUCCEEDED, "succeeded", 0, None, Usage(cpu_seconds=2.0), "2026-01-01T00:00:00+00:00", 3.0)


class Past:
    """A directory in which Snakemake was killed while jobs of its run were in Slurm."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / ".snakemake/forge/runs"
        (self.runs / "old/slurm/results").mkdir(parents=True)
        (self.runs / "old/run.json").write_text(json.dumps({"ended": None, "boot_id": "of another time"}))
        (self.runs / "new").mkdir()
        (root / "in.txt").write_text("input")
        self.notices: list[str] = []

    def spec(self, name: str = "a", **changes: object) -> LaunchSpec:
        """A job that writes ``name``.txt."""
        files = Files(FilePolicy.GUARD, layers=(str(self.root),), targets=(Target(f"{self.root}/{name}.txt", f"{name}.txt"),))
        planned = replace(spec(), workdir=str(self.root), job_dir=str(self.runs / "old" / f"00001-{name}"), files=files,
                          rule=name, outputs=(f"{name}.txt",), inputs=("in.txt",))
        planned = replace(planned, **changes)  # type: ignore[arg-type]
        return replace(planned, adoptable=planned.files.staged)

    def submitted(self, index: int | str = 0, name: str = "a", **changes: object) -> Job:
        """A job of that run; ``index`` is the name of its directory."""
        job = Job(self.spec(name, **changes), b"", lambda _: None, (), 0.0, attempt=str(self.runs / f"old/slurm/b1/{index}"))
        Path(job.attempt).mkdir(parents=True)
        write_ticket(job)
        return job

    def finish(self, job: Job, *, result: bool = True, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """Let a job end while no run watches it."""
        claim = fence.claim(job.attempt, "node")
        assert claim is not None
        assert fence.take(claim)
        verdict = replace(SUCCESS, outcome=outcome, directory=job.spec.job_dir)
        Path(job.spec.job_dir).mkdir()
        Path(job.spec.job_dir, "verdict.json").write_text(json.dumps(
            {"outcome": str(outcome), "reason": "by the record", "later": 1, "usage": {"cpu_seconds": 2.0, "of_later": 1},
             "seconds": 3.0, "started": "2026-01-01T00:00:00+00:00"}))
        if result:
            exchange.write_result(exchange.state_of(job.attempt), job.attempt, verdict)
        for target in job.spec.files.targets:
            Path(target.path).write_text("written")

    def earlier(self) -> Earlier:
        """The past as the next run sees it."""
        return Earlier(str(self.runs), "new", self.notices.append)


def queue(*states: str) -> list[QueueRow]:
    text = "".join(f"{n + 10}|9|{n}|{state}|None|2026-01-01T00:00:00|n1|{batch_name('old', 'b1')}\n" for n, state in enumerate(states))
    return parse_squeue(text)


@pytest.mark.parametrize(("record", "counts"), [
    ({"ended": "now"}, False), ({"ended": "now", "declared_dead": True}, True), ({"ended": None}, True)])
def test_which_runs_may_have_left_jobs(tmp_path: Path, record: dict[str, Any], counts: bool) -> None:
    past = Past(tmp_path)
    (past.runs / "old/run.json").write_text(json.dumps(record))
    assert past.earlier().open is counts
    assert read_run(str(past.runs / "old")).over is (not counts or record.get("ended") is not None)
    (past.runs / "old/slurm/closed").touch()
    assert not past.earlier().open
    assert not past.earlier().blocking
    assert read_run(str(past.runs / "old")).over


def test_the_same_job_is_taken_over_once(tmp_path: Path) -> None:
    past = Past(tmp_path)
    old = past.submitted()
    earlier = past.earlier()
    assert earlier.blocking
    assert earlier.meet(queue("RUNNING")) == []
    assert not earlier.blocking
    job = Job(replace(past.spec(job_dir="/elsewhere", scratch_base="/other"), name="00007-a"), b"", lambda _: None, (), 0.0)
    orphan = earlier.claim(job.spec)
    assert orphan is not None
    assert earlier.claim(job.spec) is None
    adopt(job, orphan, "new")
    assert (job.attempt, job.name, job.index, job.spec.job_dir) == (old.attempt, "forge-old.b1", 0, old.spec.job_dir)
    assert job.result == (str(past.runs / "old/slurm"), "b1.0.json")
    assert fence.holder(old.attempt) is None, "it may still publish"
    assert "left 1 Slurm job(s) that wait or run:" in past.notices[0]


def test_another_job_that_writes_the_same_is_forbidden_and_waited_for_to_be_gone(tmp_path: Path) -> None:
    past = Past(tmp_path)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"recipe": "other"}, "its code or params have changed"), ({"inputs": ()}, "other inputs"),
        ({"files": Files()}, "not staged now"), ({}, "in.txt changed meanwhile")]
    for number, (change, words) in enumerate(changes):
        old = past.submitted(number, f"rule{number}")
        earlier = past.earlier()
        rows = queue(*["COMPLETED"] * number, "PENDING")
        assert earlier.meet(rows) == []
        if not change:
            (tmp_path / "in.txt").write_text("another")
        assert earlier.claim(past.spec(f"rule{number}", **change)) is None
        assert words in past.notices[-1]
        assert "forbidden by run new" in str(fence.holder(old.attempt))
        assert earlier.blocking
        assert earlier.meet(rows) == [f"9_{number}"]
        assert earlier.meet(queue(*["CANCELLED"] * (number + 1))) == []
        assert not earlier.blocking


def test_a_pack_goes_on_without_what_is_not_wanted_any_more(tmp_path: Path) -> None:
    """A job that has begun must end first; the end of the pack says nothing about jobs that had not begun."""
    past = Past(tmp_path)
    wanted, other = past.submitted("0.0", "wanted"), past.submitted("0.1", "other")
    earlier = past.earlier()
    assert earlier.meet(queue("RUNNING")) == []
    assert earlier.claim(past.spec("other", recipe="other")) is None
    assert fence.is_forbidden(other.attempt)
    orphan = earlier.claim(past.spec("wanted"))
    assert orphan is not None
    adopt(wanted, orphan, "new")
    assert wanted.part == 0
    assert wanted.traces().packed
    assert not earlier.blocking
    for number in (2, 3):
        past.submitted(f"0.{number}", "late")
    assert fence.claim(past.submitted("0.4", "begun").attempt, "node") is not None
    earlier = past.earlier()
    earlier.meet(queue("RUNNING"))
    assert earlier.claim(past.spec("wanted")) is not None
    assert earlier.claim(past.spec("begun", recipe="other")) is None
    assert earlier.blocking, "it may write its outputs in place"
    earlier = past.earlier()
    assert earlier.dismiss(queue("RUNNING")) == ["9_0"]


def test_a_group_goes_on_without_a_member_that_is_not_wanted_any_more(tmp_path: Path) -> None:
    """The worker ends that member, and the others continue; new jobs wait until it has ended."""
    past = Past(tmp_path)
    past.submitted("0.0", "wanted")
    begun = past.submitted("0.1", "begun")
    path = orders.directory(str(past.runs / "old/slurm"), "b1", 0)
    orders.OrderBook(path)
    assert fence.claim(begun.attempt, "node") is not None
    earlier = past.earlier()
    assert earlier.meet(queue("RUNNING")) == []
    assert earlier.claim(past.spec("wanted")) is not None
    assert earlier.claim(past.spec("begun", recipe="other")) is None
    assert Path(path, "stop.1").exists()
    assert "the member of a group that run old has left is cancelled" in past.notices[-1]
    assert earlier.meet(queue("RUNNING")) == []
    assert earlier.blocking, "it may write its outputs in place"
    exchange.write_exit(begun.attempt)
    assert earlier.meet(queue("RUNNING")) == []
    assert not earlier.blocking


def test_what_succeeded_meanwhile_counts_by_result_or_record(tmp_path: Path) -> None:
    for result in (True, False):
        past = Past(tmp_path / str(result))
        job = past.submitted()
        past.finish(job, result=result)
        earlier = past.earlier()
        assert earlier.meet([]) == []
        orphan = earlier.claim(past.spec())
        assert orphan is not None
        assert orphan.verdict is not None
        assert orphan.verdict.ok
        assert orphan.verdict.usage.cpu_seconds == 2.0
        said: list[Verdict] = []
        adopted = Job(past.spec(job_dir="/elsewhere"), b"", said.append, (), 0.0)
        adopt(adopted, orphan, "new")
        adopted.done(orphan.verdict)
        assert said == [orphan.verdict]
        assert json.loads(Path(job.spec.job_dir, "verdict.json").read_text())["adopted"] == "new"


def test_what_failed_or_whose_outputs_are_gone_is_run_again(tmp_path: Path) -> None:
    past = Past(tmp_path)
    failed, gone, done = past.submitted(0, "a"), past.submitted(1, "b"), past.submitted(2, "c")
    past.finish(failed, outcome=Outcome.FAILED)
    past.finish(gone)
    past.finish(done)
    (tmp_path / "b.txt").unlink()
    earlier = past.earlier()
    earlier.meet([])
    assert success(failed.attempt, failed.spec.job_dir) is None
    assert [earlier.claim(past.spec(name)) is not None for name in "abc"] == [False, False, True]
    assert not earlier.blocking, "there is nothing to cancel"


def test_what_cannot_be_taken_over_is_ended_first(tmp_path: Path) -> None:
    past = Past(tmp_path)
    in_place = past.submitted(0, "a", files=Files())
    assert not Path(in_place.attempt, TICKET).exists()
    damaged = past.submitted(1, "b")
    Path(damaged.attempt, TICKET).write_text('{"identity": 3}')
    never_sent = past.submitted(2, "c")
    earlier = past.earlier()
    assert earlier.meet(queue("RUNNING", "PENDING")) == ["9_0", "9_1"]
    assert "2 Slurm job(s) that cannot be adopted" in past.notices[-1]
    for job in (in_place, damaged, never_sent):
        assert "forbidden by run new" in str(fence.holder(job.attempt))
    assert earlier.meet(queue("COMPLETING", "CANCELLED")) == ["9_0"]
    assert earlier.blocking
    assert earlier.meet(queue("CANCELLED")) == []
    assert not earlier.blocking


def test_the_end_of_a_run_closes_the_past(tmp_path: Path) -> None:
    past = Past(tmp_path)
    job = past.submitted()
    earlier = past.earlier()
    earlier.meet(queue("RUNNING"))
    earlier.spare()
    assert "the next run in this directory adopts them" in past.notices[-1]
    assert fence.holder(job.attempt) is None
    assert earlier.dismiss(queue("RUNNING")) == ["9_0"]
    assert "no job of this run is the same" in past.notices[-1]
    assert not (past.runs / "old/slurm/closed").exists()
    assert earlier.dismiss(queue("CANCELLED")) == []
    assert (past.runs / "old/slurm/closed").exists()
    assert not past.earlier().open


def test_a_run_without_slurm_forbids_what_was_left_there(tmp_path: Path) -> None:
    past = Past(tmp_path)
    job, done = past.submitted(0, "a"), past.submitted(1, "b")
    past.finish(done)
    assert forbid_earlier(str(past.runs), "new") == 1
    assert fence.claim(job.attempt, "it starts late") is None
    assert success(done.attempt, done.spec.job_dir) is not None
