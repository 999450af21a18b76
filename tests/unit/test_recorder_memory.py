"""Memory does not grow with the number of finished attempts: their records are on the disk."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.analysis.failures import Failures
from snakemake_executor_plugin_forge.analysis.metrics_file import MetricsFile, RunFacts
from snakemake_executor_plugin_forge.record.index import Selection, open_index
from snakemake_executor_plugin_forge.run.attempts import Attempts, Submission
from snakemake_executor_plugin_forge.spec.job import Config, JobRequest, LaunchSpec, RunContext
from snakemake_executor_plugin_forge.spec.oom_retry import OomPolicy
from snakemake_executor_plugin_forge.spec.plan import plan
from snakemake_executor_plugin_forge.spec.verdict import Outcome, Verdict
from tests.conftest import DEADLINE
from tests.contract.fake import FakeBackend, Scripted

from ..records import Made, write_run
from .test_plan import HOST

REQUEST = JobRequest(rule="a", wildcards={}, attempt=1, threads=1, resources={}, command="true", inputs=(), outputs=("a",))
MOST_BYTES = 200  # for an attempt; its verdict alone has more than a thousand


def test_the_engine_keeps_nothing_of_attempts_that_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    context = RunContext("r", str(tmp_path), str(tmp_path), ())
    backend = FakeBackend(lambda spec: Scripted(outcome=Outcome.FAILED if spec.rule == "bad" else Outcome.SUCCEEDED, exit_code=1))
    attempts, failures = Attempts(print), Failures(str(tmp_path))
    metrics = MetricsFile(str(tmp_path / "m.prom"), print, RunFacts("r", str(tmp_path), "none", 1))
    attempts.observe = metrics.observe

    def run(first: int, count: int) -> None:
        for number in range(first, first + count):
            request = replace(REQUEST, rule="bad" if number % 10 == 0 else "good", wildcards={"n": str(number)})
            spec: LaunchSpec = plan(request, attempts.number(), "true", "launcher", Config(), HOST, context)

            def done(verdict: Verdict, number: int = number) -> None:
                if not verdict.ok:
                    failures.add(number, verdict)

            attempts.start(Submission(backend, b"x" * 1000, True, done, (), HOST.run_memory_bytes, OomPolicy()), spec)
        assert backend.wait_idle(DEADLINE)

    run(0, 500)  # objects that are made once
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        run(500, 1000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        metrics.close()
        backend.close()
    assert grown < 1000 * MOST_BYTES, grown
    assert f'forge_attempts_total{{outcome="failed",rule="bad",run="r",workdir="{tmp_path}"}} 150.0' in (tmp_path / "m.prom").read_text()


def test_the_index_is_brought_up_to_date_without_having_all_in_memory(tmp_path: Path) -> None:
    peaks = []
    for count in (100, 1000):
        workdir = tmp_path / str(count)
        workdir.mkdir()
        write_run(workdir, [Made(wildcards={"s": str(n)}) for n in range(count)])
        tracemalloc.start()
        try:
            with open_index(str(workdir)) as index:
                assert index.count(Selection()) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # Names of directories and a batch of rows; a record has some kB.
    assert peaks[1] - peaks[0] < 900 * 2500
