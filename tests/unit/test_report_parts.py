"""The pure parts of the report: the table, the timeline, the colours, the picture of the rules, the counts."""

from __future__ import annotations

import itertools
import re
from graphlib import TopologicalSorter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.analysis import rule_graph, trace
from snakemake_executor_plugin_forge.analysis.gathered import JobCounts
from snakemake_executor_plugin_forge.analysis.timeline import (
    WIDTH,
    Band,
    area,
    colour,
    luminance,
    most_at_a_time,
    ticks,
)

spans = st.lists(st.tuples(st.integers(0, 100), st.integers(1, 50), st.integers(1, 4)), max_size=30)
graphs = st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.sampled_from("abcdefgh"), max_size=4), max_size=8)


@given(spans)
def test_no_lane_has_two_attempts_at_a_time(found: list[tuple[int, int, int]]) -> None:
    band = Band("map")
    taken: set[tuple[int, int]] = set()
    for begin, seconds, _ in sorted(found):
        lane = band.add(begin, begin + seconds, ok=True)
        cells = {(lane, second) for second in range(begin, begin + seconds)}
        assert not cells & taken
        taken |= cells
    most = max((sum(1 for _, second in taken if second == at) for at in range(200)), default=0)
    assert band.lanes == most, "no lane is superfluous"
    path = band.path(150.0)
    drawn = [(float(begin), float(width)) for begin, width in re.findall(r"M(\S+) \S+?h([0-9.e-]+)", path)]
    assert len(drawn) == len(found)
    assert all(begin >= 0 and begin + width <= WIDTH * 1.01 for begin, width in drawn)
    heights = most_at_a_time([(begin, begin + seconds, cpus) for begin, seconds, cpus in found], 150.0, bins=150)
    assert heights == [sum(c for b, s, c in found if b <= second < b + s) for second in range(150)]
    assert area(heights, 40).count("h") == 150


def test_colours_of_many_rules_are_distinct_and_can_be_seen_on_light_and_dark() -> None:
    colours = [colour(number) for number in range(200)]
    assert len(set(colours)) == 200
    for one in colours:
        light = luminance(int(one[at : at + 2], 16) / 255 for at in (1, 3, 5))
        assert 1.05 / (light + 0.05) >= 3, one
        assert (light + 0.05) / (luminance((0x12 / 255, 0x16 / 255, 0x1B / 255)) + 0.05) >= 3, one


@pytest.mark.parametrize(("seconds", "last"), [(0.0, "0 s"), (0.4, "0.4 s"), (44, "40 s"), (90, "1 min 30 s"), (5000, "1 h 15 min"), (4e6, "40 d")])
def test_ticks_are_few_and_round(seconds: float, last: str) -> None:
    found = ticks(seconds)
    assert found[-1][1] == last
    assert 1 <= len(found) <= 7
    assert all(0 <= place <= 100 for place, _ in found)


@given(graphs)
def test_the_picture_of_any_rules(needs: dict[str, list[str]]) -> None:
    acyclic = rule_graph.without_cycles(needs)
    order = list(TopologicalSorter(acyclic).static_order())
    names = set(needs).union(*needs.values())
    assert set(order) == names
    less = rule_graph.reduced(acyclic)
    before: dict[str, dict[str, set[str]]] = {"all": {}, "less": {}}
    for rule in order:
        for kind, edges in (("all", acyclic), ("less", less)):
            before[kind][rule] = edges[rule].union(*(before[kind][one] for one in edges[rule]))
    assert before["all"] == before["less"], "the other edges imply those that are left out"
    picture = rule_graph.draw(needs)
    assert picture.boxes.keys() == names
    assert all(picture.boxes[one][1] < picture.boxes[rule][1] for rule, found in less.items() for one in found)
    boxes = sorted((top, left) for left, top in picture.boxes.values())
    for (top, left), (other_top, other_left) in itertools.pairwise(boxes):
        assert top != other_top or left + rule_graph.BOX_WIDTH < other_left, "no box covers another"
    assert all(0 <= left <= picture.width - rule_graph.BOX_WIDTH and top < picture.height for top, left in boxes)
    assert len(picture.edges) == sum(map(len, less.values()))


def _row(**other: Any) -> dict[str, Any]:
    row = dict.fromkeys(trace.NEEDED) | {
        "run": "r", "name": "00031-call", "rule": "call", "wildcards": {"s": "A\tB"}, "attempt": 2, "outcome": "succeeded", "reason": "succeeded",
        "exit_code": 0, "submitted": "2026-01-31T12:00:00+00:00", "started": "2026-01-31T12:00:01.500000+00:00", "seconds": 2.5, "cpus": 2,
        "cpu_seconds": 3.75, "memory_limit_bytes": 1024, "wall_limit_seconds": 60, "io_read_bytes": 7, "io_write_bytes": 8, "runtime": "host", "backend": "local"}
    return row | other


def test_the_table_has_nextflows_names_and_units_where_they_mean_the_same() -> None:
    head, line = trace.tsv([_row()])
    cells = dict(zip(head[:-1].split("\t"), line[:-1].split("\t"), strict=True))
    start = 1769860801500
    assert cells | {
        "task_id": "31", "process": "call", "tag": "s=A\\tB", "name": "call (s=A\\tB)", "status": "COMPLETED", "exit": "0", "attempt": "2",
        "submit": str(start - 1500), "start": str(start), "complete": str(start + 2500), "duration": "4000", "realtime": "2500", "cpus": "2",
        "memory": "1024", "time": "60000", "disk": "-", "%cpu": "150", "read_bytes": "7", "write_bytes": "8",
        "directory": ".snakemake/forge/runs/r/00031-call"} == cells
    for outcome, status in (("oom", "FAILED"), ("cancelled", "ABORTED"), ("running", "RUNNING")):
        found = dict(zip(trace.COLUMNS, trace.cells(_row(outcome=outcome, exit_code=None, signal=9, submitted="")), strict=True))
        assert (found["status"], found["exit"], found["submit"], found["duration"]) == (status, 137, None, None)
        assert (found["complete"] is None) == (outcome == "running")


def test_states_of_a_rule() -> None:
    told = {
        counts.state: counts.words()
        for counts in (
            JobCounts({"succeeded": 3, "oom": 1, "lost": 1}, 6), JobCounts({"running": 1, "succeeded": 1}, 3), JobCounts({"cancelled": 1}, 1),
            JobCounts({"succeeded": 1}, 3), JobCounts({"succeeded": 2}, 3, taken_over=1), JobCounts({}, 1, at_all=False))
    }
    assert told == {"failed": "2 failed, 3 of 6 done", "running": "1 running, 1 of 3 done", "cancelled": "1 cancelled, 0 of 1 done",
                    "pending": "1 of 3 done", "succeeded": "3 of 3 done", "needless": "only names files"}
    assert JobCounts().words() == "up to date"
