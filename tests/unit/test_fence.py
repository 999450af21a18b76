"""At most one copy of an attempt publishes: real processes, real files."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.backends.slurm import fence
from tests.conftest import DEADLINE


def claimed(directory: Path, who: str = "test") -> fence.CopyClaim:
    found = fence.claim(str(directory), who)
    assert found is not None
    return found


def test_the_later_copy_has_it_and_the_earlier_never_gets_it(tmp_path: Path) -> None:
    old, new = claimed(tmp_path), claimed(tmp_path)
    assert (old.number, new.number) == (1, 2)
    assert not fence.take(old)
    assert fence.take(new)
    assert fence.take(new)
    assert fence.holds(new)
    assert not fence.take(old)
    assert not fence.holds(old)
    assert fence.holder(str(tmp_path)) == "copy 2"
    assert fence.claim(str(tmp_path), "late") is None


def test_a_damaged_file_belongs_to_nobody_here(tmp_path: Path) -> None:
    mine = claimed(tmp_path)
    (tmp_path / fence.TAKEN).write_text("{")
    assert not fence.take(mine)


def test_a_link_whose_answer_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, link = claimed(tmp_path), os.link

    def lost_answer(source: str, target: str) -> None:  # as NFS does when it has to send a request twice
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", lost_answer)
    assert fence.take(mine)


def _race(directory: str, barrier: object, results: object) -> None:
    mine = fence.claim(directory, "racer")
    barrier.wait()  # type: ignore[attr-defined]
    results.put(mine is not None and fence.take(mine))  # type: ignore[attr-defined]


def test_of_copies_that_race_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    count = 6
    barrier, results = context.Barrier(count), context.Queue()
    racers = [context.Process(target=_race, args=(str(tmp_path), barrier, results)) for _ in range(count)]
    for racer in racers:
        racer.start()
    won = [results.get(timeout=DEADLINE) for _ in racers]
    for racer in racers:
        racer.join()
    assert sum(won) == 1
    assert sorted(os.listdir(tmp_path)) == [fence.CLAIMS, fence.TAKEN]
