"""The five lines of "why", for every outcome, and the end of a failed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.analysis.attempt_log import read_telling, rule_logs, with_context
from snakemake_executor_plugin_forge.analysis.explain import (
    MOST_FAILURES,
    Told,
    explain,
    summary_after_failure,
    telling_lines,
)
from snakemake_executor_plugin_forge.analysis.failures import Failures
from snakemake_executor_plugin_forge.analysis.live import newest_line
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Excess, Oom, OomScope, Order, Outcome, Usage, Verdict

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
    ({"exit_code": 3}, "exit code 3", "exit code 3; ran", "says nothing; to see which part of it failed: bash -x /"),
    ({"exit_code": 1}, "exit code 1", "exit code 1; ran", "(grep exits with 1 if it finds nothing); to see"),
    ({"exit_code": 137}, "killed by SIGKILL", "signal SIGKILL", "nothing, if somebody killed it: no limit of Forge did"),
    ({"exit_code": None, "signal": 11}, "killed by SIGSEGV", "signal SIGSEGV", "the command, which says nothing; to try"),
    ({"setup_error": "mount: no", "exit_code": None}, "nothing was run: mount: no", "before anything of it", "mend that"),
    ({"cancelled": Order(EndedBy.USER, "Ctrl-C")}, "cancelled after 2.00 s: Ctrl-C", "ran 2.00 s", "snakemake-forge resume"),
]


def _record(tmp_path: Path, evidence: dict[str, object]) -> dict[str, Any]:
    resources = {"mem_mb": 512, "runtime": 3, "disk_mb": 500}
    run = write_run(tmp_path, [Made(wildcards={"s": "A"}, evidence=evidence, resources=resources)])
    record: dict[str, Any] = json.loads((run / "00001-call" / "verdict.json").read_text())
    return record


def test_an_exception_is_shown_with_file_and_lines(tmp_path: Path) -> None:
    error = 'RuleException:\nKeyError in file "/w/Snakefile", line 6:\n\'x\'\n  File "/w/Snakefile", line 12, in __rule_a'
    explanation = explain(_record(tmp_path, {"exit_code": 1, "error": error, "summary": "KeyError: 'x'"}), Told("noise"))
    assert explanation.happened == "call s=A: KeyError: 'x'"
    assert explanation.stderr == 'KeyError in file "/w/Snakefile", line 6: | \'x\' | File "/w/Snakefile", line 12, in __rule_a'


@pytest.mark.parametrize(("evidence", "happened", "facts", "change"), CASES)
def test_each_outcome(tmp_path: Path, evidence: dict[str, object], happened: str, facts: str, change: str) -> None:
    explanation = explain(_record(tmp_path, evidence), Told())
    assert happened in explanation.happened
    assert explanation.happened.startswith("call s=A: ")
    assert facts in explanation.evidence
    assert change in explanation.change
    assert "00001-call/{stderr.log" in explanation.files
    assert all(text and "\n" not in text for _, text in explanation.fields())


def test_no_more_memory_is_suggested_than_a_run_lets_a_job_ask_for(tmp_path: Path) -> None:
    record = _record(tmp_path, {"oom_kills": 1, "oom": Oom(OomScope.JOB)})
    assert with_context(record)["run_memory_bytes"] == 2**34
    for most, said in ((1024, "resources: mem_mb=1024 "), (700, "resources: mem_mb=700 "), (520, "raise --forge-run-memory (now 520.0 MiB)")):
        assert said in explain(record | {"run_memory_bytes": most * MIB}, Told()).change


def test_every_outcome_that_judge_gives_is_in_the_table(tmp_path: Path) -> None:
    seen = {str(_record(tmp_path / str(n), case[0])["outcome"]) for n, case in enumerate(CASES)}
    assert seen == {str(o) for o in Outcome} - {"violation", "lost"}


def test_lines_that_matter() -> None:
    log = "10%\r50%\r\x1b[31m100%\x1b[0m\n[bwa] loading\nTraceback (most recent call last):\n  File x, line 1\nKeyError: 'a'\nbye\n"
    assert telling_lines(log) == ("KeyError: 'a'",)
    assert telling_lines("a\n\nb\nc\nd\n") == ("b", "c", "d")
    assert telling_lines("x: No such file or directory\nx: No such file or directory\nend") == ("x: No such file or directory",)
    of_r = "Error in library(DESeq2) : \n  there is no package called 'DESeq2'\nExecution halted\n"
    assert telling_lines(of_r) == ("Error in library(DESeq2) : there is no package called 'DESeq2'",)
    chained = "OSError: x\n\nDuring handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\nError:\nError: y\n"
    assert telling_lines(chained) == ("OSError: x", "Error:", "Error: y")


@given(st.text())
def test_any_stderr_gives_at_most_three_short_printable_lines(text: str) -> None:
    lines = telling_lines(text)
    assert len(lines) <= 3
    assert all(line and len(line) <= 241 and "\n" not in line and "\x1b" not in line for line in lines)


def test_the_end_of_a_run_names_ten_and_counts_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failures = Failures(str(tmp_path.parent))
    for number in range(MOST_FAILURES + 3):
        directory = str(tmp_path / f"{number:05d}-call{number}")
        failures.add(number, Verdict(Outcome.FAILED, "exit code 1", 1, None, Usage(), "", 1.0, directory=directory))
    for by in (EndedBy.FORGE, EndedBy.USER):
        failures.add(by, Verdict(Outcome.CANCELLED, "cancelled", None, None, Usage(), "", 1.0, ended_by=by))
    failures.discard(MOST_FAILURES + 2)
    text = failures.text()
    assert text.startswith("Forge: 12 job(s) failed.")
    assert [line.split()[1] for line in text.splitlines() if line.startswith("happened ")] == [f"call{number}:" for number in range(MOST_FAILURES)]
    (following,) = (line for line in text.splitlines() if line.startswith("next "))
    assert f"snakemake-forge resume --directory {tmp_path}; these lines again: snakemake-forge why RULE WILDCARD=VALUE --directory {tmp_path}" in following
    assert "2 more job(s) failed: snakemake-forge jobs --failed --run -1 --directory" in text


def test_failures_that_are_alike_are_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = [str(number) for number in range(40)]  # one of them is the 1 of "exit code 1"
    made = [Made(wildcards={"s": s}, evidence={"exit_code": 1}, stderr=f"[W] {n} reads\nError: bad read group in {s}.bam\n") for n, s in enumerate(samples)]
    other = Made("map", {"s": "S1"}, {"exit_code": 2}, stderr="Error: other\n")
    run = write_run(tmp_path, [*made, other])
    failures = Failures(str(tmp_path))
    for number, directory in enumerate(sorted(str(path) for path in run.iterdir() if path.is_dir())):
        failures.add(number, Verdict(Outcome.FAILED, "exit code 1", 1, None, Usage(), "", 1.0, directory=directory))
    lines = failures.text().splitlines()
    assert lines[0] == "Forge: 41 job(s) failed."
    assert lines[2] == "jobs      40 × call, alike: s=0, s=1, s=2, s=3, s=4 and 35 more"
    assert [line for line in lines if line.startswith("stderr")] == ["stderr    Error: bad read group in 0.bam", "stderr    Error: other"]
    assert lines[-1] == "next      after the change: snakemake-forge resume; these lines again: snakemake-forge why RULE WILDCARD=VALUE"


def test_a_job_whose_starter_was_killed_is_a_failure(tmp_path: Path) -> None:
    failures = Failures(str(tmp_path))
    failures.add(1, Verdict(Outcome.CANCELLED, "its starter died", None, None, Usage(), "", 1.0, directory="/x/00001-call", ended_by=EndedBy.CONTROLLER))
    assert failures.text().startswith("Forge: 1 job(s) failed.") and "its starter died" in failures.text()


def test_a_job_that_succeeds_in_the_end_is_no_failure(tmp_path: Path) -> None:
    failures = Failures(str(tmp_path))
    failures.add(1, Verdict(Outcome.OOM, "out of memory", None, 9, Usage(), "", 1.0, directory="/x/00001-call"))
    failures.discard(1)
    assert failures.text() == ""


def test_a_log_of_the_rule_is_read_where_stderr_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("[sort] 3 files\n[sort] fatal: disk quota exceeded\n")
    run = write_run(tmp_path, [
        Made(stderr="working\n", logs=("gone.log", "x.log")), Made(stderr="Error: mine\n", logs=("x.log",)), Made(logs=("gone.log",))])
    log = read_telling(f"{run}/00001-call")
    assert (log.source, telling_lines(log.text)) == ("log x.log", ("[sort] fatal: disk quota exceeded",))
    assert read_telling(f"{run}/00002-call") == Told("Error: mine\n")
    assert read_telling(f"{run}/00003-call") == Told()


def test_what_snakemake_says_of_a_script_is_no_cause(tmp_path: Path) -> None:
    (tmp_path / "trim.log").write_text("Unknown trimmer: X\nError: giving notice\n")
    wrapped = ('Traceback (most recent call last):\n  File "/w/.snakemake/scripts/tmp1.wrapper.py", line 9, in <module>\n    raise CalledProcessError(1, x)\n'
               "subprocess.CalledProcessError: Command 'trimmomatic' returned non-zero exit status 1.\n")
    run = write_run(tmp_path, [Made(stderr=wrapped, logs=("trim.log",), evidence={"exit_code": 1}), Made(stderr=wrapped, evidence={"exit_code": 1})])
    record = json.loads((run / "00001-call" / "verdict.json").read_text())
    fields = dict(explain(record, read_telling(f"{run}/00001-call")).fields())
    assert fields["log"] == "trim.log: Error: giving notice"
    assert fields["change"].startswith("the cause that log trim.log names")
    assert "CalledProcessError" in explain(record, read_telling(f"{run}/00002-call")).stderr  # no other line says more


def test_a_log_of_a_running_job_is_read_where_it_is_staged(tmp_path: Path) -> None:
    run = write_run(tmp_path, [Made(logs=("logs/x.log",), ended=False)], over=False)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/x.log").write_text("of the run before\n")
    spec = run / "00001-call" / "spec.json"
    upper = tmp_path / "upper"
    (upper / "logs").mkdir(parents=True)
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"staging": {str(tmp_path): str(upper), "/": "/nowhere"}}))
    assert rule_logs(str(spec.parent)) == []
    (upper / "logs/x.log").write_text("now\n")
    assert rule_logs(str(spec.parent)) == [("logs/x.log", f"{upper}/logs/x.log")]
    assert newest_line(str(spec.parent)) == "now"


def test_files_that_are_the_reason_are_named(tmp_path: Path) -> None:
    record = _record(tmp_path, {"exit_code": 0})
    violation = record | {"outcome": "violation", "evidence": {"undeclared_writes": ["a.txt", "b.txt"]}, "remedy": "declare it"}
    assert explain(violation, Told()).evidence.startswith("undeclared writes: a.txt, b.txt; ran")
    assert explain(violation, Told()).change.startswith("declare it; to try it by hand")
    failed = record | {"outcome": "failed", "evidence": {"exit_code": 0, "missing": ["out.txt"], "changed": []}}
    assert explain(failed, Told()).evidence.startswith("exit code 0; missing: out.txt; ran")


def test_a_record_of_slurm_or_of_a_job_may_lack_anything(tmp_path: Path) -> None:
    record = _record(tmp_path, {"timed_out": True}) | {"evidence": {"by": "Slurm", "slurm_state": "TIMEOUT"}, "remedy": "raise it"}
    assert explain(record, Told()).evidence.startswith("by: Slurm; slurm state: TIMEOUT; ran")
    assert explain(record, Told()).change.startswith("raise it; to try it by hand")
    failures = Failures(str(tmp_path))
    failures.add(1, Verdict(Outcome.FAILED, "exit code 1", 1, None, Usage(), "", 1.0, directory=f"{tmp_path}/00001-call"))
    (tmp_path / "00001-call").mkdir()
    (tmp_path / "00001-call" / "verdict.json").write_text('{"wildcards": 5, "usage": {}, "reason": "forged"}')
    assert "call: exit code 1" in failures.text()


def test_words_of_a_command_are_quoted(tmp_path: Path) -> None:
    record = _record(tmp_path, {"exit_code": 1}) | {"wildcards": {"s": "a b; rm -rf"}}
    assert "snakemake-forge why call 's=a b; rm -rf'" in summary_after_failure([record])
