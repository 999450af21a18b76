"""At most one copy of an attempt publishes: real processes, real files."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snakemake_executor_plugin_forge import fence


def claimed(directory: Path, who: str = "test") -> fence.Claim:
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


def test_who_was_given_up_cannot_publish_and_who_published_cannot_be_given_up(tmp_path: Path) -> None:
    dead, done = claimed(tmp_path / "dead"), claimed(tmp_path / "done")
    assert fence.give_up(str(tmp_path / "dead"), "controller")
    assert not fence.take(dead)
    assert fence.holder(str(tmp_path / "dead")) == "given up by controller"
    assert fence.take(done)
    assert not fence.give_up(str(tmp_path / "done"), "controller")


def test_a_copy_that_starts_when_all_is_over_is_told_so(tmp_path: Path) -> None:
    assert fence.take(claimed(tmp_path))
    assert fence.claim(str(tmp_path), "late") is None


def test_an_attempt_is_given_up_before_anybody_has_claimed_it(tmp_path: Path) -> None:
    assert fence.give_up(str(tmp_path / "never"), "controller")
    assert fence.claim(str(tmp_path / "never"), "late") is None


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
    won = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert sum(won) == 1
    assert sorted(os.listdir(tmp_path)) == [fence.CLAIMS, fence.TAKEN]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["claim", "take", "give up"]), st.integers(0, 4)), max_size=20))
def test_whatever_happens_in_whatever_order_at_most_one_has_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    directory = str(tmp_path_factory.mktemp("fence"))
    copies: list[fence.Claim] = []
    won: set[str] = set()
    for step, which in steps:
        if step == "claim":
            mine = fence.claim(directory, "test")
            assert (mine is None) == bool(won)
            copies += [mine] if mine is not None else []
        elif step == "give up":
            if fence.give_up(directory, "test"):
                assert not won
                won.add("controller")
        elif copies:
            mine = copies[which % len(copies)]
            if fence.take(mine):
                assert mine == copies[-1]
                won.add(mine.token)
        assert len(won) <= 1
