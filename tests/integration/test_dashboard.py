"""The dashboard: two real runs, Debian's node_exporter and Prometheus, and the answer to each query of each panel."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # Snakemake needs it, too
import pytest

from snakemake_executor_plugin_forge.cli.metrics import dashboard

from ..conftest import DEADLINE, Result, command, ending, wait_until, write_workflow
from ..programs import need

pytestmark = pytest.mark.busy  # it mostly waits for other programs to start

SCHEMAS = Path(__file__).parents[1] / "grafana"
PANELS = json.loads(dashboard())["panels"]
MIB = 2**20
WAIT = "python3 -c 'import os, time; held = b\"x\" * ({} << 20)\nwhile not os.path.exists(\"go\"): time.sleep(0.05)' && touch {{output}}"
ONE = f"""
rule all:
    input: "0.txt", "1.txt", "hog.txt"
rule hold:
    output: "{{n}}.txt"
    resources: mem_mb=100, forge_files="open"  # which sees files that appear
    shell: {WAIT.format(50)!r}
rule hog:
    input: "0.txt"
    output: "hog.txt"
    resources: mem_mb=20
    shell: "python3 -c 'x = b\\"x\\" * (150 << 20)' && touch {{output}}"
"""
TWO = f"""
rule other:
    output: "other.txt"
    resources: forge_files="open"
    shell: {WAIT.format(200)!r}
"""


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


@dataclass
class Prometheus:
    """A server that scrapes an exporter every second, and the answers to the dashboard's queries."""

    port: int

    def ask(self, question: str, ahead: float = 0) -> list[dict[str, Any]]:
        """The answer to a query at the time ``ahead`` seconds from now."""
        words = urllib.parse.urlencode({"query": question, "time": time.time() + ahead})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query?{words}", timeout=DEADLINE) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def number(self, question: str) -> float:
        """The number in an answer; -1 while there is none."""
        with suppress(urllib.error.URLError, ConnectionError):  # the server is just starting
            return sum(float(sample["value"][1]) for sample in self.ask(question)) if self.ask(question) else -1
        return -1

    def panels(self, ahead: float = 0) -> dict[str, list[dict[str, float]]]:
        """The answers by title of the panel: for each query, a number for each set of label values."""
        return {panel["title"]: [self._numbers(target["expr"], ahead) for target in panel["targets"]] for panel in PANELS}

    def _numbers(self, expression: str, ahead: float) -> dict[str, float]:
        text = re.sub(r"\$(instance|workdir|rule)\b", ".*", expression)
        text = text.replace("$__range", "1h").replace("$__rate_interval", "30s")
        assert "$" not in text, text
        return {
            " ".join(value.rpartition("/")[2] for name, value in sorted(sample["metric"].items()) if name != "run"): float(sample["value"][1])
            for sample in self.ask(text, ahead)
        }


@dataclass
class Scraped:
    """The answers while two runs are at work, as if they had then been killed, and after their end."""

    prometheus: Prometheus
    metrics: Path
    live: dict[str, list[dict[str, float]]]
    killed: dict[str, list[dict[str, float]]]
    ended: dict[str, list[dict[str, float]]]
    records: list[dict[str, Any]]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    base = tmp_path_factory.mktemp("dashboard")
    metrics, one, two = base / "metrics", base / "one", base / "two"
    metrics.mkdir()
    write_workflow(one, ONE)
    write_workflow(two, TWO)
    exporter, port = _port(), _port()
    (base / "prometheus.yml").write_text(json.dumps({"scrape_configs": [{
        "job_name": "node", "scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{exporter}"]}]}]}))
    with ExitStack() as stack:
        def start(name: str, words: list[str], cwd: Path = base) -> subprocess.Popen[bytes]:
            log = stack.enter_context((base / f"{name}.log").open("wb"))
            process = subprocess.Popen(words, cwd=cwd, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            stack.enter_context(ending(process))
            return process

        start("exporter", [need("prometheus-node-exporter", "prometheus-node-exporter"), "--collector.disable-defaults",
                           "--collector.textfile", f"--collector.textfile.directory={metrics}", f"--web.listen-address=127.0.0.1:{exporter}"])
        server = start("prometheus", [need("prometheus", "prometheus"), f"--config.file={base}/prometheus.yml",
                                      f"--storage.tsdb.path={base}/data", f"--web.listen-address=127.0.0.1:{port}"])
        options = ("-j1", "--keep-going", "--forge-metrics-file", str(metrics), "--forge-run-memory")
        runs = [start("one", command("forge", *options, "512MiB"), one), start("two", command("forge", *options, "1GiB"), two)]
        prometheus = Prometheus(port)
        wait_until(lambda: prometheus.number("sum(forge_run_memory_bytes)") > 250 * MIB, server)
        live, killed = prometheus.panels(), prometheus.panels(ahead=130)
        for directory in (one, two):
            (directory / "go").touch()
        assert [run.wait(DEADLINE) for run in runs] == [1, 0]
        wait_until(lambda: prometheus.number("count(forge_last_run_end_timestamp_seconds)") == 2, server)
        wait_until(lambda: prometheus.number("sum(rate(forge_written_bytes_total[30s]))") >= 0, server)  # a rate needs two samples
        records = [record for directory in (one, two) for record in Result(0, "", directory).attempts()]
        yield Scraped(prometheus, metrics, live, killed, prometheus.panels(), records)


def test_the_files_are_sound_and_no_other_run_is_in_their_way(scraped: Scraped) -> None:
    files = sorted(scraped.metrics.iterdir())
    assert len(files) == 2 and all(file.name.startswith("forge-") and file.suffix == ".prom" for file in files)
    for file in files:
        done = subprocess.run([need("promtool", "prometheus"), "check", "metrics"], input=file.read_bytes(), capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    assert scraped.prometheus.number("node_textfile_scrape_error") == 0
    assert scraped.prometheus.number("sum(up)") == 1


def test_panels_while_two_runs_are_at_work(scraped: Scraped) -> None:
    live = scraped.live
    assert live["Jobs queued"] == [{"": 2}] and live["Jobs running"] == [{"": 2}] and live["Runs active"] == [{"": 2}]
    assert live["Succeeded"] == live["Not succeeded"] == live["OOM kills"] == [{"": 0}]
    assert live["Queue"] == [{"": 2}, {"": 2}]
    assert live["Running by rule"] == [{"hold": 1, "other": 1}]
    (memory,) = live["Runs: memory against limit"]
    assert memory.keys() == {"one", "two"} and 50 / 512 <= memory["one"] < 0.3 and 200 / 1024 <= memory["two"] < 0.4
    (jobs,) = live["Running jobs: memory against limit"]
    assert jobs.keys() == {"hold"} and 0.5 <= jobs["hold"] < 1
    (processes,) = live["Processes"]
    assert processes.keys() == {"one", "two"} and min(processes.values()) >= 1


def test_a_run_that_was_killed_is_not_shown_as_running(scraped: Scraped) -> None:
    assert scraped.killed["Jobs running"] == scraped.killed["Jobs queued"] == scraped.killed["Runs active"] == [{"": 0}]
    assert scraped.killed["Runs: memory against limit"] == scraped.killed["Running by rule"] == [{}]


def test_panels_after_the_runs(scraped: Scraped) -> None:
    ended = scraped.ended
    for title in ("Jobs queued", "Jobs running", "Runs active"):
        assert ended[title] == [{"": 0}], title
    assert ended["Succeeded"] == [{"": 3}] and ended["Not succeeded"] == [{"": 1}]
    assert ended["Outcomes"] == [{"succeeded": 3, "oom": 1}]
    (hog,) = [record for record in scraped.records if record["rule"] == "hog"]
    assert ended["OOM kills"] == [{"": hog["evidence"]["oom_kills"]}]
    assert ended["OOM kills by rule"] == [{"hog job": hog["evidence"]["oom_kills"]}]
    (peak,) = ended["Highest memory peak of the limit"]
    assert peak.keys() == {"hold", "hog"} and 0.5 <= peak["hold"] < 1 and 0.9 < peak["hog"] <= 1.01
    (cpus,) = ended["CPUs in use"]
    assert cpus.keys() == {"one", "two"} and min(cpus.values()) >= 0
    assert [min(found.values()) >= 0 for found in ended["Read and written"]] == [True, True]


def test_times_are_those_of_the_records(scraped: Scraped) -> None:
    seconds: dict[str, list[float]] = {}
    cpu: dict[str, float] = {}
    for record in scraped.records:
        seconds.setdefault(record["rule"], []).append(record["seconds"])
        cpu[record["rule"]] = cpu.get(record["rule"], 0) + record["usage"]["cpu_seconds"]
    means = {rule: sum(found) / len(found) for rule, found in seconds.items()}
    assert scraped.ended["Time per rule: mean"] == [pytest.approx(means, rel=0.01)]
    assert scraped.ended["CPU time per rule"] == [pytest.approx(cpu, rel=0.01)]
    (high,) = scraped.ended["Time per rule: 95th percentile"]
    assert high.keys() == means.keys() and all(value > 0 for value in high.values())


def test_every_query_has_had_an_answer(scraped: Scraped) -> None:
    for panel in PANELS:
        answers = zip(scraped.live[panel["title"]], scraped.ended[panel["title"]], strict=True)
        assert all(live or ended for live, ended in answers), panel["title"]


def test_choices_of_the_dashboard_have_values(scraped: Scraped) -> None:
    choices = [found for found in json.loads(dashboard())["templating"]["list"] if found["type"] == "query"]
    assert [found["name"] for found in choices] == ["instance", "workdir", "rule"]
    for choice in choices:
        query, label = re.fullmatch(r"label_values\((.*), (\w+)\)", choice["query"]).groups()  # type: ignore[union-attr]
        values = {sample["metric"][label] for sample in scraped.prometheus.ask(re.sub(r"\$\w+", ".*", query))}
        assert len(values) == {"instance": 1, "workdir": 2, "rule": 3}[label]


def test_grafanas_schema_accepts_the_dashboard() -> None:
    made = json.loads(dashboard())
    _validate("dashboard", made)
    for panel in made["panels"]:
        _validate(panel["type"], panel["options"], "Options")
        _validate("timeseries", panel["fieldConfig"]["defaults"].get("custom", {}), "FieldConfig")
        assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    with pytest.raises(jsonschema.ValidationError):
        _validate("dashboard", {**made, "panels": [{**made["panels"][0], "fieldconfig": {}}]})


def _validate(name: str, value: object, definition: str | None = None) -> None:
    schema = json.loads((SCHEMAS / f"{name}.jsonschema.json").read_text())
    if definition is not None:
        schema["$ref"] = f"#/definitions/{definition}"
    jsonschema.Draft7Validator(schema).validate(value)
