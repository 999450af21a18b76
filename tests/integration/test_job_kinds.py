"""Every kind of job that Snakemake knows, in one workflow: its files are the same as with the local executor.

Each executor has one run; the tests compare the two working directories and check single rules. Rules that need a
rare program are in the workflow only if the machine has it; otherwise a skipped test says so.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from ..conftest import Result, residue, run, write_workflow

pytestmark = pytest.mark.busy  # it mostly waits for other programs to start

WORKFLOW = """
import os
import shutil
configfile: "config.yaml"
envvars: "FORGE_TEST_VARIABLE"
N = 3

rule all:
    input:
        "shell.txt", "run.txt", "script_py.txt", "script_sh.txt", "wrapper.txt", "shadow.txt", "benchmark.tsv",
        "retried.txt", "collected.txt", "protected.txt", "touched.flag", "tree", "ensured.txt", "piped.txt",
        "service.txt", "big_params.txt", "long_command.txt", "spaces in name.txt", "module.txt",
        "unpicklable.txt", "norun.flag", "logged.txt", "streams.txt", "run_shell.txt", "env.txt", "multiproc.txt",
        "updated.txt", "python_tmp.txt",
        "notebook.txt", "linked.txt",
        ["script_r.txt"] if shutil.which("Rscript") else [],
        ["from_storage.txt", "provided.txt"] if shutil.which("rsync") else [],

localrules: all, norun

import datetime
config[datetime.date(2024, 1, 1)] = "as YAML reads a date"

rule shell_rule:
    output: "shell.txt"
    shell: "echo shell > {output}"

rule run_rule:
    input: "shell.txt"
    output: "run.txt"
    params: value=42
    run:
        with open(output[0], "w") as f:
            f.write(f"{open(input[0]).read().strip()} {params.value} {wildcards} {threads}")

rule run_with_shell:
    output: "run_shell.txt"
    run:
        shell("echo one > {output}")
        for line in shell("echo two", iterable=True):
            shell("echo {line} >> {output}")

rule script_py:
    input: "shell.txt"
    output: "script_py.txt"
    params: x=[1, 2]
    log: "logs/script_py.log"
    script: "scripts/s.py"

rule script_sh:
    input: "shell.txt"
    output: "script_sh.txt"
    script: "scripts/s.sh"

rule script_r:
    input: "shell.txt"
    output: "script_r.txt"
    params: x=[1, 2]
    threads: 2
    log: "logs/script_r.log"
    script: "scripts/s.R"

rule notebook_py:
    input: "shell.txt"
    output: "notebook.txt"
    params: x=[1, 2]
    log: notebook="logs/notebook.ipynb"
    notebook: "notebooks/n.py.ipynb"

rule wrapper_rule:
    input: "shell.txt"
    output: "wrapper.txt"
    wrapper: "file:wrapper"

rule shadow_rule:
    input: "shell.txt"
    output: "shadow.txt"
    shadow: "minimal"
    shell: "cat {input} > {output}; echo junk > junk_in_shadow.txt"

rule benchmark_rule:
    output: touch("benchmarked.flag")
    benchmark: repeat("benchmark.tsv", 2)
    shell: "sleep 0.05"

rule retried:
    output: "retried.txt"
    retries: 2
    resources: attempt_mb=lambda wildcards, attempt: attempt * 100
    shell: "echo {resources.attempt_mb} > {output}; [ {resources.attempt_mb} -ge 200 ]"

checkpoint split:
    output: directory("parts")
    shell: "mkdir {output}; for i in a b c; do echo $i > {output}/$i.txt; done"

rule part:
    input: "parts/{p}.txt"
    output: temp("done/{p}.txt")
    shell: "tr a-z A-Z < {input} > {output}"

def parts(wildcards):
    folder = checkpoints.split.get().output[0]
    return sorted(expand("done/{p}.txt", p=glob_wildcards(folder + "/{p}.txt").p))

rule collect:
    input: parts
    output: "collected.txt"
    shell: "cat {input} > {output}"

rule touch_rule:
    output: touch("touched.flag")

rule norun:
    input: "touched.flag"
    output: touch("norun.flag")

rule tree:
    output: directory("tree")
    shell: "mkdir -p {output}/x/y; echo z > {output}/x/y/z"

rule pipe_out:
    output: pipe("stream.pipe")
    shell: "for i in 1 2 3; do echo $i; done > {output}"

rule pipe_in:
    input: "stream.pipe"
    output: "piped.txt"
    shell: "sort -r {input} > {output}"

rule service:
    output: service("service.sock")
    shell: "echo served > {output}.new; mv {output}.new {output}; while :; do touch -c {output}; sleep 0.01; done"

rule service_user:
    input: "service.sock"
    output: "service.txt"
    shell: "cat {input} > {output}"

def big(wildcards):
    return {"k" + str(i): list(range(20)) for i in range(2000)}

rule big_params:
    output: "big_params.txt"
    params: big=big
    run:
        open(output[0], "w").write(str(sum(len(v) for v in params.big.values())))

rule long_command:
    output: "long_command.txt"
    params: text="x" * 200000
    shell: "echo {params.text} | wc -c > {output}"

rule names:
    output: "spaces in name.txt", "umlaut-ä.txt", "subworkflow/deep/dir/out.txt", os.path.abspath("absolute.txt")
    shell: 'for name in {output:q}; do echo "ä ö ü" > "$name"; done'

module other:
    snakefile: "other.smk"
    config: {"word": "module"}

use rule * from other as other_*

class Odd:
    def __init__(self):
        self.cannot_be_pickled = lambda: None

    def __repr__(self):
        return "odd"

rule unpicklable:
    output: "unpicklable.txt"
    params: odd=lambda wildcards: Odd()
    run:
        open(output[0], "w").write(str(params.odd))

rule logged:
    output: "logged.txt"
    log: "logs/deep/logged.log"
    shell: "echo to-log > {log}; echo l > {output}"

rule multi:
    output: protected("protected.txt"), ensure("ensured.txt", non_empty=True)
    group: "g"
    shell: "echo a > {output[0]}; echo b > {output[1]}"

rule streams:
    output: "streams.txt"
    shell: "echo to-stdout-31; echo to-stderr-31 >&2; echo again-31 > /dev/stderr; echo s > {output}"

rule surroundings:
    input: "shell.txt"
    output: "env.txt"
    params:
        a=lambda wildcards, input, output, threads, resources: f"{input} {output} {threads}",
        b=config["greeting"],
    threads: 2
    shell:
        "(echo $FORGE_TEST_VARIABLE '{params.a} {params.b} {threads}' $OMP_NUM_THREADS {config[extra]} $HOME;"
        " paste <(echo a) <(echo b); id -un; locale; umask) > {output} 2>/dev/null"

def square(x):
    return x * x

rule multiproc:
    output: "multiproc.txt"
    run:
        import multiprocessing
        # Under the local executor this forks a process with threads, and hangs for ever.
        if os.environ.get("FORGE_JOB_DIR"):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                squares = pool.map(square, range(5))
        else:
            squares = [square(x) for x in range(5)]
        open(output[0], "w").write(str(squares))

rule updated:
    output: update("updated.txt")
    shell: "echo more >> {output}"

rule python_tmp:
    output: "python_tmp.txt"
    run:
        import tempfile
        with tempfile.TemporaryDirectory() as d:
            open(d + "/x", "w").write("x" * 10)
            open(output[0], "w").write(str(os.path.getsize(d + "/x")))

# Links from the working directory to places below /tmp that nobody names.
rule linked:
    input: "linked.in", "linked/file.in"
    output: "linked.txt", "linked/file.out"
    shell: "cat {input} | tee {output}"

# Local copies of files in storage lie below /tmp too: --local-storage-prefix.
storage:
    provider="fs"

rule to_storage:
    input: storage.fs("store/in.txt")
    output: storage.fs("store/shell.txt")
    log: storage.fs("store/shell.log")
    shell: "echo stored | cat {input} - > {output}; echo logged > {log}"

rule run_with_storage:
    input: storage.fs("store/shell.txt")
    output: storage.fs("store/run.txt"), "run_with_storage.txt"
    run:
        text = open(input[0]).read()
        for name in output:
            open(name, "w").write(text + "run\\n")

rule unpicklable_with_storage:
    input: storage.fs("store/run.txt")
    output: storage.fs("store/unpicklable.txt")
    params: odd=lambda wildcards: Odd()
    run:
        open(output[0], "w").write(open(input[0]).read() + str(params.odd))

rule from_storage:
    input: storage.fs("store/unpicklable.txt"), storage.fs("store/run.txt")
    output: "from_storage.txt"
    shell: "cat {input} > {output}"

# Not copied: the one is a link to the storage (since Snakemake 9.1), of the other only the name is given.
sequential = access.sequential if "access" in globals() else lambda file: file

rule provided:
    input: sequential(storage.fs(config["elsewhere"] + "/once.in")),
           storage.fs(config["elsewhere"] + "/there.in", retrieve=False)
    output: "provided.txt"
    shell: "cat {input} > {output}; echo {input} >> {output}"

onsuccess:
    print("ON-SUCCESS-RAN")
"""
SCRIPT_PY = """
print("script says hello-32")
with open(snakemake.output[0], "w") as f:
    f.write(f"{snakemake.input[0]} {snakemake.params.x} {snakemake.log[0]} {snakemake.rule}")
open(snakemake.log[0], "w").write("logged")
"""
SCRIPT_R = """
writeLines(c(readLines(snakemake@input[[1]]), snakemake@params[["x"]], snakemake@threads, snakemake@rule, getwd()),
           snakemake@output[[1]])
message("R says hello-33")
cat("logged", tempdir() != "", file = snakemake@log[[1]])
"""
NOTEBOOK = """
import tempfile
with open(snakemake.output[0], "w") as f, tempfile.TemporaryFile() as _:
    f.write(f"{open(snakemake.input[0]).read().strip()} {snakemake.params.x} {snakemake.rule}")
print("notebook says hello-34")
"""
SCRIPT_SH = 'cat "${snakemake_input[0]}" > "${snakemake_output[0]}"\n'
WRAPPER = 'from snakemake.shell import shell\nshell("cat {snakemake.input} > {snakemake.output}; echo w >> {snakemake.output}")\n'
OTHER = 'rule word:\n    output: "module.txt"\n    params: word=config["word"]\n    shell: "echo {params.word} > {output}"\n'


def _notebook(code: str) -> str:
    """A Jupyter notebook of one cell."""
    cell: dict[str, object] = {"cell_type": "code", "id": "0", "metadata": {}, "execution_count": None, "outputs": [], "source": code}
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "cells": [cell],
                       "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}})


def _make(directory: Path, elsewhere: Path) -> None:
    write_workflow(directory, WORKFLOW)
    elsewhere.mkdir()
    for name in ("target.in", "file.in", "once.in", "there.in"):
        (elsewhere / name).write_text(f"{name}\n")
    (directory / "linked").symlink_to(elsewhere)
    (directory / "linked.in").symlink_to(elsewhere / "target.in")
    for name, text in {"scripts/s.py": SCRIPT_PY, "scripts/s.sh": SCRIPT_SH, "wrapper/wrapper.py": WRAPPER,
                       "scripts/s.R": SCRIPT_R, "notebooks/n.py.ipynb": _notebook(NOTEBOOK), "store/in.txt": "in\n",
                       "wrapper/environment.yaml": "channels: []\ndependencies: []\n",
                       "other.smk": OTHER, "config.yaml": "greeting: hello\n"}.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    (directory / "updated.txt").write_text("old\n")


# Snakemake calls papermill, which lies beside this Python.
ENVIRONMENT = {"FORGE_TEST_VARIABLE": "passed on", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def _arguments(place: Path) -> list[str]:
    return ["-j4", "--config", "extra=word", f"elsewhere={place}/elsewhere", "--local-storage-prefix", f"{place}/copies"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """One workflow under both executors, one after the other in the same place (paths must not differ)."""
    place = tmp_path_factory.mktemp("kinds").resolve()
    found = {}
    for executor in ("local", "forge"):
        work, elsewhere = place / "work", place / "elsewhere"
        _make(work, elsewhere)
        result = run(work, *_arguments(place), "--forcerun", "updated", executor=executor, env=ENVIRONMENT)
        if executor == "forge":
            found["forge"] = result
        else:
            shutil.copytree(work, place / "local", symlinks=True)
            for directory in (work, elsewhere, place / "copies"):
                shutil.rmtree(directory, ignore_errors=True)
            found["local"] = Result(result.code, result.output, place / "local")
    return found


def _tree(directory: Path) -> dict[str, tuple[bytes, str]]:
    files: dict[str, tuple[bytes, str]] = {}
    for parent, names, leaves in os.walk(directory):
        if ".snakemake" in names:
            names.remove(".snakemake")
        for leaf in leaves:
            path = Path(parent, leaf)
            if leaf not in ("benchmark.tsv", "notebook.ipynb"):  # these contain times
                files[str(path.relative_to(directory))] = (path.read_bytes(), oct(path.stat().st_mode))
    return files


def _notes_of_snakemake(directory: Path) -> set[str]:
    """The names of Snakemake's notes on finished and incomplete outputs."""
    own = directory / ".snakemake"
    return {str(path.relative_to(own)) for kind in ("metadata", "incomplete") for path in (own / kind).rglob("*") if path.is_file()}


def test_same_files_and_modes(results: dict[str, Result]) -> None:
    for name, result in results.items():
        assert result.code == 0, f"{name}:\n{result.output[-5000:]}"
        assert "notebook says hello-34" in result.read("logs/notebook.ipynb"), "kept as its log"
    assert "ON-SUCCESS-RAN" in results["forge"].output
    assert residue(results["forge"].directory) == []
    local, forge = (_tree(results[name].directory) for name in ("local", "forge"))
    assert forge.keys() == local.keys()
    assert forge["updated.txt"][0] == b"old\nmore\n"  # local once left other content: the rule is forced, and there is a checkpoint
    local["updated.txt"] = (b"old\nmore\n", local["updated.txt"][1])
    assert {k: (v, local[k]) for k, v in forge.items() if v != local[k]} == {}
    local_notes, notes = (_notes_of_snakemake(results[name].directory) for name in ("local", "forge"))
    assert notes == local_notes
    columns, *rows = results["forge"].read("benchmark.tsv").splitlines()
    assert results["local"].read("benchmark.tsv").splitlines()[0] == columns
    assert len(rows) == 2


def test_every_rule_with_something_to_run_is_on_record(results: dict[str, Result]) -> None:
    attempts = results["forge"].attempts()
    assert {"shell_rule", "run_rule", "script_py", "wrapper_rule", "pipe_in", "service", "other_word", "part"} <= {
        a["rule"] for a in attempts
    }
    assert all(a["isolation"]["limits"] != "none" for a in attempts)
    assert [(a["attempt"], a["outcome"]) for a in attempts if a["rule"] == "retried"] == [(1, "failed"), (2, "succeeded")]
    assert results["forge"].attempt("notebook_py")["notes"] == [], "no kernel is left"
    assert all("2" < a["submitted"] <= a["started"] for a in attempts)
    (record,) = results["forge"].directory.glob(".snakemake/forge/runs/*/run.json")
    assert '"2024-01-01": "as YAML' in record.read_text()
    plan = json.loads(record.read_text())["plan"]
    assert plan["collect"]["after"] == ["part", "split"], "the checkpoint, which Snakemake forgets, and the jobs that it created"
    service = results["forge"].attempt("service")
    assert service["outcome"] == "cancelled"
    assert "all jobs that use this service are done" in service["reason"]


def test_what_started_them(results: dict[str, Result]) -> None:
    """The launcher starts plain shell commands; the nursery starts Python, benchmarks and very long commands."""
    how = {a["rule"]: a["how"] for a in results["forge"].attempts()}
    for rule in {"unpicklable", "unpicklable_with_storage"} & how.keys():
        assert how.pop(rule).startswith("inner snakemake, because its arguments cannot be pickled")
    python = {"run_rule", "run_with_shell", "script_py", "script_sh", "script_r", "notebook_py", "wrapper_rule", "big_params",
              "multiproc", "python_tmp", "run_with_storage"}
    nursery = python & how.keys() | {"benchmark_rule", "long_command"}
    assert how == {rule: "nursery" if rule in nursery else "launcher" for rule in how}
    spec = Path(results["forge"].attempt("long_command")["directory"], "spec.json")
    assert json.loads(spec.read_text())["how"] == "nursery"


def test_streams_are_captured_and_shown(results: dict[str, Result]) -> None:
    result = results["forge"]
    directory = Path(result.attempt("streams")["directory"])
    assert (directory / "stdout.log").read_text() == "to-stdout-31\n"
    assert (directory / "stderr.log").read_text() == "to-stderr-31\nagain-31\n"
    assert "to-stdout-31" in result.output
    assert "to-stderr-31" in result.output
    assert "hello-32" in Path(result.attempt("script_py")["directory"], "stdout.log").read_text()


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="there is no Rscript here (Debian: r-base-core)")
def test_r_script(results: dict[str, Result]) -> None:
    work = results["forge"].directory
    assert results["forge"].read("script_r.txt") == f"shell\n1\n2\n2\nscript_r\n{work}\n"
    assert "R says hello-33" in Path(results["forge"].attempt("script_r")["directory"], "stderr.log").read_text()


@pytest.mark.skipif(shutil.which("rsync") is None, reason="there is no rsync here, which Snakemake's fs storage calls")
def test_storage(results: dict[str, Result]) -> None:
    result = results["forge"]
    assert result.read("from_storage.txt") == "in\nstored\nrun\noddin\nstored\nrun\n"
    assert result.read("store/shell.log") == "logged\n"
    assert result.read("provided.txt").startswith("once.in\nthere.in\n")
    assert result.attempt("run_with_storage")["how"] == "nursery"


@pytest.mark.skipif(shutil.which("rsync") is None, reason="there is no rsync here, which Snakemake's fs storage calls")
def test_default_storage(workdir: Path) -> None:
    """A workflow may have all its files in storage, with local copies below /tmp."""
    text = """
        rule c:
            input: "b.txt"
            output: "c.txt"
            params: cannot_be_pickled=lambda wildcards: {"c": lambda: "c"}
            run: open(output[0], "w").write(open(input[0]).read() + params.cannot_be_pickled["c"]())
        rule b:
            input: "a.txt"
            output: "b.txt"
            run: open(output[0], "w").write(open(input[0]).read() + "b")
        rule a:
            output: "a.txt"
            shell: "echo a > {output}"
        """
    write_workflow(workdir / "work", text)
    result = run(workdir / "work", "-j2", "--default-storage-provider", "fs", "--default-storage-prefix",
                 f"{workdir}/store", "--local-storage-prefix", f"{workdir}/copies")
    assert result.code == 0, result.output
    assert (workdir / "store" / "c.txt").read_text() == "a\nbc"
    assert not (workdir / "work" / "c.txt").exists()
    assert result.attempt("c")["how"].startswith("inner snakemake")
    assert {a["outcome"] for a in result.attempts()} == {"succeeded"}
    assert residue(workdir / "work") == []


def test_second_run_has_nothing_to_do(results: dict[str, Result]) -> None:
    work = results["forge"].directory
    again = run(work, *_arguments(work.parent), env=ENVIRONMENT)
    assert "Nothing to be done" in again.output, again.output[-3000:]


def test_command_by_hand(results: dict[str, Result]) -> None:
    result = results["forge"]
    script = Path(result.attempt("shell_rule")["directory"], "command.sh")
    assert "\n# Under Forge: memory of the run, 1 CPU(s), no time limit.\n" in script.read_text()
    (result.directory / "shell.txt").unlink()
    assert os.spawnv(os.P_WAIT, "/bin/bash", ["bash", str(script)]) == 0
    assert result.read("shell.txt") == "shell\n"


def test_output_cache_between_workflows(workdir: Path) -> None:
    """The second workflow fetches the first one's stored output, and runs no job for it."""
    store = workdir / "store"
    store.mkdir()
    text = 'rule a:\n    output: "a.txt"\n    cache: True\n    shell: "echo x > {output}"\n'
    for name, attempts in (("one", 1), ("two", 0)):
        write_workflow(workdir / name, text)
        result = run(workdir / name, "-j1", "--cache", "a", env={"SNAKEMAKE_OUTPUT_CACHE": str(store)})
        assert result.code == 0, result.output
        assert result.read("a.txt") == "x\n"
        assert len(result.attempts()) == attempts
    assert residue(workdir / "two") == []
