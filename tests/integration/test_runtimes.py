"""Rules in runtimes of a catalog: the real snakemake, real environments, real tools."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from ..conftest import DEADLINE, Result, command, residue, run, write_workflow

pytestmark = pytest.mark.busy  # it mostly waits for other programs to start


def make_wheel(directory: Path, name: str, version: str, text: str) -> None:
    """A real wheel with one module and one program, for pip to install without any index."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: forge-tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}={name}:main\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(body.encode()).digest()).rstrip(b'=').decode()},"
        f"{len(body.encode())}\n"
        for path, body in files.items()
    )
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, body in files.items():
            wheel.writestr(path, body)
        wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")


TOOL = "def main():\n    print('forgetool {version}')\nVALUE = '{version}'\n"

WORKFLOW = """
rule all:
    input: "shell1.txt", "shell2.txt", "script.txt", "host.txt", "unset.txt", "limits.txt", "run.txt"

rule new_shell:
    output: "shell2.txt"
    shell: "forgetool > {output}; python -c 'import sys; print(sys.prefix)' >> {output}"

rule old_shell:
    output: "shell1.txt"
    resources: forge_runtime="old"
    shell: "forgetool > {output}; echo $FORGE_RUNTIME $GREETING >> {output}"

rule new_script:
    output: "script.txt"
    params: x=[1, 2]
    script: "s.py"

rule new_run:
    output: "run.txt"
    run:
        shell("forgetool > {output}")

rule on_host:
    output: "host.txt"
    shell: "(command -v forgetool || echo none) > {output}; echo ${{PYTHONPATH-unset}} >> {output}"

rule new_unset:
    output: "unset.txt"
    shell: "echo ${{PYTHONPATH-unset}} ${{R_LIBS-unset}} > {output}"

rule small:
    output: "limits.txt"
    resources: mem_mb=77
    shell: "echo $FORGE_MEMORY_BYTES > {output}"
"""

CATALOG = """
version: 1
defaults: {pids: 555}
runtimes:
  old: {venv: old.txt, env: {GREETING: "hello there"}}
  new: {venv: new.txt}
  small: {memory: 100MB, wall: 5m, network: off}
rules: {"new_*": new, small: small}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runtimes").resolve()
    for version in ("1.0", "2.0"):
        make_wheel(directory / "wheels", "forgetool", version, TOOL.format(version=version))
    write_workflow(directory, WORKFLOW)
    for name, version in (("old", "1.0"), ("new", "2.0")):
        (directory / f"{name}.txt").write_text(f"--no-index\n--find-links {directory}/wheels\nforgetool=={version}\n")
    (directory / "forge.yaml").write_text(CATALOG)
    (directory / "s.py").write_text(
        "import sys, forgetool\n"
        "with open(snakemake.output[0], 'w') as f:\n    print(forgetool.VALUE, sys.prefix, snakemake.params.x, file=f)\n"
    )
    return directory


@pytest.fixture(scope="module")
def done(place: Path) -> Result:
    env = {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:/nowhere", "R_LIBS": "/nowhere"}
    return run(place, "-j4", "--forge-runtimes-dir", str(place / "store"), env=env)


def test_every_rule_runs_in_its_runtime(done: Result) -> None:
    assert done.code == 0, done.output
    assert done.read("shell1.txt") == "forgetool 1.0\nold hello there\n"
    first, prefix = done.read("shell2.txt").splitlines()
    assert first == "forgetool 2.0"
    assert prefix.startswith(f"{done.directory}/store/venv-")
    assert done.read("script.txt") == f"2.0 {prefix} [1, 2]\n"
    assert done.read("run.txt") == "forgetool 2.0\n"
    assert residue(done.directory) == []


def test_a_rule_never_sees_the_variables_of_another(done: Result) -> None:
    assert done.read("unset.txt") == "unset unset\n"
    host = done.read("host.txt").splitlines()
    assert host[0] == "none"
    assert host[1].endswith("/nowhere")


def test_limits_of_the_runtime_hold_unless_the_rule_has_its_own(done: Result) -> None:
    small = done.attempt("small")
    assert small["limits"]["memory_bytes"] == 77 * 1024 * 1024
    assert small["limits"]["seconds"] == 300
    assert small["isolation"]["network"] == "off"
    assert small["runtime"] == "small"
    assert done.attempt("on_host")["limits"]["pids"] == 555


def test_the_record_names_the_runtime_and_every_package(done: Result) -> None:
    attempt = done.attempt("old_shell")
    assert attempt["runtime"] == "old"
    directory = Path(attempt["directory"])
    identity = json.loads((directory / "spec.json").read_text())["runtime_id"]
    described = json.loads((directory.parent / "run.json").read_text())["runtimes"][identity]
    assert described["packages"]["forgetool"] == "1.0"
    assert described["kind"] == "venv"
    script = (directory / "command.sh").read_text()
    assert f"export VIRTUAL_ENV={described['prefix']}\n" in script


def test_a_second_run_builds_nothing(done: Result, place: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (place / "store").glob("*/runtime.json")}
    assert len(before) == 2
    again = run(place, "-j4", "--forge-runtimes-dir", str(place / "store"), "-f", "new_shell")
    assert again.code == 0, again.output
    assert "installing" not in again.output
    assert {p: p.stat().st_mtime_ns for p in (place / "store").glob("*/runtime.json")} == before


@pytest.mark.parametrize(
    ("catalog", "snakefile", "words"),
    [
        (CATALOG, "resources: forge_runtime='nwe'", ["forge_runtime='nwe' is not in the catalog", "Did you mean new?"]),
        ("version: 1\nruntimes: {x: {venv: bad.txt}}\nrules: {b: x}\n", "", ["Runtime x", "pip cannot install"]),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    workdir: Path, catalog: str, snakefile: str, words: list[str]
) -> None:
    write_workflow(
        workdir,
        "rule all:\n    input: 'a.txt', 'b.txt'\nrule a:\n    output: 'a.txt'\n    shell: 'touch {output}'\n"
        f"rule b:\n    output: 'b.txt'\n    {snakefile}\n    shell: 'touch {{output}}'\n",
    )
    (workdir / "new.txt").touch()
    (workdir / "old.txt").touch()
    (workdir / "bad.txt").write_text("--no-index\nno-such-package-of-forge\n")
    (workdir / "forge.yaml").write_text(catalog)
    result = run(workdir, "-j2", "--forge-runtimes-dir", str(workdir / "store"))
    assert result.code != 0
    for word in words:
        assert word in result.output
    assert "Traceback" not in result.output
    assert not (workdir / "a.txt").exists()
    assert not list((workdir / "store").glob("*/runtime.json")) if (workdir / "store").exists() else True
    assert residue(workdir) == []


FILES = """
rule all:
    input: "open.txt", "kept.txt", "strict.txt"
rule open_a:
    output: "open.txt"
    shell: "(cat {outside}/secret/s.txt || echo hidden) > {{output}} 2>/dev/null"
rule kept_a:
    output: "kept.txt"
    shell:
        "(cat {outside}/mine/m.txt || echo hidden) > {{output}} 2>/dev/null; echo new > {outside}/cache/c.txt;"
        " (echo new > {outside}/data/d.txt) 2>/dev/null && echo written >> {{output}} || echo refused >> {{output}}"
rule strict_a:
    output: "strict.txt"
    shell: "(cat {outside}/data/d.txt {outside}/mine/m.txt || true) > {{output}} 2>/dev/null"
"""

FILES_CATALOG = """
version: 1
runtimes:
  plain: {{files: open}}
  kept: {{paths: {{write: [{outside}/cache], hide: [{outside}/mine]}}}}
  tight: {{files: strict, paths: {{read: [{outside}/data]}}}}
rules: {{"open_*": plain, "kept_*": kept, "strict_*": tight}}
protect: [{outside}/secret]
"""


def test_file_policy_paths_and_protected_places_of_the_catalog_hold(workdir: Path) -> None:
    outside, place = workdir / "outside", workdir / "place"
    for name, text in (("secret/s.txt", "s"), ("mine/m.txt", "m"), ("cache/c.txt", "old"), ("data/d.txt", "data")):
        (outside / name).parent.mkdir(parents=True)
        (outside / name).write_text(f"{text}\n")
    write_workflow(place, FILES.format(outside=outside))
    (place / "forge.yaml").write_text(FILES_CATALOG.format(outside=outside))
    result = run(place, "-j2", "--forge-runtimes-dir", str(workdir / "store"))
    assert result.code == 0, result.output
    assert result.read("open.txt") == "hidden\n"
    assert result.read("kept.txt") == "hidden\nrefused\n"
    assert (outside / "cache" / "c.txt").read_text() == "new\n"
    assert (outside / "data" / "d.txt").read_text() == "data\n"
    assert result.read("strict.txt") == "data\n"
    assert result.attempt("open_a")["isolation"]["files"] == "open"
    assert result.attempt("strict_a")["isolation"]["files"] == "strict"
    assert residue(place) == []


NOTEBOOK = {
    "cells": [{"cell_type": "code", "execution_count": None, "id": "a1", "metadata": {}, "outputs": [],
               "source": ["import sys\n", "open(snakemake.output[0], 'w').write(sys.prefix)"]}],
    "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                 "language_info": {"name": "python"}},
    "nbformat": 4, "nbformat_minor": 5,
}  # fmt: skip


def test_a_notebook_is_run_by_the_kernel_of_its_venv(workdir: Path) -> None:
    """The venv's packages, papermill and ipykernel, come from the index."""
    write_workflow(workdir, "rule a:\n    output: 'a.txt'\n    notebook: 'n.py.ipynb'\n")
    (workdir / "n.py.ipynb").write_text(json.dumps(NOTEBOOK))
    (workdir / "requirements.txt").write_text("papermill\nipykernel\n")
    (workdir / "forge.yaml").write_text("version: 1\ndefaults: {runtime: nb}\nruntimes: {nb: {venv: requirements.txt}}\n")
    result = run(workdir, "-j1", "--forge-runtimes-dir", str(workdir / "store"))
    assert result.code == 0, result.output
    assert result.read("a.txt").startswith(f"{workdir}/store/venv-")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_file_system_that_is_nearly_full_is_named_at_the_start(workdir: Path) -> None:
    write_workflow(workdir / "small", "rule a:\n    output: 'a.txt'\n    shell: 'touch {output}'\n")
    text = (workdir / "small" / "Snakefile").read_text()
    script = 'mount -t tmpfs -o size=50m,nr_inodes=900 none "$1" && cd "$1" && cat > Snakefile && shift && "$@"'
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "bash", str(workdir / "small"), *command("forge", "-j1")],
        input=text, capture_output=True, text=True, check=False, timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    assert f"Forge: working directory {workdir}/small: only " in done.stderr
