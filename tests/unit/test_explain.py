"""The five lines of "why", for every outcome, and the end of a failed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.model import Excess, Oom, OomScope, Outcome, Usage, Verdict
from snakemake_executor_plugin_forge.record.explain import MOST_FAILURES, explain, summary_after_failure, telling_lines
from snakemake_executor_plugin_forge.record.failures import Failures
from snakemake_executor_plugin_forge.record.streamfile import read_telling

from ..records import MIB, Made, write_run

CASES: list[tuple[dict[str, object], str, str, str]] = [
    # evidence; what happened; what is the evidence; what to change
    ({}, "succeeded in 2.00 s", "exit code 0; ran 2.00 s", "nothing"),
    ({"oom_kills": 2, "oom": Oom(OomScope.JOB, "sort")}, "100.0 MiB of 512.0 MiB, in sort", "2 process(es) killed (sort)",
     "in rule call:  resources: mem_mb=1024   or once: snakemake … --set-resources call:mem_mb=1024"),
    ({"oom_kills": 1, "oom": Oom(OomScope.RUN)}, "--forge-run-memory", "memory limit of the run", "resources: mem_mb=200"),
    ({"oom_kills": 1, "oom": Oom(OomScope.OUTSIDE, None, "the host")}, "the host ran out", "limit of the host",
     "lower --forge-run-memory"),
    ({"timed_out": True, "exit_code": None}, "timed out after 3 min", "its limit was 3 min", "resources: runtime=6 "),
    ({"pids_hits": 4, "exit_code": 1}, "4096 processes", "4 forks refused", "--forge-pids 8192"),
    ({"excess": Excess(700 * MIB, "/tmp/x", 600 * MIB)}, "600.0 MiB in /tmp/x", "scratch: 700.0 MiB of 500.0 MiB",
     "resources: disk_mb=1400 "),
    ({"exit_code": 1, "full_file": "a.bam"}, "a file (a.bam) grew", "file size: at the limit of 500.0 MiB", "disk_mb=1000 "),
    ({"exit_code": 3}, "exit code 3", "exit code 3; ran", "to try it by hand: bash /"),
    ({"exit_code": None, "signal": 11}, "killed by SIGSEGV", "signal SIGSEGV", "what stderr says"),
    ({"setup_error": "mount: no", "exit_code": None}, "nothing was run: mount: no", "before anything of it", "mend that"),
    ({"cancelled": "Ctrl-C"}, "cancelled after 2.00 s: Ctrl-C", "by Ctrl-C", "run Snakemake again"),
]


def _record(tmp_path: Path, evidence: dict[str, object]) -> dict[str, Any]:
    resources = {"mem_mb": 512, "runtime": 3, "disk_mb": 500}
    run = write_run(tmp_path, [Made(wildcards={"s": "A"}, evidence=evidence, resources=resources)])
    record: dict[str, Any] = json.loads((run / "00001-call" / "verdict.json").read_text())
    return record


@pytest.mark.parametrize(("evidence", "happened", "facts", "change"), CASES)
def test_each_outcome(tmp_path: Path, evidence: dict[str, object], happened: str, facts: str, change: str) -> None:
    explanation = explain(_record(tmp_path, evidence), "")
    assert happened in explanation.happened
    assert explanation.happened.startswith("call s=A: ")
    assert facts in explanation.evidence
    assert change in explanation.change
    assert "00001-call/{stderr.log" in explanation.files
    assert all(text and "\n" not in text for _, text in explanation.fields())


def test_every_outcome_that_judge_gives_is_in_the_table(tmp_path: Path) -> None:
    seen = {str(_record(tmp_path / str(n), case[0])["outcome"]) for n, case in enumerate(CASES)}
    assert seen == {str(o) for o in Outcome} - {"violation", "lost"}


def test_lines_that_matter() -> None:
    log = "10%\r50%\r\x1b[31m100%\x1b[0m\n[bwa] loading\nTraceback (most recent call last):\n  File x, line 1\nKeyError: 'a'\nbye\n"
    assert telling_lines(log) == ("KeyError: 'a'",)
    assert telling_lines("a\n\nb\nc\nd\n") == ("b", "c", "d")
    assert telling_lines("x: No such file or directory\nx: No such file or directory\nend") == ("x: No such file or directory",)


@given(st.text())
def test_any_stderr_gives_at_most_three_short_printable_lines(text: str) -> None:
    lines = telling_lines(text)
    assert len(lines) <= 3
    assert all(line and len(line) <= 241 and "\n" not in line and "\x1b" not in line for line in lines)


def test_the_end_of_a_run_names_ten_and_counts_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failures = Failures(str(tmp_path.parent))
    for number in range(MOST_FAILURES + 3):
        directory = str(tmp_path / f"{number:05d}-call")
        failures.add(number, Verdict(Outcome.FAILED, "exit code 1", 1, None, Usage(), "", 1.0, directory=directory))
    failures.add("cancelled", Verdict(Outcome.CANCELLED, "cancelled", None, None, Usage(), "", 1.0))
    failures.discard(MOST_FAILURES + 2)
    text = failures.text()
    assert text.startswith("Forge: 12 job(s) failed.")
    assert text.count(f"next      snakemake-forge why call --directory {tmp_path}") == MOST_FAILURES
    assert "2 more job(s) failed: snakemake-forge jobs --failed --last" in text


def test_a_job_that_succeeds_in_the_end_is_no_failure(tmp_path: Path) -> None:
    failures = Failures(str(tmp_path))
    failures.add(1, Verdict(Outcome.OOM, "out of memory", None, 9, Usage(), "", 1.0, directory="/x/00001-call"))
    failures.discard(1)
    assert failures.text() == ""


def test_a_log_of_the_rule_is_read_where_stderr_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("[sort] 3 files\n[sort] fatal: disk quota exceeded\n")
    run = write_run(tmp_path, [
        Made(stderr="working\n", logs=("gone.log", "x.log")), Made(stderr="Error: mine\n", logs=("x.log",)), Made(logs=("gone.log",))])
    assert telling_lines(read_telling(f"{run}/00001-call")) == ("[sort] fatal: disk quota exceeded",)
    assert telling_lines(read_telling(f"{run}/00002-call")) == ("Error: mine",)
    assert read_telling(f"{run}/00003-call") == ""


def test_files_that_are_the_reason_are_named(tmp_path: Path) -> None:
    record = _record(tmp_path, {"exit_code": 0})
    violation = record | {"outcome": "violation", "evidence": {"undeclared_writes": ["a.txt", "b.txt"]}, "remedy": "declare it"}
    assert explain(violation, "").evidence.startswith("undeclared writes: a.txt, b.txt; ran")
    assert explain(violation, "").change.startswith("declare it; to try it by hand")
    failed = record | {"outcome": "failed", "evidence": {"exit_code": 0, "missing": ["out.txt"], "changed": []}}
    assert explain(failed, "").evidence.startswith("exit code 0; missing: out.txt; ran")


def test_words_of_a_command_are_quoted(tmp_path: Path) -> None:
    record = _record(tmp_path, {"exit_code": 1}) | {"wildcards": {"s": "a b; rm -rf"}}
    assert "snakemake-forge why call 's=a b; rm -rf'" in summary_after_failure([record])
