"""The flight recorder during and after real runs: live view, summary of failures, capped streams, advice, metrics."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import termios
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from snakemake_executor_plugin_forge.analysis.timings import PHASES
from snakemake_executor_plugin_forge.record.retention import compact

from ..conftest import DEADLINE, FORGE, Result, command, forge, residue, run, wait_until, write_workflow

MIB = 2**20


# -- after a run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run with jobs that finally fail, one that succeeds at its second try, and one that writes a lot."""
    directory = tmp_path_factory.mktemp("recorder").resolve()
    write_workflow(directory, """
        rule all:
            input: "again.txt", "many.txt", "talk.txt", expand("sized.{n}.txt", n=range(6))
        rule again:
            output: "again.txt"
            retries: 1
            resources: tries=lambda wildcards, attempt: attempt
            shell: "test {resources.tries} = 2 || exit 3; touch {output}"
        rule many:
            output: "many.txt"
            resources: mem_mb=40
            shell: "echo start >&2; python3 -c 'bytearray(200 * 2**20)'; touch {output}"
        rule broken:
            output: "{s}.bam"
            shell: "echo 'Error: no index' >&2; exit 4"
        rule needs:
            input: "a b.bam"
            output: "talk.txt"
            shell: "true"
        rule talk:
            output: "talked.txt"
            shell: "echo first; (yes middle || true) | head -c 700000; echo last; touch {output}"
        rule sized:
            input: "talked.txt"
            output: "sized.{n}.txt"
            resources: mem_mb=2000, runtime=60
            shell: "touch {output}"
        """)
    return run(directory, "-j3", "--keep-going", "--forge-stream-cap", "64KiB",
               "--forge-metrics-file", str(directory / "run.prom"))


def test_the_output_ends_with_every_job_that_failed_for_good(failed: Result) -> None:
    assert failed.code == 1
    end = failed.output.partition("Forge: 2 job(s) failed.")[2]
    assert "happened  many (Snakefile:9): out of memory: 40.0 MiB of 40.0 MiB" in end
    assert "change    in rule many:  resources: mem_mb=80   or once: snakemake … --set-resources many:mem_mb=80" in end
    assert "happened  broken 's=a b' (Snakefile:13): exit code 4" in end
    assert "stderr    Error: no index" in end
    assert "happened  again" not in end
    assert "Error in rule" not in end.partition("next      after the change: snakemake-forge resume; ")[2]
    (line,) = [line for line in forge(failed.directory, "why", "many").stdout.splitlines() if line.startswith("change")]
    assert line in end, "why prints the same line"
    assert residue(failed.directory) == []


def test_a_stream_that_is_too_long_has_its_head_and_tail(failed: Result) -> None:
    text = Path(failed.attempt("talk")["directory"], "stdout.log").read_text()
    assert text.startswith("first\nmiddle\n")
    assert text.endswith("middle\nlast\n")
    assert 64 * 1024 < len(text.encode()) < 66 * 1024
    left_out = 700_000 + len("first\nlast\n") - 64 * 1024
    assert f"[… {left_out} bytes of this stream were not kept" in text
    assert "stream capped" in failed.event_names("talk")
    # The terminal got all of it, or, if it was slower than the job, the number of missing bytes.
    missed = sum(int(count) for count in re.findall(r"\[… (\d+) bytes of this stream", failed.output))
    assert failed.output.count("middle\n") * len("middle\n") + missed == pytest.approx(700_000, abs=100)
    # Another job may have written in between, and so may Snakemake, which writes a message and its end of line
    # separately: "Execute 1 jobs...last".
    assert failed.output.rindex("last\n") >= failed.output.rindex("middle\n") + len("middle\n")


def test_timings_tell_every_phase_once(failed: Result, tmp_path: Path) -> None:
    """The phases follow each other, so their sum is at most the run's duration; gc keeps them."""
    def told(directory: Path) -> list[dict[str, Any]]:
        return [row["timings"] for row in json.loads(forge(directory, "jobs", "--timings", "--json").stdout)]
    before = told(failed.directory)
    assert len(before) == len(failed.attempts()) and all(None not in one.values() for one in before), before
    shutil.copytree(failed.directory / ".snakemake/forge", tmp_path / ".snakemake/forge")
    (record,) = tmp_path.glob(".snakemake/forge/runs/*/run.json")
    run_of = json.loads(record.read_text())
    took = (datetime.fromisoformat(run_of["ended"]) - datetime.fromisoformat(run_of["started"])).total_seconds()
    assert all(0 < sum(one[name] for name in PHASES) <= took + 1 for one in before), (before, took)
    assert all(one["run"] <= attempt["seconds"] for one, attempt in zip(before, failed.attempts(), strict=True)), before
    assert compact(str(record.parent)) > 0
    assert told(tmp_path) == before


def test_metrics_of_the_run(failed: Result) -> None:
    text = re.sub(r',(run|workdir)="[^"]*"', "", (failed.directory / "run.prom").read_text())
    for outcome, rule in (("oom", "many"), ("failed", "again"), ("succeeded", "again"), ("succeeded", "talk")):
        assert f'forge_attempts_total{{outcome="{outcome}",rule="{rule}"}} 1.0' in text
    assert 'forge_attempts_running{rule="talk"} 0.0' in text


def test_snakemake_takes_the_advice(failed: Result) -> None:
    done = forge(failed.directory, "advise")
    assert "again (1), broken (0)" in done.stdout
    block = yaml.safe_load(forge(failed.directory, "advise", "--yaml").stdout)
    advised = block["set-resources"]["sized"]
    assert advised["mem_mb"] < 200
    assert advised["runtime"] == 1
    profile = failed.directory / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text(yaml.safe_dump(block))
    for name in ("sized.0.txt", "sized.1.txt"):
        (failed.directory / name).unlink()
    again = run(failed.directory, "-j2", "--profile", str(profile), "sized.0.txt", "sized.1.txt")
    assert again.code == 0, again.output
    for record in again.attempts("sized")[-2:]:
        assert record["limits"]["memory_bytes"] == advised["mem_mb"] * MIB
        assert record["limits"]["seconds"] == 60
        assert record["outcome"] == "succeeded"


def test_bad_settings_end_it_before_anything_runs(failed: Result) -> None:
    bad = run(failed.directory, "-j1", "--forge-metrics-file", "/nowhere/x.prom", "-f", "talked.txt")
    assert bad.code == 1
    assert "--forge-metrics-file=/nowhere/x.prom: cannot be written: No such file or directory." in bad.output
    bad = run(failed.directory, "-j1", "--forge-stream-cap", "1KiB", "-f", "talked.txt")
    assert "--forge-stream-cap=1KiB: must be at least 64.0 KiB, or none." in bad.output
    assert residue(failed.directory) == []


# -- while it runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def going(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose jobs last until the end of the tests."""
    directory = tmp_path_factory.mktemp("going").resolve()
    write_workflow(directory, """
        rule all:
            input: "hold.txt", "spin.txt"
        rule hold:
            output: "hold.txt"
            threads: 2
            resources: mem_mb=400
            log: "logs/hold.log"
            shell: "(echo one; python3 -c 'import time; x = bytearray(150 * 2**20); print(\\"holding\\", flush=True); time.sleep(600)') > {log}"
        rule spin:
            output: "spin.txt"
            run:
                print("spinning", flush=True)
                while True:
                    pass
        """)
    process = subprocess.Popen(command("forge", "-j3"), cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: sorted(record["newest_line"] for record in _running(directory)) == ["holding", "spinning"], process)
        yield directory
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)
    assert residue(directory) == []


def _running(directory: Path) -> list[dict[str, Any]]:
    done = forge(directory, "jobs", "--running", "--json")
    found: list[dict[str, Any]] = json.loads(done.stdout) if done.stdout else []
    return found


def test_a_log_is_read_while_its_job_runs(going: Path) -> None:
    """A running job's log is staged, not yet in place; ``logs`` reads it."""
    assert not (going / "logs/hold.log").exists()
    shown = forge(going, "logs", "hold", "--log").stdout.splitlines()
    assert shown == ["one", "holding"]
    follower = subprocess.Popen([*FORGE, "logs", "hold", "--follow"], cwd=going, stdout=subprocess.PIPE, text=True)
    try:
        assert follower.stdout is not None
        assert [follower.stdout.readline() for _ in range(3)][1:] == ["one\n", "holding\n"]
    finally:
        follower.kill()
        follower.communicate()


@pytest.mark.kernel  # running jobs are measured through their cgroups
def test_what_runs_is_measured_from_another_process(going: Path) -> None:
    found = {record["rule"]: record for record in _running(going)}
    assert set(found) == {"hold", "spin"}
    assert 150 * MIB < found["hold"]["live"]["memory_bytes"] < 200 * MIB
    spent = dict.fromkeys(found, 0.0)
    while spent["spin"] < 0.2:
        later = {record["rule"]: record for record in _running(going)}
        spent = {rule: later[rule]["live"]["cpu_seconds"] - found[rule]["live"]["cpu_seconds"] for rule in found}
    assert spent["hold"] < spent["spin"] / 2
    assert later["hold"]["outcome"] == "running"
    table = forge(going, "top").stdout  # into a pipe it prints once
    assert re.search(r"^hold .* 1[5-9]\d\.\d MiB of 400\.0 MiB ", table, re.MULTILINE)
    assert "holding" in table


def test_top_on_a_terminal_is_live_and_leaves_it_as_it_was(going: Path) -> None:
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 140))
    before = termios.tcgetattr(its)
    process = subprocess.Popen([*FORGE, "top", "--interval", "0.3"], cwd=going, stdin=its, stdout=its, stderr=its,
                               env=os.environ | {"TERM": "xterm-256color"}, start_new_session=True)
    shown = b""

    def read() -> bytes:
        nonlocal shown
        if select.select([ours], [], [], 0.2)[0]:
            shown += (more := os.read(ours, 65536))
            return more
        return b""

    wait_until(lambda: (read(), shown.count(b"holding"))[1] >= 3, process)  # three screens
    os.write(ours, b"q")
    wait_until(lambda: (read(), process.poll())[1] is not None)
    assert process.returncode == 0
    assert b"2 running" in shown
    assert b"of 400.0 MiB" in shown
    assert b"spinning" in shown
    assert shown.count(b"\x1b[?1049h") == 1  # the alternate screen
    while read():
        pass
    assert b"\x1b[?1049l" in shown
    assert b"\x1b[?25h" in shown  # the cursor is back
    assert termios.tcgetattr(its) == before
    os.close(ours)
    os.close(its)


def test_top_where_nothing_runs(failed: Result) -> None:
    done = forge(failed.directory, "top")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "No run of Forge is active here.\n")
