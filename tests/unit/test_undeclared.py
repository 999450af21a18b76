"""Summaries of the files that rules do not declare."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from snakemake_executor_plugin_forge.analysis.undeclared import undeclared
from snakemake_executor_plugin_forge.spec.wildcards import with_wildcards


def _record(rule: str, wildcards: dict[str, str], reads: list[str] | None, writes: list[str]) -> dict[str, Any]:
    return {"rule": rule, "wildcards": wildcards, "outcome": "succeeded", "undeclared_reads": reads,
            "undeclared_writes": writes}


def test_the_last_attempt_of_each_job_counts() -> None:
    records = [
        _record("call", {"s": "A"}, ["ref.fa.fai", "gone.txt"], []),
        _record("call", {"s": "A"}, ["ref.fa.fai"], ["calls/A.idx"]),
        _record("call", {"s": "B"}, ["ref.fa.fai"], ["calls/B.idx"]),
        _record("map", {}, [], []),
        _record("call", {"s": "C"}, None, []) | {"outcome": "running"},
    ]
    (entry,) = undeclared(records)
    assert (entry.rule, entry.jobs, entry.audited) == ("call", 2, True)
    assert entry.reads == {"ref.fa.fai": 2}
    assert entry.writes == {"calls/{s}.idx": 2}


def test_what_several_jobs_of_a_rule_made_is_for_expand_and_directories_are_marked() -> None:
    made = [_record("map", {"s": s}, [], []) | {"outputs": [{"path": f"map/{s}.bam"}]} for s in "BA"]
    (entry,) = undeclared([*made, _record("sum", {}, ["map/A.bam", "map/B.bam", "x"], ["d", "e"])], {"d"}.__contains__)
    assert entry.expanded == {"map/{s}.bam": {"map/A.bam": {"s": "A"}, "map/B.bam": {"s": "B"}}}
    assert entry.directories == {"d"}


@pytest.mark.parametrize(
    ("path", "wildcards", "expected"),
    [
        ("a/A.bai", {"sample": "A"}, "a/{sample}.bai"),
        ("AA.bai", {"sample": "A"}, "AA.bai"),  # a part of a word
        ("A-B/A.x", {"s": "A", "p": "A-B"}, "{p}/{s}.x"),  # the longer one first
        ("x{1}.txt", {"n": "1"}, "x{{{n}}}.txt"),
        ("x.txt", {"n": ""}, "x.txt"),
        ("chunk7.idx", {"n": "7"}, "chunk{n}.idx"),  # a number at the end of a word
        ("s7/chunk7.idx", {"n": "7"}, "s7/chunk7.idx"),  # ambiguous
        ("s7/7.idx", {"n": "7"}, "s7/{n}.idx"),
    ],
)
def test_wildcards_take_the_place_of_their_values(path: str, wildcards: dict[str, str], expected: str) -> None:
    assert with_wildcards(path, wildcards) == expected


@given(st.text("aB12{}./-", max_size=20), st.dictionaries(st.sampled_from(["x", "y"]), st.text("aB12-", max_size=3)))
def test_filled_in_again_it_is_the_path(path: str, wildcards: dict[str, str]) -> None:
    assert with_wildcards(path, wildcards).format(**wildcards) == path
