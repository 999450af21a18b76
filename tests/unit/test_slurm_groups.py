"""Orders that nobody else can give, and members that fit beside each other."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.backends.slurm import exchange, fence, orders, worker
from snakemake_executor_plugin_forge.backends.slurm.groups import Groups, Size, fits
from snakemake_executor_plugin_forge.backends.slurm.job import Job
from snakemake_executor_plugin_forge.backends.slurm.job_table import JobTable
from snakemake_executor_plugin_forge.backends.slurm.orders import OrderBook, OrderReader, RunOrder
from snakemake_executor_plugin_forge.spec.job_group import JobGroup
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
    data[change] = {"first_only": True, "signature": "00" + data["signature"][2:]}.get(change, "0" * 64)
    path.write_text(json.dumps(data))
    assert list(OrderReader(book.path, book.public).new()) == []


def test_an_order_of_somebody_else_is_not_obeyed(tmp_path: Path) -> None:
    """Whoever can read all files, and the batch script too, knows signatures and public keys only."""
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
    assert fits(Size(4, None), [Size(2, 500)], Size(2, 5000)), "nobody has said how much memory it has"


def test_a_worker_ends_without_its_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease is what it goes by; an attempt that was stopped before it began only gets its sign."""
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
    """Slurm may run a worker again, which claims its attempts anew."""
    attempt = str(tmp_path)
    assert fence.claim(attempt, "first") is not None
    exchange.write_exit(attempt)
    assert exchange.has_exited(attempt)
    assert fence.claim(attempt, "second") is not None
    assert not exchange.has_exited(attempt)


def test_an_order_that_cannot_be_written_is_given_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is left that Slurm does not know, and no job that no worker knows."""
    table = JobTable()

    def send(job: Job, batch: str, index: int, part: int | None) -> bool:
        job.attempt = exchange.attempt_directory(str(tmp_path), batch, index, part)
        job.batch, job.index, job.part, job.submissions = batch, index, part, job.submissions + 1
        table.was_sent(job)
        return True

    groups = Groups("run", str(tmp_path), table, print, send)
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
