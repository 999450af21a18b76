"""Orders that no other process can give, and members that fit beside each other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.backends.slurm import exchange, fence, orders, worker
from snakemake_executor_plugin_forge.backends.slurm.groups import Groups, Size, fits, whole
from snakemake_executor_plugin_forge.backends.slurm.job import Job, batch_name
from snakemake_executor_plugin_forge.backends.slurm.job_table import JobTable
from snakemake_executor_plugin_forge.backends.slurm.orders import OrderBook, OrderReader, RunOrder
from snakemake_executor_plugin_forge.spec.errors import UsageError
from snakemake_executor_plugin_forge.spec.job_group import JobGroup
from snakemake_executor_plugin_forge.spec.slurm import SlurmSettings
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Order
from tests.property.specs import spec


def test_orders_arrive_in_their_order_and_again_after_a_restart(tmp_path: Path) -> None:
    book = OrderBook(str(tmp_path))
    reader = OrderReader(book.path, book.public)
    assert list(reader.new()) == []
    book.run("0.0", "abc", first_only=False)
    book.run("0.1", "def", first_only=True)
    given = [RunOrder(0, "0.0", "abc"), RunOrder(1, "0.1", "def", first_only=True)]
    assert list(reader.new()) == given
    assert list(reader.new()) == []
    book.run("0.2", "", first_only=False)
    assert [order.number for order in reader.new()] == [2]
    assert [order.place for order in OrderReader(book.path, book.public).new()] == ["0.0", "0.1", "0.2"]


@pytest.mark.parametrize("change", ["place", "checksum", "first_only", "next", "signature"])
def test_a_changed_order_is_not_obeyed(tmp_path: Path, change: str) -> None:
    book = OrderBook(str(tmp_path))
    book.run("0.0", "abc", first_only=False)
    book.run("0.1", "def", first_only=False)
    path = tmp_path / "0"
    data = json.loads(path.read_text())
    other_signature = f"{int(data['signature'][:2], 16) ^ 1:02x}{data['signature'][2:]}"
    data[change] = {"first_only": True, "signature": other_signature}.get(change, "0" * 64)
    path.write_text(json.dumps(data))
    assert list(OrderReader(book.path, book.public).new()) == []


def test_an_order_of_somebody_else_is_not_obeyed(tmp_path: Path) -> None:
    """A process that reads all files and the batch script learns only signatures and public keys."""
    book, other = OrderBook(str(tmp_path / "book")), OrderBook(str(tmp_path / "other"))
    book.run("0.0", "abc", first_only=False)
    other.run("0.0", "abc", first_only=False)
    other.run("0.1", "evil", first_only=False)
    (tmp_path / "book" / "1").write_bytes((tmp_path / "other" / "1").read_bytes())
    assert [order.checksum for order in OrderReader(book.path, book.public).new()] == ["abc"]
    for text in ("", "{", "[]", "null", '{"place": 1}', "[" * 60_000):
        (tmp_path / "book" / "1").write_text(text)
        assert [order.checksum for order in OrderReader(book.path, book.public).new()] == ["abc"]


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_signature_is_that_of_one_message(one: bytes, other: bytes) -> None:
    private = [bytes([n]) * 32 for n in range(67)]
    signature = orders._sign(private, one)
    assert (orders._signer(signature, other) == orders._public(private)) == (one == other)


def test_members_fit_side_by_side() -> None:
    whole = Size(4, 1000, 1)
    assert fits(whole, [], Size(4, 1000, 1))
    assert fits(whole, [Size(2, 500), Size(1, None)], Size(1, 500))
    assert not fits(whole, [Size(2, 500)], Size(3, 100))
    assert not fits(whole, [Size(2, 500)], Size(1, 501))
    assert not fits(whole, [Size(1, 1, 1)], Size(1, 1, 1))
    assert fits(Size(4, None), [Size(2, 500)], Size(2, 5000)), "the memory of the group is unknown"


def test_a_worker_ends_without_its_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with its lease; an attempt that was stopped before it began only gets its sign."""
    monkeypatch.setattr(worker, "LEASE_SECONDS", 0.3)
    book = OrderBook(orders.directory(str(tmp_path), "b1", 0))
    attempt = tmp_path / "b1" / "0.0"
    attempt.mkdir(parents=True)
    orders.stop(book.path, 0)
    book.run("0.0", "abc", first_only=False)
    assert orders.of_attempt(str(attempt)) == (book.path, 0)
    term = signal.getsignal(signal.SIGTERM)
    try:
        assert worker.NodeWorker(f"{tmp_path}/b1", 0, book.public).run() == 0
    finally:
        signal.signal(signal.SIGTERM, term)
    assert exchange.has_exited(str(attempt))


def test_the_end_of_a_copy_is_not_that_of_the_next(tmp_path: Path) -> None:
    """Slurm may run a worker again, which then claims its attempts again."""
    attempt = str(tmp_path)
    assert fence.claim(attempt, "first") is not None
    exchange.write_exit(attempt)
    assert exchange.has_exited(attempt)
    assert fence.claim(attempt, "second") is not None
    assert not exchange.has_exited(attempt)


def groups_of(table: JobTable, directory: Path, told: list[str]) -> Groups:
    """Groups whose jobs are handed over without a node."""

    def send(job: Job, batch: str, index: int, part: int | None) -> bool:
        job.attempt = exchange.attempt_directory(str(directory), batch, index, part)
        job.batch, job.index, job.part, job.submissions = batch, index, part, job.submissions + 1
        job.name = batch_name("run", batch)
        table.was_sent(job)
        return True

    return Groups("run", str(directory), table, told.append, send, SlurmSettings())


def member(name: str, group: JobGroup, *, cpus: int = 1, since: float = 0.0, together: bool = False) -> Job:
    """A member that waits to be submitted."""
    of_member = replace(spec(name, None, cpus=cpus), group=group, together=together)
    return Job(of_member, b"", lambda _: None, (), since, group=group)


def test_members_of_a_pipe_do_not_wait_behind_one_that_does_not_fit(tmp_path: Path) -> None:
    """The older job may wait for them: they use a service, which keeps its room until they are done."""
    table = JobTable()
    groups = groups_of(table, tmp_path, [])
    group = JobGroup("g1", "g", 4, {"_cores": 2})
    service = member("service", group, together=True)
    table.add(service)
    groups.place([service], "b1", None)
    wide, small = member("wide", group, cpus=2, since=1.0), member("small", group, since=2.0)
    consumer = member("consumer", group, since=3.0, together=True)
    for job in (wide, small, consumer):
        table.add(job)
    groups.step(0.0)
    assert [bool(job.attempt) for job in (wide, small, consumer)] == [False, False, True], "small does not overtake wide either"


def test_what_pipes_connect_is_never_submitted_one_by_one(tmp_path: Path) -> None:
    """Piped jobs go to sbatch as one Slurm job of their own size, and fail if it refuses that too."""
    table, told = JobTable(), list[str]()
    groups = groups_of(table, tmp_path, told)
    pipe = JobGroup("g1 pipe", "g", 2, {"_cores": 7})
    group = JobGroup("g1", "g", 4, {"_cores": 100}, piped=pipe)
    alone, *piped = (member(name, group, together=name != "a") for name in ("a", "p1", "p2"))
    for job in (alone, *piped):
        table.add(job)
    assert groups.refused([alone, *piped], UsageError("too big")), "they are tried again"
    assert [job.grouped for job in (alone, *piped)] == [None, pipe, pipe]
    assert groups.shape(alone.spec) == (group, ())
    found, arguments = groups.shape(piped[0].spec)  # the shape of a job that comes later
    assert found == pipe
    assert "--cpus-per-task=7" in arguments
    assert piped[0].group_shape == arguments
    assert not groups.refused(piped, UsageError("too big"))
    assert "they fail" in told[-1]


def test_a_member_of_a_worker_without_further_orders_is_ended_by_itself(tmp_path: Path) -> None:
    """Its Slurm job runs others, which scancel would end too."""
    table = JobTable()
    groups = groups_of(table, tmp_path, [])
    group = JobGroup("g1", "g", 4, {"_cores": 2})
    service, other = member("service", group, together=True), member("other", group)
    for job in (service, other):
        table.add(job)
    groups.place([service, other], "b1", None)
    fence.claim(service.attempt, "copy")
    groups.lost(other)  # Slurm's answer about it was out of date
    assert not groups.has_worker(service)
    table.cancel(["service"], Order(EndedBy.FORGE, "nobody needs it any more"))
    groups.step(0.0)
    found = orders.of_attempt(service.attempt)
    assert found is not None
    assert OrderReader(found[0], "").names() >= {f"{orders.STOP}{found[1]}"}
    assert table.to_cancel() == [], "Slurm is asked to end nothing"


def test_a_group_asks_for_no_less_than_its_first_member() -> None:
    """Sums lack resources that are functions of missing inputs."""
    unknown = whole(spec("a", 300 << 20, cpus=2), JobGroup("g1", "g", 2, {"_cores": 1}))
    assert (unknown.limits.cpus, unknown.limits.memory_bytes, unknown.limits.wall_seconds) == (2, 300 << 20, None)
    known = whole(spec("a", 300 << 20), JobGroup("g1", "g", 2, {"_cores": 4, "mem_mb": 500, "runtime": 3}))
    assert (known.limits.cpus, known.limits.memory_bytes, known.limits.wall_seconds) == (4, 500 << 20, 180)


SNAKEFILE = """
import os
rule all:
    input: "c.txt", "y.txt"
rule a:
    output: "a.txt"
    group: "g"
    resources: mem_mb=100, cpus_per_task=-1
    shell: "touch {output}"
rule b:
    input: "a.txt"
    output: "b.txt"
    group: "g"
    resources: mem_mb=lambda wildcards, input, attempt: attempt * os.path.getsize(input[0])
    shell: "touch {output}"
rule c:
    input: "b.txt"
    output: "c.txt"
    group: "g"
    shell: "touch {output}"
rule x:
    output: "x.txt"
    group: "bad"
    resources: slurm_partition="one"
    shell: "touch {output}"
rule y:
    input: "x.txt"
    output: "y.txt"
    group: "bad"
    resources: slurm_partition="two"
    shell: "touch {output}"
"""

PROGRAM = """
import json, os
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import OutputSettings, Quietness, ResourceSettings
from snakemake_executor_plugin_forge.plugin.job_groups import JobGroups
from snakemake_executor_plugin_forge.spec.errors import UsageError
from snakemake_executor_plugin_forge.spec.job import Config

with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
    of_workflow = api.workflow(resource_settings=ResourceSettings(cores=4), snakefile=Path("Snakefile"))
    of_workflow.dag()
    workflow = of_workflow._workflow
    workflow._prepare_dag(forceall=False, ignore_incomplete=False, lock_warn_only=True, nolock=True)
    workflow._build_dag()
    jobs = {job.rule.name: job for job in workflow.dag.needrun_jobs()}
    del jobs["all"]
    groups = JobGroups(workflow, lambda job: job.rule.name != "all", lambda job: Config())
    said = []

    def update(*names):
        try:
            groups.update([jobs[name] for name in names])
        except UsageError as error:
            said.append(str(error))
        group = groups.of(jobs["b"])
        return group and [group.key, group.members, group.resources.get("mem_mb")]

    found = {"start": update(*jobs), "bad": groups.of(jobs["x"]), "cpus": groups.of(jobs["a"]).resources["cpus_per_task"]}
    Path("a.txt").write_bytes(bytes(700))
    found["ready"] = update("b")
    jobs["b"].attempt = 2
    found["repeated"] = update("b")
    workflow.dag._finished.add(jobs["a"])
    workflow.dag._needrun.discard(jobs["a"])  # as a checkpoint does
    groups._known.discard(jobs["c"])  # as if it were of the checkpoint
    found["checkpoint"] = update("c")
print(json.dumps([found, said]), flush=True)
os._exit(0)
"""


def test_groups_are_summed_again_when_more_is_known(tmp_path: Path) -> None:
    """A real DAG has memory by the size of an input that is made first, a second attempt, and an impossible group."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found, said = json.loads(done.stdout.splitlines()[-1])
    assert said, "reported at the start, and again when the DAG has changed"
    assert all("Group bad" in error for error in said)
    key = found["start"][0]
    assert found == {
        "start": [key, 3, 100],
        "bad": None,
        "cpus": -1,
        "ready": [key, 3, 700],
        "repeated": [key, 3, 1400],
        "checkpoint": [key, 3, 1400],
    }


def test_an_order_that_cannot_be_written_is_given_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves no worker that Slurm does not know, and no job that no worker knows."""
    table = JobTable()
    groups = groups_of(table, tmp_path, [])
    group = JobGroup("g1", "g", 2, {"_cores": 2})
    grouped = replace(spec("a", None), group=group)
    members = [Job(replace(grouped, name=name), b"", lambda _: None, (), 0.0, group=group) for name in ("a", "b")]
    for job in members:
        table.add(job)
    run = OrderBook.run

    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(OrderBook, "run", fail)
    with pytest.raises(OSError, match="No space"):
        groups.place(members, "b1", None)
    assert [job.unsent for job in members] == [True, True]
    assert not groups.has_worker(members[0])
    monkeypatch.setattr(OrderBook, "run", run)
    ready, is_array = groups.place(members, "b2", None)
    assert ([job.part for job in ready], is_array) == ([0, 1], False)
    assert groups.has_worker(members[0])
