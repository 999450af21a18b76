"""Unusual outputs and logs: Forge leaves the same files as ``local``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .. import ordinary
from ..conftest import Result, run, write_workflow
from ..side_by_side import USERS, Both, Case

pytestmark = pytest.mark.slow  # runs each case with local, too


def _first_version(name: str) -> Callable[[Result, list[dict[str, Any]]], bool]:
    """All files of the first run are there, although Snakemake would have noticed the second run's output only when they were gone."""

    def check(forge: Result, _: object) -> bool:
        place = forge.directory / name
        return [(place / file).read_text() for file in ("b", "side")] == ["1\n"] * 2 and not (place / "a").is_symlink()

    return check


CASES = [
    Case("inside", """
        rule @:
            output: "@/d/a", "@/d/e/b", directory("@/d")
            shell: "echo {config[version]} > {output[0]}; echo b > {output[1]}; echo > @/d/extra{config[version]}"
        """),
    Case("nested", """
        rule @:
            output: directory("@/d"), directory("@/d/e"), touch("@/d/done"), temp("@/d/gone")
            log: "@/d/logs/x.log"
            benchmark: "@/d/bench/x.tsv"
            shell: "mkdir {output[1]}; echo {config[version]} > {output[1]}/f; echo > @/d/gone; ls @/d > {log}"
        """, differs=(r"\.tsv$",), check=lambda forge, _: (forge.directory / "nested/d/bench/x.tsv").stat().st_size > 20),
    *(Case(f"updated_{policy}", f"""
        rule @:
            output: update(directory("@/d")), "@/d/new", update("@/file"), update("@/later")
            resources: forge_files="{policy}"
            shell: "ls -A @/d > {{output[1]}}; echo {{config[version]}} | tee @/d/f{{config[version]}} >> {{output[2]}}; echo v | tee -a @/d/both >> {{output[3]}}; "
                "rm -f @/d/gone"
        """, before={"d/gone": "x", "d/e/old": "y", "file": "0\n"}) for policy in ("guard", "strict", "open")),
    Case("incomplete", """
        rule @:
            output: "@/d/a", "@/d/b", directory("@/d")
            shell: "echo {config[version]} > {output[0]}; [ {config[version]} = 2 ] || echo > {output[1]}"
        """, outcome="failed", says=("did not write incomplete/d/b",),
        check=lambda forge, _: (forge.directory / "incomplete/d/a").read_text() == "1\n"),
    Case("lost", """
        rule @:
            output: "@/out", directory("@/d")
            shell: "echo > $TMPDIR/x; ln -s $TMPDIR/x {output[0]}; mkdir {output[1]}; ln -s ../out {output[1]}/inner; ln -s $TMPDIR/x {output[1]}/outer"
        """, outcome="failed", says=("lost/out is a link to ", "lost/d/outer is a link to ", "which goes with the job")),
    *(Case(name, f"""
        rule @:
            output: {output}, "@/b"
            shell: "[ {{config[version]}} = 1 ] || {{{{ mkdir @/dir; : > @/empty; ln -s {target} @/a; }}}}; echo {{config[version]}} | tee @/b > @/side; "
                   "[ -L @/a ] || {good}"
        """, outcome="failed", says=(f"{name}/a is {words}",),
        check=_first_version(name))
      for name, output, target, good, words in (
          ("nowhere", '"@/a"', "none", "echo > @/a", "a link to none, which would not exist"),
          ("to_directory", '"@/a"', "dir", "echo > @/a", "a link to a directory, but the rule does not say directory()"),
          ("to_file", 'directory("@/a")', "b", "mkdir @/a", "a link to a file, but the rule says directory()"),
          ("to_empty", 'ensure("@/a", non_empty=True)', "empty", "echo > @/a", "empty, but the rule says ensure(non_empty=True)"),
          ("to_other", 'ensure("@/a", sha256="01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b")', "b", "echo > @/a", "not what ensure() says"))),
    Case("shadowed", """
        rule @:
            output: "@/good", "@/bad", "@/own"
            shadow: "minimal"
            shell: "echo > {output[2]}; ln -s own {output[0]}; echo > @/side; ln -s side {output[1]}"
        """, outcome="failed", says=("shadowed/bad is a link to side, which would not exist outside of the shadow directory",)),
    Case("piped", """
        rule @_out:
            output: pipe("@/{name}.pipe")
            resources: forge_files="strict"
            shell: "echo {config[version]} > {output}"
        rule @:
            input: "@/a.pipe"
            output: "@/out"
            resources: forge_files="strict"
            shell: "cat {input} > {output}"
        """),
    Case("relinked", """
        rule @:
            output: "@/a"
            resources: forge_files="strict"
            shell: "echo {config[version]} > @/real; ln -s real {output}"
        """),
    Case("occupied", """
        rule @:
            output: "@/a", touch("@/b"), directory("@/c"), "@/d"
            shell: "mkdir @/c; echo > @/d; echo > @/a"
        """, before={"a/users": "x\n", "b/users": "x\n"}, outcome="failed",
        says=("occupied/a is to be a file, but a directory with files is at its place", "occupied/b is to be a file"),
        check=lambda forge, _: sorted(path.name for path in (forge.directory / "occupied").rglob("*")) == ["a", "b", "users", "users"]),
    Case("untouched", """
        rule @:
            output: touch("@/a"), touch("@/b"), directory("@/d"), touch("@/d/c"), "@/seen"
            shell: "mkdir -p @/d; ls @ > @/seen; [ {config[version]} = 2 ] || for f in a d/c; do echo old > @/$f; done"
        """),
    Case("private", """
        rule @:
            output: "@/out"
            shell: "mkdir -p .snakemake/mine .snakemake/locks; echo > .snakemake/mine/x; echo > {output}"
        """, says=(".snakemake/mine (in Snakemake's own directory) cannot be kept",)),
    Case("sheltered", """
        rule @:
            input: "@/in"
            output: "@/out"
            shadow: "minimal"
            resources: forge_files="strict", forge_run_blocks="new"
            run: open(output[0], "w").write(open(input[0]).read())
        """, before={"in": "x"}),
    Case("shallow", """
        rule @:
            input: "@/in"
            output: "@/out", directory("@/d"), os.path.abspath("@/absolute")
            log: "@/x.log"
            benchmark: "@/x.tsv"
            shadow: "shallow"
            shell: "mkdir {output[1]}; cp {input} {output[0]}; cp {input} {output[1]}/f; ls {output[1]} > {output[2]}; pwd -P > shallow.junk; echo log > {log}"
        """, before={"in": "x"}, differs=(r"\.tsv$",), check=lambda _, attempts: not any(a["notes"] for a in attempts)),
    Case("late", """
        rule @:
            output: directory("@/d")
            shell: "mkdir {output}; for i in 1 2; do (sleep 0.$i; echo > {output}/$i) & done; exit 0"
        """),
    Case("never", """
        rule @:
            output: directory("@/d")
            log: "@/d/x.log"
            shell: "echo half > @/d/half; echo failed > {log}; exit 3"
        """, outcome="failed", check=lambda forge, _: not (forge.directory / "never/d").exists()),
]

# As root, Snakemake itself deletes /dev/stdout before a job that has it as its log.
_DEVICES = """
mount -t tmpfs -o mode=755 dev /mnt
for d in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 /mnt/${d%:*} c 1 ${d#*:}; done
mknod -m 666 /mnt/tty c 5 0; ln -s /proc/self/fd /mnt/fd; ln -s fd/1 /mnt/stdout; ln -s fd/2 /mnt/stderr
mkdir -m 1777 /mnt/shm; mount --move /mnt /dev; exec "$@"
"""
PRIVATE_DEVICES = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _DEVICES, "sh"]

DEVICES = """
rule all:
    input: expand("{name}/out", name=["null", "output", "streams", "opened", "fails"])
rule null:
    output: "null/out"
    log: "/dev/null"
    benchmark: "/dev/null"
    shell: "(echo out; echo err >&2) > {output} 2> {log}"
rule output:
    output: "output/out", "/dev/null"
    shell: "echo out | tee {output}"
rule streams:
    input: "/dev/zero"
    output: "streams/out"
    log: out="/dev/stdout", err="/dev/stderr", fd="/dev/fd/2"
    shell: "head -c 3 {input} > {output}; echo one > {log.out}; echo two > {log.err}; echo three > {log.fd}"
rule opened:
    output: "opened/out"
    log: "/dev/stderr", "opened/log"
    resources: forge_files="open"
    shell: "echo out > {output}; echo log > {log[1]}; echo err > {log[0]}"
rule fails:
    output: "fails/out"
    log: "/dev/null"
    shell: "echo > {output}; ls none 2> {log}"
"""


@pytest.fixture(scope="module", params=USERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both.run(tmp_path_factory.mktemp("outputs"), CASES, user=request.param, versions=("version=1", "version=2"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_files_are_those_of_local(both: Both, case: Case) -> None:
    both.check(case)


def test_a_shadow_directory_that_cannot_be_made_fails_its_job_alone(tmp_path: Path) -> None:
    write_workflow(tmp_path, """
        rule all:
            input: "a", "b"
        rule a:
            input: "directory"
            output: "a"
            log: "logs/a"
            shadow: "copy-minimal"
            shell: "echo > {output}"
        rule b:
            output: "b"
            shell: "echo > {output}"
        """)
    (tmp_path / "directory").mkdir()
    result = run(tmp_path, "-j1", "-k")
    assert result.code == 1 and "its shadow directory cannot be made: [Errno 21]" in result.output, result.output
    assert (tmp_path / "b").exists() and os.listdir(tmp_path / ".snakemake/shadow") == []


@pytest.mark.parametrize("user", USERS)
def test_devices_as_logs_and_outputs(tmp_path: Path, user: str) -> None:
    (tmp_path / "Snakefile").write_text(DEVICES)
    before = ordinary.given_to(user, tmp_path) or (PRIVATE_DEVICES if user == "root" else [])
    watched = [*before, "sh", "-c", '"$@"; code=$?; stat -c %F /dev/null; find /dev -maxdepth 1 -name "std*" -type f; ls -A /dev; exit $code', "sh"]
    result = run(tmp_path, "-j4", "-k", before=watched)
    devices = result.output.partition("character special file\n")[2].split()
    assert {"null", "zero", "shm", "stderr", "stdout"} <= set(devices) and ".forge-staging" not in devices, result.output
    assert {a["rule"]: a["outcome"] for a in result.attempts()} == {
        "null": "succeeded", "output": "succeeded", "streams": "succeeded", "opened": "succeeded", "fails": "failed",
    }, result.output
    assert [(tmp_path / name / "out").read_text() for name in ("null", "output", "streams")] == ["out\n", "out\n", "\0" * 3]
    streams = next(Path(a["directory"]) for a in result.attempts() if a["rule"] == "streams")
    assert (streams / "stdout.log").read_text() == "one\n"
    assert (streams / "stderr.log").read_text() == "two\nthree\n"


@pytest.mark.parametrize("user", USERS)
def test_scripts_that_are_to_stay(tmp_path: Path, user: str) -> None:
    """``--skip-script-cleanup`` keeps the scripts of successful and failed jobs."""
    names = {}
    for executor in ("local", "forge"):
        directory = tmp_path / executor
        write_workflow(directory, """
            rule good:
                output: "good"
                script: "good.py"
            rule bad:
                output: "bad"
                script: "bad.py"
            """)
        (directory / "good.py").write_text("open(snakemake.output[0], 'w').write('x')\n")
        (directory / "bad.py").write_text("raise SystemExit(3)\n")
        before = ordinary.given_to(user, tmp_path)
        run(directory, "-j2", "-k", "--skip-script-cleanup", "good", "bad", executor=executor, before=before)
        names[executor] = sorted(path.name.partition(".")[2] for path in (directory / ".snakemake/scripts").iterdir())
    assert names["forge"] == names["local"] == ["bad.py", "good.py"]
