"""The progress of a run: estimates, Snakemake's events, and the line and the bar that show it."""

from __future__ import annotations

import io
import logging
import os
import re
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snakemake.settings.types import OutputSettings
from snakemake_interface_logger_plugins.tests import TestLogHandlerBase

from snakemake_executor_plugin_forge.spec.progress import (
    Planned,
    Progress,
    RuleProgress,
    Times,
    estimate,
    pieces,
    sentence,
    show_roughly,
)
from snakemake_logger_plugin_forge.handler import LogHandler, LogHandlerSettings
from snakemake_logger_plugin_forge.screen import Terminal, fitted, is_due
from snakemake_logger_plugin_forge.watched import Known, Watched

TEN = Times(10.0, 12.0)
BAR = re.compile("\x1bD|\x1b7.*?\x1b8|\x1b\\[A", re.DOTALL)
"""Sequences and text that the bar adds to a terminal's text."""


def _rule(jobs: int, threads: int = 1, *after: str, **more: Any) -> RuleProgress:
    return RuleProgress(Planned(jobs, threads, after), **{"times": TEN, **more})


@pytest.mark.parametrize(("rules", "slots", "elapsed", "words"), [
    ({"a": _rule(8)}, 4, 0, "20 s"),
    ({"a": _rule(8, 3)}, 4, 0, "1 min"),  # one at a time: 80 s
    ({"a": _rule(8), "b": _rule(1, 1, "a"), "c": _rule(1, 1, "b")}, 8, 0, "30 s"),  # a chain
    ({"a": _rule(8), "b": _rule(8, 1, "a"), "c": _rule(1, 1, "b")}, 2, 0, "1 min"),  # 85 s of work
    ({"a": _rule(16), "b": _rule(1, 1, "a"), "c": _rule(1, 1, "b")}, 4, 0, "1 min"),  # 45 s of work; 60 s with its end
    ({"a": _rule(3, done=2, running=(4.0,))}, 1, 23, "6 s"),
    ({"a": _rule(3, done=2, running=(11.0,))}, 1, 31, "1 s"),  # the longest so far took 12 s
    ({"a": _rule(3, done=2, running=(13.0,))}, 1, 33, "?"),  # no other took so long
    ({"a": _rule(4, done=2, running=(13.0,))}, 1, 33, "> 10 s"),
    ({"a": _rule(8, done=4)}, 4, 39, "40 s"),  # memory lets one run at a time, say
    ({"a": _rule(4), "b": _rule(1, times=None)}, 1, 0, "> 40 s"),
    ({"a": _rule(4, times=None)}, 1, 0, "?"),
    ({"a": _rule(4), "all": _rule(1, 0, "a", times=None)}, 1, 0, "40 s"),
    ({"a": _rule(5, failed=1)}, 1, 0, "< 40 s"),
    ({"a": _rule(5, failed=1), "b": _rule(1, times=None)}, 1, 0, "?"),
    ({"a": _rule(2, 1, "a", "b"), "b": _rule(2, 1, "a")}, 1, 0, "40 s"),  # rules that follow themselves and each other
    ({f"r{i}": _rule(1, 1, f"r{i - 1}") for i in range(3000)}, 8, 0, "8 h 20 min"),
    ({}, 4, 0, "0 s"),
])
def test_the_rest_is_estimated(rules: dict[str, RuleProgress], slots: float, elapsed: float, words: str) -> None:
    assert estimate(Progress(rules, slots, elapsed)).words() == words


SECONDS = st.floats(0, 1e7)
TIMES = st.none() | st.tuples(SECONDS, SECONDS).map(lambda pair: Times(min(pair), max(pair)))
RULES = st.dictionaries(st.sampled_from("abcd"), st.builds(
    RuleProgress, st.builds(Planned, st.integers(0, 50), st.integers(0, 9), st.lists(st.sampled_from("abcd"), max_size=3).map(tuple)),
    st.integers(0, 9), st.integers(0, 3), st.lists(SECONDS, max_size=3).map(tuple), TIMES))
PROGRESS = st.builds(Progress, RULES, st.integers(1, 64) | st.just(float("inf")), SECONDS, st.integers(-5, 5))


@given(PROGRESS, st.sampled_from("abcd"))
def test_no_estimate_is_negative_and_more_jobs_make_none_shorter(progress: Progress, name: str) -> None:
    found = estimate(progress)
    assert 0 <= found.seconds < float("inf")
    unknown = [rule for rule in progress.rules.values() if rule.pending and rule.times is None and rule.planned.threads]
    assert not (found.whole and (unknown or progress.more)), "an estimate with an unknown part is not whole"
    assert progress.done + progress.running + progress.failed + progress.pending == progress.total
    assert sentence(progress).isascii()
    if name in progress.rules:
        rule = progress.rules[name]
        more = RuleProgress(rule.planned._replace(jobs=rule.planned.jobs + 1), rule.done, rule.failed, rule.running, rule.times)
        longer = estimate(Progress({**progress.rules, name: more}, progress.slots, progress.elapsed, progress.more))
        assert longer.seconds >= found.seconds * (1 - 1e-9)


EVENTS = st.lists(st.tuples(st.sampled_from(["job_info", "job_finished", "job_error", "progress"]), st.integers(0, 5)), max_size=40)


@given(EVENTS, st.dictionaries(st.sampled_from(["r0", "r1"]), st.integers(1, 3)))
def test_events_in_any_order_add_up_and_the_total_never_falls(events: list[tuple[str, int]], stats: dict[str, int]) -> None:
    """Events may mean a retry, an error without a start, a job that ends twice, or new jobs of a checkpoint."""
    watched, total, done = Watched(), 0, 0
    watched.note("run_info", {"stats": {**stats, "total": sum(stats.values())}}, 0.0)
    for moment, (event, job) in enumerate(events):
        fields = {"jobid": job, "job_id": job, "rule_name": f"r{job % 3}", "threads": 1, "total": max(total, job)}
        watched.note(event, fields, float(moment))
        found = watched.progress(Known(), moment + 0.5)
        assert found.total >= max(total, found.done + found.failed + found.running) and found.done >= done
        assert min(found.pending, found.failed, found.running, estimate(found).seconds) >= 0
        total, done = found.total, found.done


def test_a_run_of_another_executor_is_known_by_what_it_has_seen_and_of_forge_by_its_records() -> None:
    watched = Watched()
    watched.note("run_info", {"stats": {"a": 3, "b": 1, "all": 1, "total": 5}}, 0.0)
    watched.note("resources_info", {"cores": 2}, 0.0)
    watched.note("rulegraph", {"rulegraph": {"links": [{"sourcerule": "a", "targetrule": "b"}, {"sourcerule": "b", "targetrule": "all"}]}}, 0.0)
    for job in (1, 2):
        watched.note("job_info", {"jobid": job, "rule_name": "a", "threads": 1}, 100.0)
    watched.note("job_finished", {"job_id": 1}, 110.0)
    recorded = {"a": Times(50.0, 60.0), "b": Times(30.0, 30.0)}
    assert estimate(watched.progress(Known(), 110.0)).words() == "> 10 s"
    assert estimate(watched.progress(Known(recorded), 110.0)).words() == "40 s"  # a as in this run, b as recorded
    plan = {"a": Planned(3), "b": Planned(1, 1, ("a",)), "all": Planned(1, 0, ("b",))}
    assert estimate(watched.progress(Known(recorded, plan), 110.0)).words() == "1 min"  # 75 s
    watched.note("progress", {"total": 9}, 111.0)  # a checkpoint has added jobs of unknown rules
    found = watched.progress(Known(recorded, plan), 111.0)
    assert (found.total, found.pending) == (9, 7) and estimate(found).words().startswith(">")
    assert sentence(found) == f"1 of 9 jobs (11%) done, 1 running (1 a), ETA {estimate(found).words()}"


@given(PROGRESS, st.integers(1, 200))
def test_a_line_fits(progress: Progress, width: int) -> None:
    parts = pieces(progress)
    bar, texts = fitted(parts, width, "...")
    assert sum(map(len, texts)) + 2 * (len(texts) - 1) + (bar + 2 if bar else 0) <= max(width, 0) or not texts
    assert set(texts) - {texts[-1] if texts else ""} <= set(parts)
    if width >= 40 and max(map(len, parts[:3])) < 12:
        assert {part for part in parts[:3] if part} <= set(texts) and bar >= 10


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (0.2, "1 s"), (11, "15 s"), (54, "55 s"), (55, "1 min"), (3540, "59 min"), (3599, "1 h 00 min"),
                                                (7500, "2 h 05 min"), (86399, "1 d 0 h"), (360000, "4 d 4 h")])
def test_a_time_to_come_is_rough(seconds: float, words: str) -> None:
    assert show_roughly(seconds) == words


@pytest.mark.parametrize(("seconds", "percents", "due"), [(60, 0, True), (59, 4, False), (10, 5, True), (9, 50, False)])
def test_a_log_file_gets_a_line_now_and_then(seconds: float, percents: int, due: bool) -> None:
    assert is_due(seconds, percents, 60) == due


@contextmanager
def _terminal(columns: int, rows: int, encoding: str) -> Iterator[tuple[TextIO, list[str]]]:
    """A stream to a terminal of that size, and a list that gets the text shown there at the end."""
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (rows, columns))
    attributes = termios.tcgetattr(its)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(its, termios.TCSANOW, attributes)
    shown: list[str] = []
    with open(its, "w", encoding=encoding) as stream:
        yield stream, shown
    data = b""
    with open(ours, "rb", buffering=0) as controller, suppress(OSError):  # EIO: the other side is closed
        while more := controller.read(1 << 16):
            data += more
    shown.append(data.decode(encoding))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120])
def test_a_terminal_shows_all_messages_whole_above_a_bar_that_fits(columns: int, encoding: str) -> None:
    rules = {name: _rule(4, running=(1.0, 2.0)) for name in ("align_reads", "call", "sort")} | {"fetch": _rule(9, done=9, failed=1)}
    with _terminal(columns, 10, encoding) as (stream, shown):
        terminal = Terminal(stream, colours=False)
        terminal.message("one: Zürich\n")
        terminal.progress(Progress(rules, 8, 30.0))
        terminal.message("a message that is much longer than any of the lines of this terminal " * 3 + "\n")
        terminal.progress(Progress(rules, 8, 30.0))
        terminal.message("half a line")
        terminal.progress(Progress({**rules, "sort": _rule(4, done=4)}, 8, 31.0))
        terminal.close(", and its end\n")
        terminal.close("")
    text = "one: Zürich\n" if encoding == "utf-8" else "one: Z\\xfcrich\n"
    text += "a message that is much longer than any of the lines of this terminal " * 3 + "\nhalf a line, and its end\n"
    assert BAR.sub("", shown[0]) == text
    bars = [re.sub(r"\x1b\[[\d;]*m", "", found) for found in re.findall("\x1b7\x1b\\[10;1H\x1b\\[2K(.*?)\x1b8", shown[0])]
    assert len(bars) == 3 and bars[-1] == "\x1b[r", "two bars, as an unchanged one is not drawn again, and the whole terminal at the end"
    assert all(len(bar) == columns and "9/22" in bar for bar in bars[:1])
    assert ("1 failed" in bars[0]) == (columns >= 40)
    assert bars[0].isascii() or encoding == "utf-8"
    assert shown[0].count("\x1b[1;9r") == 1


def test_a_terminal_whose_size_changes_gets_its_bar_in_its_last_row() -> None:
    with _terminal(80, 10, "utf-8") as (stream, shown):
        terminal, progress = Terminal(stream, colours=True), Progress({"a": _rule(2)}, 1)
        for rows in (10, 20, 2, 20):
            termios.tcsetwinsize(stream.fileno(), (rows, 80))
            terminal.progress(progress)
        terminal.close("")
    assert re.findall(r"\x1b\[(?:1;)?\d*r", shown[0]) == ["\x1b[1;9r", "\x1b[r", "\x1b[1;19r", "\x1b[r", "\x1b[1;19r", "\x1b[r"]


def test_an_event_of_another_snakemake_costs_the_progress_and_no_message(capsys: pytest.CaptureFixture[str]) -> None:
    handler = LogHandler(OutputSettings(stdout=True), LogHandlerSettings())
    for event in ("job_error", "run_info", None):
        record = logging.LogRecord("snakemake", logging.ERROR, "", 0, f"message {event}", None, None)
        record.event = event
        handler.handle(record)
    assert "message None" in capsys.readouterr().out


class TestHandler(TestLogHandlerBase):  # type: ignore[misc]
    """Snakemake's own tests of logger plugins."""

    __test__ = True

    @pytest.fixture(autouse=True)
    def _no_thread_is_left(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr("sys.stderr", io.StringIO())
        self._made: list[LogHandler] = []
        yield
        for handler in self._made:
            handler.close()
            assert handler._thread is None

    def get_log_handler_cls(self) -> type[LogHandler]:
        return LogHandler

    def get_log_handler_settings(self) -> LogHandlerSettings:
        return LogHandlerSettings()

    def _create_handler(self) -> LogHandler:
        self._made.append(super()._create_handler())
        return self._made[-1]
