"""Jobs of real workflows on a real cluster: their resources, their ends, and failures of Slurm itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from snakemake_executor_plugin_forge.backends.slurm.adoption import run_of
from snakemake_executor_plugin_forge.backends.slurm.client import SlurmClient
from snakemake_executor_plugin_forge.backends.slurm.states import SlurmState
from tests.conftest import DEADLINE, FORGE, Result, command, write_workflow
from tests.integration.test_resume import on_an_overlay
from tests.killer import environment
from tests.slurm.cluster import Cluster, Shape

pytestmark = pytest.mark.host


@dataclass
class Session:
    """A Snakemake on a cluster."""

    cluster: Cluster
    directory: Path
    process: subprocess.Popen[str] | None = None

    def start(self, text: str, *arguments: str, fault: str = "") -> None:
        """Start Snakemake. Files that its jobs write to the directory ``signs`` are visible while they run."""
        write_workflow(self.directory, text)
        (self.directory / "signs").mkdir(exist_ok=True)
        (self.directory / "forge.yaml").write_text(
            "version: 1\ndefaults: {runtime: signing}\n"
            f"runtimes:\n  signing: {{host: true, paths: {{write: ['{self.directory}/signs']}}}}\n")
        self.execute(command("forge", "--forge-backend", "slurm", "-j", "500", "--keep-going", *arguments),
                     environment(fault) if fault else {})

    def execute(self, words: list[str], variables: dict[str, str]) -> None:
        """Start Snakemake, or a command that becomes Snakemake."""
        with (self.directory / "snakemake.out").open("w") as out:
            self.process = subprocess.Popen(words, cwd=self.directory, env=self.cluster.environment | variables, stdout=out,
                                            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace")

    def kill(self) -> None:
        """End Snakemake at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def finish(self) -> Result:
        """Wait for Snakemake's end."""
        assert self.process is not None
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.fail(f"it was still running after {DEADLINE} s")
        return Result(code, self.output(), self.directory)

    def fail(self, why: str) -> NoReturn:
        """Kill Snakemake, and fail with its output and Slurm's logs."""
        self.kill()
        pytest.fail(f"{why}:\n{self.output()}\n{self.cluster.queue()}\n{self.cluster.logs()}", pytrace=False)

    def output(self) -> str:
        """Snakemake's output so far."""
        return (self.directory / "snakemake.out").read_text(errors="replace")

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"it did not happen within {DEADLINE} s")
            time.sleep(0.05)

    def wait_file(self, name: str) -> str:
        """Wait for a file with content; return it."""
        path = self.directory / name
        self.wait(lambda: path.exists() and path.read_text())
        return path.read_text()


@pytest.fixture
def session(cluster: Cluster, workdir: Path) -> Session:
    return Session(cluster, workdir)


def held(cluster: Cluster) -> list[str]:
    """The ids of the jobs that wait for their release."""
    jobs = map(str.split, cluster.run("squeue", "-h", "-o", "%A %r").stdout.splitlines())
    return [number for number, *reason in jobs if "Held" in "".join(reason)]


def by_rule(result: Result) -> dict[str, dict[str, Any]]:
    return {attempt["rule"]: attempt for attempt in result.attempts()}


KINDS = """
    localrules: all, here, refused
    rule all:
        input: expand("{n}.many", n=range(12)), "py.txt", "here.txt", "shadow.txt", "memory.txt", "asks.txt", "group.txt", "grows.txt"
    rule many:
        output: "{n}.many"
        shell: "echo $SLURM_JOB_ID ${{SLURM_ARRAY_JOB_ID:-alone}} $TMPDIR {resources.tmpdir} > {output}; test -w $TMPDIR"
    rule py:
        output: "py.txt"
        run:
            import os
            with open(output[0], "w") as file:
                print(os.environ["SLURM_JOB_ID"], os.environ["TMPDIR"], resources.tmpdir, file=file)
    rule here:
        output: "here.txt"
        shell: "echo ${{SLURM_JOB_ID:-on this host}} > {output}"
    rule shadow:
        input: "here.txt"
        output: "shadow.txt"
        shadow: "minimal"
        shell: "pwd > {output}; cat {input} >> {output}"
    rule memory:
        output: "memory.txt"
        resources: mem_mb=300, slurm_extra="--exclusive"
        shell: "cat /sys/fs/cgroup/memory$(grep :memory: /proc/self/cgroup | cut -d: -f3)/memory.limit_in_bytes"
               " > {output}"
    rule asks:
        output: "asks.txt"
        threads: 2
        resources: runtime=7, slurm_partition="main", constraint="", cpus_per_task=3, mem_mb_per_cpu=111
        shell: "echo $FORGE_CPUS $FORGE_MEMORY_BYTES $SLURM_CPUS_PER_TASK $SLURM_MEM_PER_CPU"
               " $SLURM_JOB_ID > {output}"
    rule grows:
        output: "grows.txt"
        resources: mem_mb=80
        shell: "python3 -c 'x = bytearray(120 << 20)'; echo $FORGE_MEMORY_BYTES > {output}"
    rule group_a:
        output: pipe("fifo")
        shell: "echo through > {output}"
    rule group_b:
        input: "fifo"
        output: "group.txt"
        shell: "cat {input} > {output}"
    localrules: group_a, group_b
"""


def test_kinds_of_rules(session: Session) -> None:
    session.start(KINDS, "--forge-oom-retries", "2")
    done = session.finish()
    assert done.code == 0, done.output
    assert [attempt["outcome"] for attempt in done.attempts("grows")] == ["oom", "succeeded"]
    assert done.read("grows.txt") == f"{160 << 20}\n"
    many = [done.read(f"{number}.many").split() for number in range(12)]
    assert len({words[0] for words in many}) == 12
    assert len({words[1] for words in many}) < 6, "jobs that are ready together are one array; a busy Snakemake may need a second"
    assert all(words[2] == words[3] != "/tmp" for words in many)
    job, variable, resource = done.read("py.txt").split()
    assert job.isdigit()
    assert variable == resource
    assert done.read("here.txt") == "on this host\n"
    assert ".snakemake/shadow" in done.read("shadow.txt")
    assert "on this host" in done.read("shadow.txt")
    *asked, job = done.read("asks.txt").split()
    assert asked == ["3", str(333 * 2**20), "3", "111"]
    assert session.cluster.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%l").stdout.strip() == "7:00"
    assert int(done.read("memory.txt")) == 300 * 2**20
    assert done.read("group.txt") == "through\n"
    found = by_rule(done)
    assert {rule: attempt["backend"] for rule, attempt in found.items()} == {
        "many": "slurm", "py": "slurm", "here": "local", "shadow": "slurm", "memory": "slurm", "asks": "slurm",
        "grows": "slurm", "group_a": "local", "group_b": "local"}
    assert found["many"]["how"] == "launcher"
    assert found["py"]["how"].startswith("inner snakemake")
    assert found["asks"]["limits"]["memory_bytes"] == 333 * 2**20
    assert "slurm-cgroup" in found["many"]["isolation"]["mechanisms"]
    assert "pid-ns" in found["many"]["isolation"]["mechanisms"]
    text = (session.directory / "snakemake.out").read_text()
    assert "backend slurm of Slurm 22.05" in text
    assert not list(session.directory.glob(".snakemake/forge/runs/*/slurm/b*/*/batch*[!.]out"))
    said = "".join(path.read_text() for path in session.directory.glob(".snakemake/forge/runs/*/slurm/b*/*/batch*.out"))
    assert [line for line in said.splitlines() if not line.startswith("slurmstepd: ")] == []  # Slurm's own messages depend on its threads


ENDS = """
    rule all:
        input: "ok.txt", "oom.txt", "child.txt", "late.txt", "nowhere.txt", "huge.txt", "admin.txt", "slurmlate.txt",
               "soft.txt"
    rule ok:
        output: "ok.txt"
        shell: "echo fine > {output}"
    rule oom:
        output: "oom.txt"
        resources: mem_mb=60
        shell: "python3 -c 'x = bytearray(400 << 20)'; echo done > {output}"
    rule child:
        output: "child.txt"
        resources: mem_mb=60
        shell: "python3 -c 'x = bytearray(400 << 20)' || true; echo done > {output}"
    rule late:
        output: "late.txt"
        shell: "sleep 1000"
    rule nowhere:
        output: "nowhere.txt"
        resources: slurm_partition="nowhere"
        shell: "touch {output}"
    rule huge:
        output: "huge.txt"
        resources: mem_mb=99999
        shell: "touch {output}"
    rule admin:
        output: "admin.txt"
        resources: runtime=5
        shell: "echo ${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}} > signs/admin.id; echo half > {output}; sleep 1000"
    rule slurmlate:
        output: "slurmlate.txt"
        resources: runtime=5
        shell: "echo ${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}} > signs/slurmlate.id; sleep 1000"
    rule soft:
        output: "soft.txt"
        shell: "setsid sleep 1000 & until grep -qa ^sleep /proc/$!/cmdline; do sleep 0.1; done; echo left > {output}"
"""


def test_every_end_has_its_verdict(session: Session) -> None:
    session.start(ENDS, "--forge-wall", "8s")
    session.cluster.run("scancel", session.wait_file("signs/admin.id").strip())  # such as 1_2: 1 would be the whole array
    session.cluster.run("scontrol", "update", f"jobid={session.wait_file('signs/slurmlate.id').strip()}", "EndTime=now+1")
    done = session.finish()
    assert done.code != 0
    found = by_rule(done)
    outcomes = {rule: attempt["outcome"] for rule, attempt in found.items()}
    assert outcomes == {"ok": "succeeded", "oom": "oom", "child": "oom", "late": "timeout", "nowhere": "failed",
                        "huge": "failed", "admin": "cancelled", "slurmlate": "timeout", "soft": "succeeded"}, done.output
    assert "Invalid partition name" in found["nowhere"]["reason"]
    assert "Requested node configuration is not available" in found["huge"]["reason"]
    assert "the Slurm job reached its memory limit of 60.0 MiB" in found["oom"]["reason"]
    assert "raise the rule's mem_mb" in found["child"]["reason"]
    assert "scancel" in found["admin"]["reason"]
    assert "time limit of the Slurm job" in found["slurmlate"]["reason"]
    assert any("sleep 1000" in note for note in found["soft"]["notes"])
    assert not (session.directory / "admin.txt").exists()
    for rule in ("nowhere", "late", "admin", "oom"):
        assert found[rule]["reason"] in done.output


def test_outputs_are_staged_on_nodes(session: Session) -> None:
    """The previous versions stay until the job succeeds, and for good if it fails."""
    for name in "abcd":
        (session.directory / f"{name}.txt").write_text("old\n")
    (session.directory / "in.txt").write_text("input\n")
    session.start("""
        rule all:
            input: "a.txt", "b.txt", "c.txt", "d.txt"
        rule a:
            input: "in.txt"
            output: "a.txt"
            log: "a.log"
            shell: "[ ! -e {output} ]; echo half > {output}; echo logged > {log}; touch signs/half;"
                   "while [ ! -e signs/go ]; do sleep 0.1; done; echo whole > {output}; touch Rplots.pdf"
        rule b:
            input: "in.txt"
            output: "b.txt"
            log: "b.log"
            shell: "echo half > {output}; echo logged > {log}; exit 3"
        rule c:
            input: "in.txt"
            output: "c.txt"
            shadow: "minimal"
            run:
                with open(output[0], "w") as file:
                    print(open(input[0]).read() + "from a shadow directory", file=file)
        rule d:
            input: "in.txt"
            output: "d.txt"
            shell: "echo x >> {input}; echo half > {output}"
    """, "--forceall")
    session.wait((session.directory / "signs/half").exists)
    assert (session.directory / "a.txt").read_text() == "old\n"
    (session.directory / "signs" / "go").touch()
    done = session.finish()
    assert done.code != 0
    found = by_rule(done)
    assert {rule: a["outcome"] for rule, a in found.items()} == {
        "a": "succeeded", "b": "failed", "c": "succeeded", "d": "failed"}, done.output
    assert [done.read(f"{name}.txt") for name in "abd"] == ["whole\n", "old\n", "old\n"]
    assert done.read("c.txt") == "input\nfrom a shadow directory\n"
    assert found["c"]["undeclared_writes"] == []
    assert found["a"]["undeclared_writes"] == ["Rplots.pdf"]
    assert (done.read("a.log"), done.read("b.log"), done.read("in.txt")) == ("logged\n", "logged\n", "input\n")
    for attempt in found.values():
        assert attempt["isolation"]["files"] == "guard"
        assert "layers" in attempt["isolation"]["mechanisms"]
        assert "files" not in attempt["isolation"]["not_enforced"]
    assert not any(path.is_file() for path in session.directory.glob(".snakemake/incomplete/**/*"))
    assert not list(session.directory.glob(".snakemake/forge/staging/*"))


def test_a_node_that_dies_while_it_publishes(session: Session) -> None:
    """The node dies before, between or after the renames: either all outputs are new, or all are old."""
    rules = "".join(f"""
        rule {rule}:
            output: "{rule}1.txt", "{rule}2.txt", "{rule}3.txt"
            shell: "for name in {{output}}; do echo new > $name; done"
    """ for rule in ("before", "between", "after"))
    names = {rule: [f"{rule}{number}.txt" for number in (1, 2, 3)] for rule in ("before", "between", "after")}
    for name in (name for several in names.values() for name in several):
        (session.directory / name).write_text("old\n")
    session.start(f"""
        rule all:
            input: {", ".join(repr(name) for several in names.values() for name in several)}
{rules}""", "--forceall", fault="self:synced:before,self:renamed:between,self:written:after")
    done = session.finish()
    found = by_rule(done)
    assert {rule: a["outcome"] for rule, a in found.items()} == {
        "before": "lost", "between": "lost", "after": "succeeded"}, done.output
    assert "all of them are in their places" in done.output
    assert [done.read(name) for name in names["before"]] == ["old\n"] * 3
    assert [done.read(name) for name in (*names["between"], *names["after"])] == ["new\n"] * 6
    assert not list(session.directory.glob(".snakemake/forge/staging/*"))


def test_ctrl_c_cancels_what_this_run_submitted_and_nothing_else(session: Session) -> None:
    other = session.cluster.run("sbatch", "--parsable", "--job-name=forge-x.b1", "--output=/dev/null", "--wrap",
                                "sleep 1000").stdout.strip()
    session.start("""
        rule all:
            input: expand("{n}.txt", n=range(3)), "waits.txt"
        rule sleeper:
            output: "{n}.txt"
            shell: "touch signs/begun.{wildcards.n}; echo half > {output}; sleep 1000"
        rule waits:
            output: "waits.txt"
            resources: slurm_extra="--begin=now+1hour"
            shell: "touch {output}"
    """)
    session.wait(lambda: len(list(session.directory.glob("signs/begun.*"))) == 3)
    assert session.process is not None
    session.process.send_signal(signal.SIGINT)
    done = session.finish()
    left = session.cluster.run("squeue", "-h", "-o", "%A").stdout.split()
    session.cluster.run("scancel", other)
    assert left == [other], done.output
    outcomes = [attempt["outcome"] for attempt in done.attempts()]
    assert outcomes == ["cancelled"] * len(outcomes)
    assert len(outcomes) >= 3
    assert not list(session.directory.glob("?.txt"))


ORPHANS = """
    rule all:
        input: "detachable.txt", "ended.txt", "differs.txt", "waits.txt", "in_place.txt" UNWANTED
    rule detachable:
        output: "detachable.txt"
        shell: "echo $SLURM_JOB_ID >> signs/begun.detachable; while [ ! -e signs/go ]; do sleep 0.1; done; echo on > {output}"
    rule ended:
        output: "ended.txt"
        shell: "echo $SLURM_JOB_ID >> signs/begun.ended; while [ ! -e signs/end ]; do sleep 0.1; done; echo end > {output}"
    rule differs:
        output: "differs.txt"
        params: "PARAM"
        shell: "echo {params} >> signs/begun.differs; [ {params} = new ] || sleep 1000; echo {params} > {output}"
    rule in_place:
        output: "in_place.txt"
        resources: forge_files="open"
        shell: "echo $SLURM_JOB_ID >> signs/begun.in_place; echo half > {output}; [ -e signs/end ] || sleep 1000; echo in > {output}"
    rule unwanted:
        output: "unwanted.txt"
        shell: "echo $SLURM_JOB_ID >> signs/begun.unwanted; sleep 1000; echo never > {output}"
    rule waits:
        output: "waits.txt"
        resources: slurm_extra="--hold"
        shell: "echo $SLURM_JOB_ID >> signs/begun.waits; echo waited > {output}"
"""


def test_jobs_of_a_killed_snakemake_are_taken_over(session: Session) -> None:
    """The run waits for unchanged jobs, and cancels changed jobs and jobs whose outputs are no longer requested.

    A job that writes in place is cancelled before its rule runs again.
    """
    directory, signs = session.directory, session.directory / "signs"
    (directory / "detachable.txt").write_text("old")
    session.start(ORPHANS.replace("PARAM", "old").replace("UNWANTED", ', "unwanted.txt"'), "--forceall")
    for rule in ("detachable", "ended", "differs", "unwanted", "in_place"):
        session.wait_file(f"signs/begun.{rule}")
    session.wait(lambda: held(session.cluster))
    session.kill()
    (old,) = directory.glob(".snakemake/forge/runs/*")
    (signs / "end").touch()
    session.wait((directory / "ended.txt").exists)
    session.wait(lambda: list(old.glob("slurm/results/*.json")))
    write_workflow(directory, ORPHANS.replace("PARAM", "new").replace("UNWANTED", ""))
    session.execute([*FORGE, "resume"], {})
    session.wait(lambda: "is cancelled" in session.output())
    assert (directory / "detachable.txt").read_text() == "old"
    session.cluster.run("scontrol", "release", *held(session.cluster))
    (signs / "go").touch()
    done = session.finish()
    assert done.code == 0, done.output
    assert "has left 4 Slurm job(s) that wait or run and the verdicts of 1 that ended since" in done.output
    assert "rule differs: the Slurm job that run" in done.output
    assert "its code or params have changed" in done.output
    assert "rule unwanted: the Slurm job that run" in done.output
    assert "an earlier run in this directory was killed and has left 1 Slurm job(s) that cannot be adopted" in done.output
    assert [done.read(f"{name}.txt") for name in ("detachable", "ended", "differs", "waits", "in_place")] == [
        "on\n", "end\n", "new\n", "waited\n", "in\n"]
    first, _ = (signs / "begun.in_place").read_text().split()
    assert first not in session.cluster.run("squeue", "-h", "-t", "running,pending", "-o", "%A").stdout.split()
    assert sum("forbidden by run" in path.read_text() for path in old.glob("slurm/b*/*/taken")) == 3
    assert (signs / "begun.differs").read_text() == "old\nnew\n"
    assert [len((signs / f"begun.{rule}").read_text().split()) for rule in ("detachable", "ended", "waits")] == [1, 1, 1]
    new = max(directory.glob(".snakemake/forge/runs/*"))
    found = {a["rule"]: a for a in done.attempts() if a["outcome"] == "succeeded"}
    again = ("differs", "in_place")
    for rule, attempt in found.items():
        verdict = json.loads(Path(attempt["directory"], "verdict.json").read_text())
        assert verdict.get("adopted") == (None if rule in again else new.name), rule
        assert Path(attempt["directory"]).parent == (new if rule in again else old), rule
    assert len(list(new.glob("slurm/b*/*"))) == 2
    assert (old / "slurm" / "closed").exists()
    assert not (directory / "unwanted.txt").exists()
    session.cluster.await_idle()
    assert not list(directory.glob(".snakemake/forge/staging/*"))
    session.start(ORPHANS.replace("PARAM", "new").replace("UNWANTED", ""), "--dry-run")
    idle = session.finish()
    assert idle.code == 0, idle.output
    assert "Nothing to be done" in idle.output


FORGETFUL = """#!/bin/sh
if mkdir {directory}/once 2>/dev/null; then
    printf '#!/bin/sh\\nexit 0\\n' | {sbatch} "$@" --output=/dev/null
else
    exec {sbatch} "$@"
fi
"""


def test_a_controller_that_is_down_for_a_while(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before that, Slurm reports three tasks as COMPLETED without starting their batch scripts, as 22.05 once did."""
    session.directory.mkdir(exist_ok=True)
    front = session.directory / "bin" / "sbatch"
    front.parent.mkdir()
    path = session.cluster.environment["PATH"]
    front.write_text(FORGETFUL.format(directory=session.directory, sbatch=shutil.which("sbatch", path=path)))
    front.chmod(0o755)
    monkeypatch.setitem(session.cluster.environment, "PATH", f"{front.parent}:{path}")
    session.start("""
        rule all:
            input: expand("{n}.after", n=range(3))
        rule before:
            output: "{n}.before"
            shell: "echo > signs/begun.{wildcards.n}; while [ ! -e signs/go ]; do sleep 0.1; done; touch {output}"
        rule after:
            input: "{n}.before"
            output: "{n}.after"
            shell: "touch {output}"
    """)
    session.wait(lambda: len(list(session.directory.glob("signs/begun.*"))) == 3)
    assert (session.directory / "once").is_dir()
    session.cluster.end("slurmctld")  # an orderly end: after SIGKILL the controller may run jobs twice and drain its nodes
    (session.directory / "signs" / "go").touch()
    session.wait(lambda: "3 of 7 steps" in session.output())  # known without the controller's help
    session.wait(lambda: "does not answer" in session.output())
    assert session.process is not None
    assert session.process.poll() is None
    session.cluster.start_controller()
    done = session.finish()
    assert done.code == 0, done.output
    assert "answers again" in done.output
    assert [attempt["outcome"] for attempt in done.attempts()] == ["succeeded"] * 6
    session.cluster.await_idle()


def test_a_controller_that_forgets_its_jobs(session: Session) -> None:
    """The controller loses its state: Forge submits the waiting job again."""
    session.start("""
        rule all:
            input: "waits.txt"
        rule waits:
            output: "waits.txt"
            resources: slurm_extra="--hold"
            shell: "echo $SLURM_JOB_ID > {output}"
    """)
    session.wait(lambda: held(session.cluster))
    session.cluster.end("slurmctld", signal.SIGKILL)
    for path in (session.cluster.root / "state").iterdir():
        if path.is_file() and path.name.startswith("job"):
            path.unlink()
    session.cluster.start_controller()
    session.wait(lambda: held(session.cluster))
    session.cluster.run("scontrol", "release", *held(session.cluster))
    done = session.finish()
    assert done.code == 0, done.output
    assert done.attempt("waits")["outcome"] == "succeeded"


THREE = """
    rule all:
        input: "a.txt", "b.txt", "c.txt"
    rule a:
        output: "a.txt", directory("many")
        log: "a.log"
        shell: "[ ! -e {output[0]} ]; echo new > {output[0]}; mkdir {output[1]}; touch {output[1]}/x; echo logged > {log}"
    rule b:
        output: "b.txt"
        shell: "echo half > {output}; exit 3"
    rule c:
        output: "c.txt"
        run:
            with open(output[0], "w") as file:
                print("made", file=file)
"""


def test_a_node_that_cannot_stage(workdir: Path) -> None:
    """Jobs run with the isolation that the node has, which is on record; with --forge-require they fail and change nothing."""
    with Cluster(Shape(nodes=1, bare=True)) as cluster:
        session = Session(cluster, workdir)
        for name in "abc":
            (workdir / f"{name}.txt").write_text("old")
        session.start(THREE, "--forge-require", "full", "--forceall")
        done = session.finish()
        assert done.code != 0
        for attempt in done.attempts():
            assert attempt["outcome"] == "failed"
            assert "this host does not give Forge" in attempt["reason"], done.output
            assert f"(node {os.uname().nodename})" in attempt["reason"]
        assert [(workdir / f"{name}.txt").read_text() for name in "abc"] == ["old"] * 3
        session.start(THREE, "--forceall")
        done = session.finish()
        assert done.code != 0
        found = {a["rule"]: a for a in done.attempts()}
        assert {rule: a["outcome"] for rule, a in found.items()} == {"a": "succeeded", "b": "failed", "c": "succeeded"}
        for attempt in found.values():
            assert attempt["isolation"]["files"] == "open"
            assert "files" in attempt["isolation"]["not_enforced"]
        assert (done.read("a.txt"), done.read("a.log"), done.read("c.txt")) == ("new\n", "logged\n", "made\n")
        assert not (workdir / "b.txt").exists(), "it was half-written in place, so Forge removes it as Snakemake does"
        assert not any(path.is_file() for path in workdir.glob(".snakemake/incomplete/**/*"))


def test_a_shared_file_system_that_cannot_hold_layers(workdir: Path) -> None:
    """An overlay, like NFS and Lustre, cannot be an upper layer: outputs are staged on the node's disk."""
    with on_an_overlay(workdir) as shared, Cluster(Shape(nodes=1)) as cluster:
        session = Session(cluster, shared)
        for name in "abc":
            (session.directory / f"{name}.txt").write_text("old\n")
        session.start(THREE, "--forceall")
        done = session.finish()
        found = by_rule(done)
        assert {rule: a["outcome"] for rule, a in found.items()} == {"a": "succeeded", "b": "failed", "c": "succeeded"}, done.output
        outputs = [done.read(name) for name in ("a.txt", "many/x", "a.log", "b.txt", "c.txt")]
        assert outputs == ["new\n", "", "logged\n", "old\n", "made\n"]
        for attempt in found.values():
            assert attempt["isolation"]["files"] == "guard"
            spec = json.loads(Path(attempt["directory"], "spec.json").read_text())
            assert spec["sandbox"]["files"]["apart"]
        assert not list(session.directory.glob(".forge-copy*"))
        assert not list(session.directory.glob(".snakemake/forge/staging/*"))


def test_a_node_that_dies_and_a_copy_that_lives_on(workdir: Path) -> None:
    """Split brain: a killed slurmd's job continues; Slurm runs it again elsewhere, and only that copy counts."""
    with Cluster(Shape(node_timeout_seconds=3)) as cluster:
        session = Session(cluster, workdir)
        session.start("""
            rule all:
                input: "a.txt"
            rule a:
                output: "a.txt"
                shell: "echo $SLURMD_NODENAME >> signs/begun; while [ ! -e signs/go.$SLURMD_NODENAME ]; do sleep 0.1; done;"
                       "echo $SLURMD_NODENAME > {output}; echo $SLURMD_NODENAME >> signs/ended"
        """)
        first = session.wait_file("signs/begun").strip()
        (second,) = set(cluster.nodes) - {first}
        cluster.end(first, signal.SIGKILL)
        session.wait(lambda: second in (workdir / "signs" / "begun").read_text().split())
        (workdir / "signs" / f"go.{first}").touch()  # the old copy ends first, with success
        session.wait_file("signs/ended")
        (stale,) = workdir.glob(".snakemake/forge/runs/*/00001-a")
        session.wait((stale / "verdict.json").exists)
        time.sleep(1)
        assert session.process is not None
        assert session.process.poll() is None, session.output()
        (workdir / "signs" / f"go.{second}").touch()
        done = session.finish()
        assert done.code == 0, done.output
        verdicts = {Path(a["directory"]).name: (a["outcome"], a["reason"]) for a in done.attempts("a")}
        assert verdicts["00001-a.copy2"][0] == "succeeded"
        assert verdicts["00001-a"][0] == "lost"
        assert "may not publish what it has written: a later copy" in verdicts["00001-a"][1]
        assert "by itself it was: succeeded" in verdicts["00001-a"][1]
        assert (workdir / "a.txt").read_text().strip() == second


@pytest.fixture(scope="module")
def accounted() -> Iterator[Cluster]:
    """A cluster with accounting, whose controller soon forgets ended jobs; a user may have at most two jobs."""
    with Cluster(Shape(nodes=1, accounting=True, min_job_age_seconds=2)) as cluster:
        for words in ("add account lab", "add user root account=lab", "modify user root set DefaultAccount=lab", "modify qos normal set MaxSubmitJobsPerUser=2"):
            cluster.run("sacctmgr", "-i", *words.split())
        yield cluster


def test_accounting_knows_what_the_controller_has_forgotten(accounted: Cluster, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forge's process on the node is killed, and the controller soon forgets the job: only sacct knows its end."""
    cluster = accounted
    session = Session(cluster, workdir)
    begin = time.monotonic()
    session.start("""
        rule all:
            input: "killed.txt", "fine.txt"
        rule killed:
            output: "killed.txt"
            shell: "echo begun > signs/begun; python3 -c 'import time; x = bytearray(80 << 20); time.sleep(1000)'"
        rule fine:
            output: "fine.txt"
            shell: "sleep 1; touch {output}"
    """)
    session.wait_file("signs/begun")
    time.sleep(3)  # until Slurm has sampled its memory
    (attempt,) = {a for a in workdir.glob(".snakemake/forge/runs/*/slurm/b*/*")
                  if b"killed.txt" in (a / "launch").read_bytes()}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # processes of other users, or just ended
            if str(attempt).encode() in (process / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
    cluster.pause("slurmctld")  # so that Forge does not see the failure before the controller forgets it
    time.sleep(3)
    cluster.resume("slurmctld")
    done = session.finish()
    found = by_rule(done)
    assert found["fine"]["outcome"] == "succeeded"
    assert found["killed"]["outcome"] == "lost", done.output
    assert "Slurm: the batch script failed before Forge could write a verdict" in found["killed"]["reason"]
    assert found["killed"]["usage"]["memory_peak_bytes"] > 80 << 20
    assert found["killed"]["usage"]["cpu_seconds"] > 0
    assert 2 < found["killed"]["seconds"] < time.monotonic() - begin + 2  # Slurm counts whole seconds of the wall clock
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    rows = [row for row in SlurmClient().history(["1", "2"]) if workdir.joinpath(".snakemake/forge/runs", run_of(row.name)).is_dir()]
    assert sorted(str(row.state) for row in rows) == [SlurmState.COMPLETED, SlurmState.FAILED]
    assert SlurmClient().account() == "lab"


@pytest.mark.parametrize("pack", ["off", "2"])
def test_a_full_queue_delays_jobs_and_fails_none(accounted: Cluster, workdir: Path, pack: str) -> None:
    """The QOS admits two jobs of a user; ``auto`` finds the account in the accounting."""
    session = Session(accounted, workdir)
    session.start("""
        rule all:
            input: expand("{n}.txt", n=range(7))
        rule one:
            output: "{n}.txt"
            shell: "echo $SLURM_JOB_ACCOUNT > {output}"
    """, "--forge-slurm-account", "auto", "--forge-slurm-pack", pack)
    done = session.finish()
    assert done.code == 0, done.output
    assert "Slurm takes no more jobs of yours for now (QOSMaxSubmitJobPerUserLimit" in done.output
    assert {done.read(f"{n}.txt") for n in range(7)} == {"lab\n"}
    assert [attempt["outcome"] for attempt in done.attempts()] == ["succeeded"] * 7


PACKED = """
    rule all:
        input: expand("{n}.txt", n=range(24))
    rule short:
        output: "{n}.txt"
        resources: mem_mb=60
        shell: "echo ${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}} >> signs/{wildcards.n}; case {wildcards.n} in 3) exit 3;; 5) python3 -c 'x = bytearray(400 << 20)';;"
               " 7) kill -SEGV $$;; HELD) while [ ! -e signs/go ]; do sleep 0.1; done;; esac; echo $SLURM_JOB_ID > {output}"
"""


def test_short_jobs_share_a_slurm_job(session: Session) -> None:
    """A job's end does not affect the others; Forge resubmits jobs that a cancelled Slurm job has not begun."""
    session.start(PACKED.replace("HELD", "16"), "--forge-slurm-pack", "8", "--forge-slurm-job-prefix", "lab_")
    held = session.wait_file("signs/16").strip()
    names = session.cluster.run("squeue", "-h", "-o", "%j %k").stdout
    assert "lab_forge-" in names, names
    assert " forge short n=" in names
    cancelled = session.cluster.run("scancel", held)  # such as 4_1: a task's plain job id sometimes has no effect
    assert cancelled.returncode == 0, cancelled.stderr
    done = session.finish()
    found = {attempt["wildcards"]["n"]: attempt for attempt in done.attempts()}
    outcomes = {n: attempt["outcome"] for n, attempt in found.items()}
    odd = {"3": "failed", "5": "oom", "7": "failed", "16": "cancelled"}
    assert outcomes == {str(n): "succeeded" for n in range(24)} | odd, done.output
    jobs = [done.read(f"{n}.txt").strip() for n in range(24) if str(n) not in odd]
    assert max(map(jobs.count, jobs)) > 3, "jobs share a Slurm job (fewer than eight if Snakemake is busy)"
    assert {len((session.directory / "signs" / str(n)).read_text().split()) for n in range(24)} == {1}, "no job ran twice"
    assert found["5"]["evidence"]["scope"] == "job"
    assert not list(session.directory.glob(".snakemake/forge/staging/*"))


def test_packs_of_a_killed_snakemake_are_taken_over(session: Session) -> None:
    text = PACKED.replace("HELD", "0").replace("range(24)", "range(8, 16)").replace("n=range(8, 16)", "n=[0, *range(8, 16)]")
    session.start(text, "--forge-slurm-pack", "9")
    session.wait_file("signs/0")
    session.kill()
    (session.directory / "signs" / "go").touch()
    session.execute([*FORGE, "resume"], {})
    done = session.finish()
    assert done.code == 0, done.output
    assert "Slurm job(s) that wait or run" in done.output or "the verdicts of" in done.output
    assert {len((session.directory / "signs" / str(n)).read_text().split()) for n in (0, *range(8, 16))} == {1}, "no job ran twice"


def test_the_variants_workflow_gives_the_same_bytes(cluster: Cluster, workdir: Path) -> None:
    home = Path(__file__).parents[2] / "workflows" / "variants"
    snakemake = command("forge", "--forge-backend", "slurm", "-j", "500", "--snakefile", str(home / "Snakefile"))
    done = subprocess.run(snakemake, cwd=workdir, env=cluster.environment, capture_output=True, text=True, timeout=DEADLINE,
                          check=False)
    assert done.returncode == 0, done.stderr
    checked = subprocess.run([sys.executable, str(home / "check.py"), str(workdir / "results")], capture_output=True,
                             text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    backends = {attempt["backend"] for attempt in Result(0, "", workdir).attempts()}
    assert "slurm" in backends


@pytest.mark.parametrize(("text", "words"), [
    ("""
        rule a:
            output: "a.txt"
            resources: slurm_partiton="main"
            shell: "touch {output}"
    """, ["resource slurm_partiton='main' is not known to Forge. Did you mean slurm_partition?"]),
    ("""
        rule b:
            input: "fifo"
            output: "b.txt"
            shell: "cat {input} > {output}"
        rule a:
            output: pipe("fifo")
            shell: "echo > {output}"
        localrules: a
    """, ["run at the same time (pipe or service), which they can only do on one host", "to localrules"]),
])
def test_bad_requests_are_refused_before_anything_runs(session: Session, text: str, words: list[str]) -> None:
    session.start(text)
    done = session.finish()
    assert done.code != 0
    assert all(word in done.output for word in words), done.output
    assert not list(session.directory.glob(".snakemake/forge/runs/*/slurm/b1"))


def test_no_cluster(workdir: Path) -> None:
    write_workflow(workdir, "rule a:\n    output: 'a.txt'\n    shell: 'touch {output}'\n")
    environment = {**os.environ, "SLURM_CONF": str(workdir / "none.conf")}
    for backend, words in (("slurm", "--forge-backend=slurm"), ("slrum", "Did you mean slurm?")):
        done = subprocess.run(command("forge", "--forge-backend", backend, "-j2"), cwd=workdir, env=environment,
                              capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert done.returncode != 0
        assert words in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr


def test_an_ordinary_user(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A user's job has its own namespaces in Slurm's cgroup, and its scratch on the node's disk."""
    from tests import ordinary
    from tests.slurm import machine

    place = cluster.root / "user"
    write_workflow(place, """
        rule all:
            input: "a.txt", "big.txt"
        rule a:
            output: "a.txt"
            shell: "id -u > {output}; touch $TMPDIR/x; df --output=target $TMPDIR >> {output}"
        rule big:
            output: "big.txt"
            resources: mem_mb=100
            shell: "python3 -c 'x = bytearray(400 << 20)'; touch {output}"
    """)
    ordinary.hand_over(place)
    shell = [*machine.prefix(cluster.root, "client"), *ordinary.prefix(), "sh", "-c",
             'cd "$0" && HOME=$0 && exec "$@"', str(place)]
    snakemake = command("forge", "--forge-backend", "slurm", "-j", "500", "-k", "--forge-scratch-dir", "/var/tmp")
    done = subprocess.run([*shell, *snakemake], cwd=Path(__file__).parents[2], env=cluster.environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE, check=False)
    assert "Elapsed time" in done.stdout, done.stdout
    result = Result(done.returncode, done.stdout, place)
    found = by_rule(result)
    assert found["a"]["outcome"] == "succeeded", done.stdout
    assert found["big"]["outcome"] == "oom", done.stdout
    assert result.read("a.txt").split()[0] == str(ordinary.UID)
    assert {"user-ns", "slurm-cgroup", "layers"} <= set(found["a"]["isolation"]["mechanisms"])
    assert found["a"]["isolation"]["files"] == "guard"
    assert found["a"]["isolation"]["limits"] == "slurm-cgroup"
    assert found["a"]["isolation"]["not_enforced"] == ["cpu"], "this cluster has no ConstrainCores"
    assert "reached its memory limit of 100.0 MiB" in found["big"]["reason"]
    spec = json.loads(Path(found["a"]["directory"], "spec.json").read_text())
    assert spec["scratch_base"].startswith("/var/tmp/forge-")
    assert not list((cluster.root / "local").glob("*/forge-*")), "nothing is left on the nodes' disks"
