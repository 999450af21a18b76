"""The crate of a real run: it satisfies the profile, and it is true."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import forge, run, write_workflow

pytestmark = pytest.mark.busy  # it mostly waits for other programs to start

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILE = "provenance-run-crate-0.5"  # includes the profiles that it extends: workflow run, process run, workflow, RO-Crate 1.1


@pytest.fixture(scope="session")
def validator() -> str:
    """A Python with rocrate-validator, in its own venv: it needs an older rich than import-linter does."""
    python = REPOSITORY / "build" / "roc-venv" / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", "import rocrate_validator, rocrate"], check=False).returncode:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(python.parent.parent)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "roc-validator>=0.13", "rocrate==0.13.0"], check=True)
    return str(python)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a temporary file, a directory, a Python rule, an included file, parameters and a failure."""
    directory = tmp_path_factory.mktemp("provenance").resolve()
    write_workflow(directory, """
        configfile: "config.yaml"
        include: "more.smk"
        rule all:
            input: "sum.txt", "broken.txt"
        rule shout:
            input: "in.txt"
            output: temp("big {n}.txt"), directory("side.{n}")
            shell: "tr a-z A-Z < {input} > '{output[0]}'; mkdir -p {output[1]}; touch {output[1]}/x"
        """)
    (directory / "more.smk").write_text(
        'rule sum:\n    input: "big 1.txt", "big 2.txt"\n    output: "sum.txt"\n    run:\n'
        '        open(output[0], "w").write("".join(open(f).read() for f in input))\n'
        'rule broken:\n    output: "broken.txt"\n    shell: "exit 9"\n')
    (directory / "config.yaml").write_text("depth: 3\nname: x\n")
    (directory / "forge.yaml").write_text('version: 1\nruntimes:\n  py: {venv: requirements.txt}\nrules: {"shout": py}\n')
    (directory / "requirements.txt").write_text("six\n")
    (directory / "in.txt").write_text("hello\n")
    done = run(directory, "-j2", "--keep-going", "--config", "name=y")
    assert done.code == 1
    return directory


def _crate(workdir: Path, target: Path, *words: str) -> tuple[dict[str, dict[str, Any]], str]:
    done = forge(workdir, "provenance", str(target), *words)
    assert done.returncode == 0, done.stderr
    graph = json.loads((target / "ro-crate-metadata.json").read_text())["@graph"]
    return {entity["@id"]: entity for entity in graph}, done.stdout + done.stderr


@pytest.mark.parametrize("words", [[], ["--copy", "--license", "CC-BY-4.0"]])
def test_it_meets_every_requirement_of_the_profile(workdir: Path, tmp_path: Path, validator: str, words: list[str]) -> None:
    _crate(workdir, tmp_path / "crate", *words)
    done = subprocess.run([validator, "-P", REPOSITORY / "tests" / "validate_crate.py", tmp_path / "crate", PROFILE, "REQUIRED"],
                          capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["issues"] == []
    assert result["checks"] > 50


def test_the_validator_would_have_complained(workdir: Path, tmp_path: Path, validator: str) -> None:
    _crate(workdir, tmp_path / "crate")
    path = tmp_path / "crate" / "ro-crate-metadata.json"
    path.write_text(path.read_text().replace('"HowToStep"', '"Step"').replace("mainEntity", "name"))
    done = subprocess.run([validator, "-P", REPOSITORY / "tests" / "validate_crate.py", tmp_path / "crate", PROFILE, "REQUIRED"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["issues"]


def test_it_says_what_happened(workdir: Path, tmp_path: Path) -> None:
    graph, said = _crate(workdir, tmp_path / "crate", "--copy")
    assert "4 jobs, 6 files." in said
    assert "2 of the files no longer exist." in said
    copied = tmp_path / "crate" / "data" / "sum.txt"
    assert copied.read_text() == "HELLO\nHELLO\n"
    assert graph["data/sum.txt"]["sha256"] == hashlib.sha256(copied.read_bytes()).hexdigest()
    assert (tmp_path / "crate" / "workflow" / "more.smk").is_file()
    jobs = [e for i, e in graph.items() if i.startswith("#job-")]
    (total,) = [job for job in jobs if job["name"] == "sum, attempt 1"]
    assert {part["@id"] for part in total["object"]} == {f"#gone-{str(workdir).replace(' ', '%20')}/big%20{n}.txt" for n in "12"}
    assert total["result"] == [{"@id": "data/sum.txt"}]
    assert total["startTime"] < total["endTime"]
    (broken,) = [job for job in jobs if job["name"].startswith("broken")]
    assert (broken["actionStatus"], broken["error"]) == ("http://schema.org/FailedActionStatus", "exit code 9")
    assert broken["description"] == "exit 9"
    whole = graph["#run"]
    inputs = {part["@id"] for part in whole["object"]}
    assert inputs == {"data/in.txt", "#param-depth", "#param-name"}
    assert (graph["#param-name"]["value"], graph["#param-depth"]["value"]) == ("y", 3)
    assert graph["#snakemake"]["softwareVersion"]
    assert {entity["@id"] for entity in whole["result"]} >= {"data/sum.txt", "data/side.1/"}


def test_versions_of_the_environment_of_a_rule(workdir: Path, tmp_path: Path) -> None:
    graph, _ = _crate(workdir, tmp_path / "crate")
    (tool,) = [entity for entity in graph.values() if entity.get("name") == "rule shout"]
    environment = graph[tool["softwareRequirements"][0]["@id"]]
    assert environment["name"].startswith("venv ")  # followed by its source file, maybe another workflow's
    packages = {graph[part["@id"]]["name"]: graph[part["@id"]]["softwareVersion"] for part in environment["softwareRequirements"]}
    assert packages["six"].startswith("1.")
    page = forge(workdir, "report", "-o", "-", check=True).stdout
    assert f"six {packages['six']}" in page


def test_a_file_that_has_changed_since_says_so(workdir: Path, tmp_path: Path) -> None:
    path = workdir / "sum.txt"
    before = path.stat()
    try:
        os.utime(path, (before.st_mtime + 60, before.st_mtime + 60))
        graph, said = _crate(workdir, tmp_path / "crate")
        assert "1 of the files have changed after the job that made them." in said
        assert "has changed" in graph[f"file://{path}"]["description"]
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_directory_in_use_is_left_alone(workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    done = forge(workdir, "provenance", str(tmp_path))
    assert (done.returncode, done.stderr) == (2, f"snakemake-forge: {tmp_path} is in use. Name a directory that does not exist yet.\n")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


STORE = """
    rule all:
        input: "a.txt", "spy.txt"
    rule a:
        output: "a.txt"
        shell: "echo made > {output}"
    rule spy:
        input: "a.txt"
        output: "spy.txt"
        shell: "(ls -A {config[store]}; touch {config[store]}/x; (echo x > {config[store]}/old/mine)) > {output} 2>&1 || true"
    rule broken:
        output: "broken.txt"
        shell: "exit 3"
    """


@pytest.fixture(params=["inside", "outside"])  # the working directory; not in /tmp, where jobs have their own anyway
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "inside":
        yield tmp_path / "work" / "store"
        return
    with tempfile.TemporaryDirectory(prefix="forge-test-", dir=Path.home()) as place:
        yield Path(place).resolve() / "store"


def test_each_run_leaves_its_crate_in_the_store_which_no_job_sees(tmp_path: Path, store: Path) -> None:
    workdir = tmp_path / "work"
    (store / "old").mkdir(parents=True)
    workdir.mkdir(exist_ok=True)
    (store / "old" / "mine").write_text("kept\n")
    write_workflow(workdir, STORE)
    (workdir / "forge.yaml").write_text(f"version: 1\nprovenance: {os.path.relpath(store, workdir)}\n")
    done = run(workdir, "-j2", "--config", f"store={store}")
    assert done.code == 0, done.output
    seen = done.read("spy.txt")
    assert "old\n" not in seen  # not listed
    assert len(seen.splitlines()) in (2, 3)  # not written to; root can list a directory of mode 0, which is empty
    assert all(line.endswith(("Permission denied", "Read-only file system", "No such file or directory")) for line in seen.splitlines())
    assert (store / "old" / "mine").read_text() == "kept\n"
    (first,) = [path for path in store.iterdir() if path.name != "old"]
    assert f"Forge: provenance: {first}: run {first.name}, 2 jobs, 2 files." in done.output
    graph = {e["@id"]: e for e in json.loads((first / "ro-crate-metadata.json").read_text())["@graph"]}
    assert graph[f"file://{workdir}/a.txt"]["sha256"] == hashlib.sha256(b"made\n").hexdigest()
    # A failed run leaves a crate too; a run with nothing to do leaves none.
    failed = run(workdir, "-j2", "--config", f"store={store}", "--", "broken")
    assert failed.code == 1
    (second,) = {path for path in store.iterdir() if path.name != "old"} - {first}
    graph = {e["@id"]: e for e in json.loads((second / "ro-crate-metadata.json").read_text())["@graph"]}
    assert graph["#run"]["actionStatus"] == "http://schema.org/FailedActionStatus"
    assert run(workdir, "-j2", "--config", f"store={store}").code == 0
    assert {path.name for path in store.iterdir()} == {"old", first.name, second.name}
    # The command finds the store too, and says if the crate is already there.
    again = forge(workdir, "provenance", "--run", first.name)
    assert (again.returncode, f"{first} is in use" in again.stderr) == (2, True)


def test_a_store_that_cannot_be_used_stops_the_run_before_its_first_job(tmp_path: Path) -> None:
    write_workflow(tmp_path, STORE)
    (tmp_path / "crates").write_text("no directory")
    (tmp_path / "forge.yaml").write_text("version: 1\nprovenance: crates\n")
    done = run(tmp_path, "-j2", "--config", "store=x", "--", "a.txt")
    assert done.code == 1
    assert f"{tmp_path}/forge.yaml: provenance: {tmp_path}/crates is a file; it must be a directory" in done.output
    assert not (tmp_path / "a.txt").exists()
    (tmp_path / "forge.yaml").write_text("version: 1\n")
    asked = forge(tmp_path, "provenance")
    assert asked.returncode == 2
