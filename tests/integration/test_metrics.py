"""Metrics, checked by the real promtool and read by a strict parser. test_dashboard.py has Prometheus."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from snakemake_executor_plugin_forge.analysis.metrics_file import STALE_SECONDS, MetricsFile, RunFacts
from snakemake_executor_plugin_forge.spec.errors import UsageError
from snakemake_executor_plugin_forge.spec.verdict import Outcome, Usage, Verdict

from ..conftest import forge, wait_until
from ..programs import need
from ..records import Made, write_run
from ..unit.test_outcome import SPEC

pytestmark = pytest.mark.busy  # it mostly waits for other programs to start

MADE = [
    Made("map", {"s": "A"}, cpu_seconds=1.5, seconds=3.0),
    Made("map", {"s": "B"}, cpu_seconds=2.5, seconds=70.0, memory_bytes=300 * 2**20),
    Made("call", evidence={"oom_kills": 1}, cpu_seconds=0.25),
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("metrics")
    write_run(directory, MADE)
    return directory


def _text(workdir: Path, *words: str) -> str:
    return forge(workdir, "metrics", *words, check=True).stdout


def test_promtool_finds_no_fault(workdir: Path, tmp_path: Path) -> None:
    promtool = need("promtool", "prometheus")
    _text(workdir, "--output", str(tmp_path / "forge.prom"))
    text = (tmp_path / "forge.prom").read_text()
    assert list(tmp_path.iterdir()) == [tmp_path / "forge.prom"]
    assert f'forge_attempts_total{{outcome="oom",rule="call",workdir="{workdir}"}} 1.0' in text
    assert f'forge_oom_kills_total{{rule="call",scope="job",workdir="{workdir}"}} 1.0' in text
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_openmetrics_is_read_by_a_strict_parser(workdir: Path) -> None:
    families = {f.name: f for f in text_string_to_metric_families(_text(workdir))}  # type: ignore[no-untyped-call]
    assert families["forge_cpu_seconds"].unit == "seconds"
    samples = {(s.name, *s.labels.values()): s.value for f in families.values() for s in f.samples if s.labels.pop("workdir")}
    assert samples["forge_cpu_seconds_total", "map"] == 4.0
    assert samples["forge_attempt_duration_seconds_sum", "map"] == 73.0
    assert samples["forge_memory_peak_bytes", "map"] == 300 * 2**20


FACTS = RunFacts("20260131-120000-7-abcd", "/srv/odd\n\udcff", "no cgroup can be made", 8)
LABELS = 'run="20260131-120000-7-abcd",workdir="/srv/odd\\\\n\\\\xff"'


def test_the_file_is_kept_up_to_date_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.prom"
    file = MetricsFile(str(path), pytest.fail, FACTS)
    ended: list[Verdict] = []
    done = file.observe(SPEC, ended.append)
    wait_until(lambda: f'forge_attempts_running{{rule="call",{LABELS}}} 1.0' in path.read_text())
    verdict = Verdict(Outcome.TIMEOUT, "timed out", None, 9, Usage(cpu_seconds=2.5), "2026-01-31T12:00:00+00:00", 30.0)
    done(verdict)
    file.close()
    assert ended == [verdict]
    text = path.read_text()
    assert f'forge_attempts_running{{rule="call",{LABELS}}} 0.0' in text
    assert f'forge_attempts_total{{outcome="timeout",rule="call",{LABELS}}} 1.0' in text
    assert f'forge_cpu_seconds_total{{rule="call",{LABELS}}} 2.5' in text
    assert "forge_last_run_end_timestamp_seconds" in text
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_has_a_file_for_each_run_and_none_of_old_runs(tmp_path: Path) -> None:
    old, young, others = (tmp_path / name for name in ("forge-20260101-000000-1-abcd.prom", "forge-20260101-000000-2-abcd.prom", "forge.prom"))
    cut = tmp_path / ".forge-20260101-000000-1-abcd.prom.77"  # its writer was killed
    for path in (old, young, others, cut):
        path.touch()
    for path in (old, others, cut):
        os.utime(path, (time.time() - STALE_SECONDS - 1,) * 2)
    before = os.umask(0o077)
    try:
        MetricsFile(str(tmp_path), pytest.fail, FACTS).close()
    finally:
        os.umask(before)
    own = tmp_path / f"forge-{FACTS.run}.prom"
    assert {*tmp_path.iterdir()} == {own, young, others}
    assert LABELS in own.read_text()
    assert own.stat().st_mode & 0o777 == 0o644  # the exporter, another user, must read it


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--forge-metrics-file=.*/none/x.prom: cannot be written: No such file or directory\. Name a file"):
        MetricsFile(str(tmp_path / "none" / "x.prom"), pytest.fail, FACTS)
    with pytest.raises(UsageError, match=r"--forge-metrics-file=.*/none: there is no such directory, .* Make the directory first"):
        MetricsFile(str(tmp_path / "none"), pytest.fail, FACTS)
