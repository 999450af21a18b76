"""Metrics as the real tools take them: promtool checks them, Prometheus scrapes them, the dashboard's questions have answers."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from snakemake_executor_plugin_forge.analysis.metrics import MetricsFile
from snakemake_executor_plugin_forge.cli.metrics import dashboard
from snakemake_executor_plugin_forge.spec.verdict import Outcome, Usage, Verdict

from ..conftest import DEADLINE, forge, wait_until
from ..programs import need
from ..records import Made, write_run
from ..unit.test_outcome import SPEC

pytestmark = pytest.mark.busy  # most of its seconds are starts of other programs

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
    assert 'forge_attempts_total{outcome="oom",rule="call"} 1.0' in text
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_openmetrics_is_read_by_a_strict_parser(workdir: Path) -> None:
    families = {f.name: f for f in text_string_to_metric_families(_text(workdir))}  # type: ignore[no-untyped-call]
    assert families["forge_cpu_seconds"].unit == "seconds"
    samples = {(s.name, *s.labels.values()): s.value for f in families.values() for s in f.samples}
    assert samples["forge_cpu_seconds_total", "map"] == 4.0
    assert samples["forge_attempt_duration_seconds_sum", "map"] == 73.0
    assert samples["forge_memory_peak_bytes", "map"] == 300 * 2**20


@pytest.fixture(scope="module")
def query(workdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Prometheus of our own that scrapes what ``snakemake-forge metrics`` says; asked with a question in PromQL."""
    program = need("prometheus", "prometheus")
    text = _text(workdir).encode()

    class Target(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Target)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = tmp_path_factory.mktemp("prometheus")
    (base / "prometheus.yml").write_text(json.dumps({"scrape_configs": [{
        "job_name": "forge", "scrape_interval": "1s",
        "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]}]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--config.file={base}/prometheus.yml", f"--storage.tsdb.path={base}/data",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)

    def ask(question: str) -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': question})}"
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    try:
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            try:
                if len(ask("count_over_time(up[1m]) >= 2")) == 1:
                    break
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.3)
        else:
            pytest.fail((base / "log").read_text())
        yield ask
    finally:
        process.terminate()
        process.wait(DEADLINE)
        server.shutdown()
        server.server_close()


def test_prometheus_scrapes_it(query: Any) -> None:
    assert [r["value"][1] for r in query("up")] == ["1"]
    (oom,) = query('forge_attempts_total{outcome="oom"}')
    assert (oom["metric"]["rule"], oom["value"][1]) == ("call", "1")
    assert {r["metric"]["rule"]: float(r["value"][1]) for r in query("forge_cpu_seconds_total")} == {"map": 4.0, "call": 0.25}
    (slow,) = query("forge_attempt_duration_seconds_bucket{le='60.0',rule='map'}")
    assert slow["value"][1] == "1"


def test_every_question_of_the_dashboard_has_an_answer(query: Any) -> None:
    panels = json.loads(dashboard())["panels"]
    questions = [target["expr"].replace("$rule", ".*") for panel in panels for target in panel["targets"]]
    assert len(questions) >= 10
    for question in questions:
        for name in re.findall(r"forge_\w+", question):
            assert query(name), name
        assert query(question), question


def test_the_file_is_kept_up_to_date_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.prom"
    file = MetricsFile(str(path), pytest.fail)
    ended: list[Verdict] = []
    done = file.observe(SPEC, ended.append)
    wait_until(lambda: 'forge_attempts_running{rule="call"} 1.0' in path.read_text())
    verdict = Verdict(Outcome.TIMEOUT, "timed out", None, 9, Usage(cpu_seconds=2.5), "2026-01-31T12:00:00+00:00", 30.0)
    done(verdict)
    file.close()
    assert ended == [verdict]
    text = path.read_text()
    assert 'forge_attempts_running{rule="call"} 0.0' in text
    assert 'forge_attempts_total{outcome="timeout",rule="call"} 1.0' in text
    assert 'forge_cpu_seconds_total{rule="call"} 2.5' in text
    assert "forge_last_run_end_timestamp_seconds" in text
    assert list(tmp_path.iterdir()) == [path]
