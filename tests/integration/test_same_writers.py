"""Processes that outlive the command of their job and still write: Forge leaves the same files as ``local``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from .. import ordinary
from ..conftest import run
from ..side_by_side import USERS, Both, Case

pytestmark = pytest.mark.slow  # runs each case with local, too

CASES = [
    Case("tee", """
        rule @:
            output: "@/out.txt"
            log: "@/out.log"
            shell: "exec &> >(sleep 0.2; tee {log:q}); seq 3000; touch {output}; echo end"
        """),
    Case("substitution", """
        rule @:
            output: "@/a.txt", "@/b.txt", gz="@/c.gz", n="@/n.txt"
            shell:
                '''
                seq 9 -1 0 > >(sleep 0.2; sort -n > {output[0]})
                seq 9 -1 0 > >(sleep 0.1; sort -n -o {output[1]})
                seq 20000 | tee >(sleep 0.2; gzip -n9 > {output.gz}) | wc -l > {output.n}
                '''
        """),
    Case("background", """
        rule @:
            output: "@/out.txt"
            shell: "nohup sh -c 'sleep 0.5; echo late > {output}; sleep 0.5; echo later >> {output}' > /dev/null & exit 0"
        """),
    Case("mapped", """
        rule @:
            output: "@/out.bin"
            run:
                import mmap, os, time
                with open(output[0], "w+b") as file:
                    file.truncate(100)
                    content = mmap.mmap(file.fileno(), 100)
                if os.fork() == 0:
                    os.setsid()
                    time.sleep(0.5)
                    content[:4] = b"done"
                    os._exit(0)
        """, differs=(r"out\.bin",), check=lambda result, _: (result.directory / "mapped/out.bin").read_bytes()[:4] == b"done"),
    Case("beside", """
        rule @:
            output: "@/out.txt"
            shell: "sh -c 'sleep 0.5; seq 1000' > @/side.txt & echo done > {output}"
        """),
    Case("failed", """
        rule @:
            output: "@/out.txt"
            log: "@/out.log"
            shell: "exec &> >(sleep 0.2; tee {log:q}); echo why; exit 3"
        """, outcome="failed", check=lambda result, _: (result.directory / "failed/out.log").read_text() == "why\n"),
    Case("tracker", """
        rule @:
            output: "@/out.txt"
            run:
                from multiprocessing import shared_memory
                block = shared_memory.SharedMemory(create=True, size=100)
                block.unlink()
                with open(output[0], "w") as file:
                    file.write("x")
        """, check=lambda _, attempts: attempts[-1]["notes"] == []),
    Case("logs", """
        rule @:
            output: "@/out.txt"
            shell:
                '''
                mkdir @/work; echo why > @/work/tool.log; echo java > @/hs_err_pid7.log; mkfifo @/fifo
                truncate -s 70M @/core.7; echo half > {output}; exit 3
                '''
        """, outcome="failed", check=lambda result, attempts: kept(result.directory, attempts) == [
            ("hs_err_pid7.log", "java\n"), ("work/tool.log", "why\n")],
        says=("is logs/hs_err_pid7.log", "undeclared", "logs/core.7 (70.0 MiB)")),
    Case("search", """
        rule @_first:
            output: "@/first.txt"
            shell: "echo said; echo complained >&2; echo > {output}"
        rule @:
            input: rules.@_first.output
            output: "@/out.txt"
            shell:
                '''
                grep -rlsx "complained" .snakemake > {output} || true
                [ -z "${{FORGE_JOB_DIR:-}}" ] || until cat "$FORGE_JOB_DIR"/command.sh; do sleep 0.1; done > /dev/null 2>&1  # it is written as the job starts
                (ls .snakemake/forge/runs/*/ 2> /dev/null || true) | wc -l > @/records.txt
                {FORGE} jobs 2> @/said.txt || true
                '''
        """, differs=("records.txt", "said.txt"),
        check=lambda result, _: [(result.directory / f"search/{name}.txt").read_text() for name in ("records", "said")] == [
            "1\n", ('snakemake-forge: A job sees no records but its own. If a rule shall read all of them, add to it: '
            'resources: forge_files="open"\n')]),
    Case("server", """
        rule @:
            output: "@/out.txt"
            shell: "setsid sleep 15 &> /dev/null & echo done > {output}"
        """, says=("left 1 process(es) running, which were killed", "sleep 15")),
]


def kept(directory: Path, attempts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Names and contents of the kept files of the case ``logs``, sorted."""
    place = directory / attempts[-1]["directory"] / "undeclared"
    index = dict(line.split("\t") for line in (place / "index").read_text().splitlines())
    assert {path.name for path in place.iterdir()} == {*index, "index"}
    return sorted((name.removeprefix("logs/"), (place / number).read_text()) for number, name in index.items())


@pytest.fixture(scope="module", params=USERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both.run(tmp_path_factory.mktemp("same"), CASES, user=request.param,
                    head=f"FORGE = '{sys.executable} -m snakemake_executor_plugin_forge.cli.main'\n")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_files_are_those_of_local(both: Both, case: Case) -> None:
    both.check(case)


def test_whoever_never_stops_writing_an_output_makes_the_job_fail(workdir: Path) -> None:
    (workdir / "Snakefile").write_text("""
rule all:
    output: "out.txt"
    shell: "while sleep 0.1; do echo more; done > {output} & exit 0"
""")
    result = run(workdir, "-j1", "--forge-wall", "6s", "--forge-grace", "1s")
    attempt = result.attempt("all")
    assert attempt["outcome"] == "timeout", result.output
    assert "still had open out.txt" in " ".join(attempt["notes"])
    assert not (workdir / "out.txt").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user who runs the tests has namespaces or not")
def test_writers_are_waited_for_without_namespaces_too(workdir: Path) -> None:
    (workdir / "Snakefile").write_text("""
rule all:
    output: "out.txt"
    shell: "seq 9 -1 0 > >(sleep 0.2; sort -n > {output})"
""")
    ordinary.hand_over(workdir)
    result = run(workdir, "-j1", before=ordinary.prefix(namespaces=False))
    assert result.code == 0, result.output
    assert result.read("out.txt").split() == list("0123456789")
    assert result.attempt("all")["notes"] == []
