"""``--forge-on-disconnect finish``: jobs continue without Snakemake, and the next run adopts the unchanged ones."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_forge.kernel.process_tree import command_name, descendants
from snakemake_executor_plugin_forge.record.identity import start_time
from snakemake_executor_plugin_forge.sandbox.cgroups.base import find
from snakemake_executor_plugin_forge.sandbox.cgroups.ladder import open_run_cgroup
from snakemake_executor_plugin_forge.spec.job import CpuMode, Limits
from snakemake_executor_plugin_forge.staging import pending

from ..conftest import DEADLINE, FORGE, Result, command, ending, forge, residue, run, wait_until, written
from .test_resume import on_an_overlay, prepare, resume, started

pytestmark = pytest.mark.slow

FINISH = ("--forge-on-disconnect", "finish")

# Jobs log their start outside the working directory. Until the file "go" exists, the outputs of slow jobs stay half-written.
HELD = "while [ ! -e {SIDE}/go ]; do sleep 0.05; done"
WORKFLOW = f"""
SIDE = config["side"]
rule all:
    input: "quick.txt", "slow.txt", "python.txt"
rule quick:
    output: "quick.txt"
    shell: "echo quick >> {{SIDE}}/log; echo 1 > {{output}}"
rule slow:
    input: "in.txt"
    output: "slow.txt", "beside.txt"
    shell: "echo slow >> {{SIDE}}/log; echo half > {{output[0]}}; cp {{input}} {{output[1]}}; {HELD}; echo whole > {{output[0]}}"
rule python:
    output: "python.txt"
    run:
        import time
        from pathlib import Path
        with open(SIDE + "/log", "a") as log:
            log.write("python\\n")
        Path(output[0]).write_text("half")
        while not Path(SIDE, "go").exists():
            time.sleep(0.05)
        Path(output[0]).write_text("whole\\n")
"""


@pytest.fixture(autouse=True)
def nothing_goes_on_after_a_failed_test(workdir: Path) -> Iterator[None]:
    """Kill the supervisors that still have entries at the end."""
    yield
    for path in workdir.glob("**/.snakemake/forge/adoptable/[0-9]*"):
        with suppress(OSError, ValueError):
            entry = json.loads(path.read_text())
            if start_time(entry["pid"]) == entry["start_time"]:
                os.kill(entry["pid"], signal.SIGKILL)


def prepared(workdir: Path) -> tuple[Path, Path]:
    """A working directory with the workflow and its input, and the directory beside it."""
    directory = workdir / "work"
    side = prepare(directory, WORKFLOW)
    (directory / "in.txt").write_text("in\n")
    return directory, side


def start(directory: Path, *arguments: str, terminal: int | None = None, pipe: bool = False) -> subprocess.Popen[bytes]:
    side = directory.parent / "side"
    with (side / "output").open("ab") as output:
        return subprocess.Popen(
            command("forge", *(arguments or ("-j3", *FINISH)), "--config", f"side={side}"),
            cwd=directory, stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=subprocess.PIPE if pipe else output, stderr=subprocess.STDOUT, start_new_session=terminal is not None,
        )  # fmt: skip


@contextmanager
def resuming(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run ``snakemake-forge resume`` beside the block; yield it and its output file; wait for its success."""
    said = directory.parent / "side" / "resumed"
    with said.open("wb") as output:
        again = subprocess.Popen([*FORGE, "resume"], cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    with ending(again):
        yield again, said
        assert again.wait(DEADLINE) == 0, said.read_text()


def all_begun(directory: Path) -> bool:
    """The quick job has ended, the others have written half of their outputs."""
    return (directory / "quick.txt").exists() and written(directory, "slow.txt") and written(directory, "python.txt")


def shown(directory: Path) -> str:
    return (directory.parent / "side" / "output").read_text(errors="replace")


def crashed(directory: Path, is_time: Callable[[], bool], *arguments: str) -> None:
    """Start Snakemake and kill it when ``is_time``."""
    process = start(directory, *arguments)
    with ending(process):
        wait_until(lambda: process.poll() is not None or is_time())
        assert process.poll() is None, shown(directory)


def jobs(directory: Path, rule: str | None = None) -> list[dict[str, Any]]:
    return Result(0, "", directory).attempts(rule)


def job(directory: Path, rule: str) -> dict[str, Any]:
    return Result(0, "", directory).attempt(rule)


def running(directory: Path) -> set[str]:
    return {record["rule"] for record in json.loads(forge(directory, "jobs", "--json", "--running").stdout)}


def verdicts(directory: Path) -> list[dict[str, Any]]:
    return [read_json(path) for path in directory.glob(".snakemake/forge/runs/*/*/verdict.json")]


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def staged(directory: Path) -> list[str]:
    return sorted(v["rule"] for v in verdicts(directory) if v["staged"])


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob(".snakemake/forge/adoptable/[0-9]*"))


def nobody_but_supervisors(directory: Path) -> bool:
    names = [command_name(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_in(p, directory)]
    return not {"forge-nursery", "forge-launcher"} & set(names)


def nobody(directory: Path) -> bool:
    """Whether all processes of the run have ended, the supervisors as well."""
    return not any(_is_in(path, directory) for path in Path("/proc").iterdir() if path.name.isdigit()) and not supervised(directory)


def supervised(directory: Path) -> list[str]:
    """The rules whose supervisors live; a supervisor outlives its verdict for a moment."""
    return sorted(entry.rule for entry in pending.entries(str(directory / ".snakemake/forge")) if entry.supervised())


def _is_in(process: Path, directory: Path) -> bool:
    with suppress(OSError):
        return os.readlink(process / "cwd") == str(directory)
    return False


def kill_them(process: subprocess.Popen[bytes], names: list[str]) -> None:
    below = [(command_name(pid), pid) for pid in descendants(process.pid)]
    for name in names:
        for pid in [process.pid] if name == "snakemake" else [pid for found, pid in below if found == name]:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "victims",
    [["snakemake"], ["forge-launcher", "forge-nursery", "snakemake"]],
    ids=["snakemake", "all but the supervisors, launcher first"],
)
def test_jobs_that_run_are_adopted(workdir: Path, victims: list[str]) -> None:
    """Running jobs stay visible, and the next run waits for them and publishes them; ``resume --dry-run`` does not wait.

    No process of Forge holds Snakemake's output open: ssh and CI jobs would wait for it.
    """
    directory, side = prepared(workdir)
    process = start(directory, pipe=True)
    try:
        wait_until(lambda: all_begun(directory))
    finally:
        kill_them(process, victims)
        output, _ = process.communicate(timeout=DEADLINE)
    assert b"rule slow" in output
    wait_until(lambda: nobody_but_supervisors(directory))
    assert running(directory) == {"slow", "python"}
    assert len(entries(directory)) == 2
    tried = resume(directory, "--dry-run")
    assert "would wait for the job of rule slow, which continues without Snakemake" in tried.stdout

    with resuming(directory) as (again, said):
        wait_until(lambda: said.read_text().count(": adopted (") == 2, again)
        (side / "go").touch()
    assert {name: (directory / name).read_text() for name in ("slow.txt", "beside.txt", "python.txt")} == {
        "slow.txt": "whole\n", "beside.txt": "in\n", "python.txt": "whole\n"}
    assert started(side) == {"quick": 1, "slow": 1, "python": 1}
    newest = json.loads(max(directory.glob(".snakemake/forge/runs/*/run.json")).read_text())
    for rule in ("slow", "python"):
        record = job(directory, rule)
        assert (record["outcome"], record["staged"], record["adopted"]) == ("succeeded", False, newest["run"])
        assert f"{Path(record['directory']).parent.name}/{Path(record['directory']).name}" in newest["adopted"]
        assert newest["plan"][rule]["taken_over"] == 1
    assert job(directory, "quick")["adopted"] is None
    assert residue(directory) == []
    assert entries(directory) == []
    assert "Nothing to be done" in run(directory, "-j1", "--config", f"side={side}").output


def test_who_goes_on_before_the_pool_knows_is_not_taken_for_dead(workdir: Path) -> None:
    """A supervisor notices Snakemake's death by itself, and may end before the nursery and the launcher wake up."""
    directory, side = prepared(workdir)
    process = start(directory)
    between: list[int] = []
    with ending(process):
        wait_until(lambda: all_begun(directory))
        between = [p for p in descendants(process.pid) if command_name(p) in ("forge-nursery", "forge-launcher")]
        assert len(between) == 2
        for pid in between:
            os.kill(pid, signal.SIGSTOP)
    try:
        (side / "go").touch()
        wait_until(lambda: staged(directory) == ["python", "slow"])
    finally:
        for pid in between:
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: nobody(directory))
    assert staged(directory) == ["python", "slow"]
    done = resume(directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert started(side) == {"quick": 1, "slow": 1, "python": 1}
    assert (directory / "slow.txt").read_text() == (directory / "python.txt").read_text() == "whole\n"
    assert residue(directory) == []


def test_what_dead_supervisors_leave_is_removed_while_others_of_their_run_go_on(workdir: Path) -> None:
    """resume removes a dead supervisor's scratch, cgroup and layers, but not a living one's, nor a scratch kept on request."""
    directory = workdir / "work"
    side = prepare(directory, WORKFLOW.replace("rule quick:", 'rule quick:\n    resources: forge_keep_scratch="always"'))
    (directory / "in.txt").write_text("in\n")
    process = start(directory)
    try:
        wait_until(lambda: all_begun(directory))
    finally:
        kill_them(process, ["forge-launcher", "forge-nursery", "snakemake"])
        process.wait()
    wait_until(lambda: nobody_but_supervisors(directory))
    found = {entry["name"]: entry["pid"] for entry in map(read_json, directory.glob(".snakemake/forge/adoptable/[0-9]*"))}
    dead = next(name for name in found if name.endswith("-python"))
    living = next(name for name in found if name.endswith("-slow"))
    os.kill(found[dead], signal.SIGKILL)
    wait_until(lambda: running(directory) == {"slow"})
    (kept,) = Path("/tmp").glob(f"forge-{next(directory.glob('.snakemake/forge/runs/*/run.json')).parent.name}/kept-*")
    assert Path(kept.parent, f"slot-{found[dead]}").exists()
    assert f"would remove scratch {kept.parent}/slot-{found[dead]}" in resume(directory, "--dry-run").stdout

    with resuming(directory):
        wait_until(lambda: started(side)["python"] == 2)
        assert {path.name for path in kept.parent.iterdir()} == {kept.name, f"slot-{found[living]}"}
        groups = [{child.name for child in Path(path).iterdir() if child.is_dir()} for path in find({kept.parent.name})]
        assert groups
        assert all(dead not in group and living in group for group in groups)
        (side / "go").touch()
    assert started(side) == {"quick": 1, "slow": 1, "python": 2}
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    shutil.rmtree(kept.parent)
    assert residue(directory) == []


def test_jobs_that_have_finished_are_published_at_once(workdir: Path) -> None:
    """A plain run publishes them too, with logs, benchmarks and outputs elsewhere. Only the failed job runs again."""
    directory, elsewhere = workdir / "work", workdir / "elsewhere"
    elsewhere.mkdir()
    side = prepare(directory, f"""
        SIDE = config["side"]
        rule all:
            input: "slow.txt", "{elsewhere}/far.txt", "fails.txt", "old.txt", "directory"
        rule slow:
            output: "slow.txt"
            log: "logs/slow.log"
            benchmark: "slow.tsv"
            shell: "echo slow >> {{SIDE}}/log; {HELD}; echo whole > {{output}}; echo said > {{log}}; echo undeclared > more.txt"
        rule far:
            output: "{elsewhere}/far.txt", "near.txt"
            shell: "echo far >> {{SIDE}}/log; {HELD}; echo whole > {{output[0]}}; echo whole > {{output[1]}}"
        rule fails:
            output: "fails.txt"
            shell: "echo fails >> {{SIDE}}/log; {HELD}; [ -e {{SIDE}}/mended ]; echo whole > {{output}}"
        rule old:
            input: "version.txt"
            output: "old.txt"
            shell: "echo old >> {{SIDE}}/log; {HELD}; echo new > {{output}}"
        rule directory:
            output: directory("directory")
            shell: "echo directory >> {{SIDE}}/log; {HELD}; mkdir {{output}}; echo whole > {{output}}/a"
        """)
    (directory / "old.txt").write_text("old\n")
    time.sleep(0.05)
    (directory / "version.txt").write_text("2\n")
    rules = {"slow", "far", "fails", "old", "directory"}
    crashed(directory, lambda: (side / "log").exists() and started(side).keys() == rules, "-j5", *FINISH)
    (side / "go").touch()
    wait_until(lambda: len(verdicts(directory)) == 5 and nobody(directory))
    assert staged(directory) == ["directory", "far", "old", "slow"]
    assert {record["rule"]: record["outcome"] for record in jobs(directory)}["fails"] == "failed"
    assert sorted(os.listdir(directory)) == [".snakemake", "Snakefile", "forge.yaml", "logs", "old.txt", "version.txt"]
    assert os.listdir(directory / "logs") == []
    assert (directory / "old.txt").read_text() == "old\n"
    assert [name for name in os.listdir(elsewhere) if name != ".forge-staging"] == []
    verified = forge(directory, "verify")
    assert "missing" not in verified.stdout, verified.stdout

    (side / "mended").touch()
    done = run(directory, "-j5", "--nolock", "--config", f"side={side}")
    assert done.code == 0, done.output
    assert started(side) == {**dict.fromkeys(rules, 1), "fails": 2}
    for name in ("slow.txt", "near.txt", "fails.txt", "directory/a"):
        assert (directory / name).read_text() == "whole\n", name
    assert (elsewhere / "far.txt").read_text() == "whole\n"
    assert (directory / "old.txt").read_text() == "new\n"
    assert (directory / "logs/slow.log").read_text() == "said\n"
    assert (directory / "more.txt").read_text() == "undeclared\n"
    assert (directory / "slow.tsv").exists()
    assert all(job(directory, rule)["adopted"] for rule in rules - {"fails"})
    assert [record["adopted"] for record in jobs(directory, "fails")] == [None, None]
    wait_until(lambda: not residue(directory))
    assert entries(directory) == []


def test_what_differs_is_discarded(workdir: Path) -> None:
    """A changed input (even of equal size and time), command or param discards the job, also a running one; a note says why."""
    directory = workdir / "work"
    text = f"""
        SIDE = config["side"]
        rule all:
            input: expand("{{x}}.txt", x=["input", "command", "param", "same", "running"])
        rule input:
            input: "in.txt"
            output: "input.txt"
            shell: "echo input >> {{SIDE}}/log; {HELD}; cp {{input}} {{output}}"
        rule command:
            output: "command.txt"
            shell: "echo command >> {{SIDE}}/log; {HELD}; echo first > {{output}}"
        rule param:
            output: "param.txt"
            params: n=1
            shell: "echo param >> {{SIDE}}/log; {HELD}; echo {{params.n}} > {{output}}"
        rule same:
            output: "same.txt"
            shell: "echo same >> {{SIDE}}/log; {HELD}; echo same > {{output}}"
        rule running:
            output: "running.txt"
            shell: "echo running >> {{SIDE}}/log; echo first > {{output}}; sleep 1000"
        """
    side = prepare(directory, text)
    (directory / "in.txt").write_text("one\n")
    crashed(directory, lambda: (side / "log").exists() and started(side).total() == 5, "-j5", *FINISH)
    (side / "go").touch()
    wait_until(lambda: len(staged(directory)) == 4 and supervised(directory) == ["running"])
    before = os.stat(directory / "in.txt")
    (directory / "in.txt").write_text("two\n")
    os.utime(directory / "in.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    snakefile = (directory / "Snakefile").read_text()
    changed = snakefile.replace("echo first", "echo second").replace("sleep 1000", "sleep 0").replace("n=1", "n=2")
    (directory / "Snakefile").write_text(changed)

    done = run(directory, "-j5", "--nolock", "--config", f"side={side}")
    assert done.code == 0, done.output
    assert started(side) == {"input": 2, "command": 2, "param": 2, "same": 1, "running": 2}
    assert {name: (directory / f"{name}.txt").read_text().strip() for name in started(side)} == {
        "input": "two", "command": "second", "param": "2", "same": "same", "running": "second"}
    assert "rule input: the outputs that run" in done.output
    assert "are discarded, because in.txt changed meanwhile." in done.output
    assert "still makes are discarded, because its code or params have changed." in done.output
    for rule, why in {"input": "in.txt changed meanwhile", "command": "its code or params have changed"}.items():
        first, second = jobs(directory, rule)
        assert (first["outcome"], first["adopted"], first["discarded"]) == ("succeeded", None, why)
        assert (second["adopted"], second["discarded"]) == (None, None)
    assert [record["outcome"] for record in jobs(directory, "running")] == ["cancelled", "succeeded"]
    wait_until(lambda: not residue(directory))
    assert entries(directory) == []


def test_what_does_not_go_on(workdir: Path) -> None:
    """With ``finish``, jobs of ``open`` rules, shadow rules and pipe groups end with Snakemake; without it, all jobs do."""
    directory = workdir / "work"
    side = prepare(directory, f"""
        SIDE = config["side"]
        rule all:
            input: "staged.txt", "open.txt", "shadow.txt", "consumer.txt"
        rule staged:
            output: "staged.txt"
            shell: "echo staged >> {{SIDE}}/log; {HELD}; echo whole > {{output}}"
        rule open:
            output: "open.txt"
            resources: forge_files="open"
            shell: "echo open >> {{SIDE}}/log; {HELD}; echo whole > {{output}}"
        rule shadow:
            output: "shadow.txt"
            shadow: "minimal"
            shell: "echo shadow >> {{SIDE}}/log; {HELD}; echo whole > {{output}}"
        rule producer:
            output: pipe("fifo")
            shell: "echo producer >> {{SIDE}}/log; {HELD}; echo whole > {{output}}"
        rule consumer:
            input: "fifo"
            output: "consumer.txt"
            shell: "echo consumer >> {{SIDE}}/log; cat {{input}} > {{output}}"
        """)
    crashed(directory, lambda: (side / "log").exists() and started(side).total() == 5, "-j6", *FINISH)
    wait_until(lambda: running(directory) == {"staged"} and nobody_but_supervisors(directory))
    stopped = resume(directory, "--stop")
    assert stopped.returncode == 0, stopped.stderr
    assert "ended the job of rule staged" in stopped.stdout
    assert job(directory, "staged")["outcome"] == "cancelled"
    assert "resume --stop" in job(directory, "staged")["reason"]
    assert "no job continues without its Snakemake here" in resume(directory, "--stop").stdout
    (side / "log").unlink()
    (directory / "fifo").unlink()  # Snakemake itself fails on an old FIFO
    crashed(directory, lambda: (side / "log").exists() and started(side).total() == 5, "-j6", "--nolock")
    begin = time.monotonic()
    wait_until(lambda: nobody_but_supervisors(directory) and not [line for line in residue(directory) if "process" in line])
    print(f"without finish all were dead {time.monotonic() - begin:.2f} s after Snakemake")
    assert entries(directory) == []


def test_a_lost_terminal_leaves_jobs_and_ctrl_c_ends_them(workdir: Path) -> None:
    """After SIGHUP the jobs continue and no lock remains, so the same command adopts them; Ctrl-C ends them."""
    directory, side = prepared(workdir)
    ours, theirs = pty.openpty()
    process = start(directory, "-j3", *FINISH, terminal=theirs)
    os.close(theirs)
    with ending(process):
        wait_until(lambda: all_begun(directory))
        os.kill(process.pid, signal.SIGHUP)
        os.close(ours)
        process.wait(DEADLINE)
    assert process.returncode != 0
    assert not list(directory.glob(".snakemake/locks/*"))
    wait_until(lambda: nobody_but_supervisors(directory))
    assert running(directory) == {"slow", "python"}

    second = start(directory, "-j3", *FINISH)
    with ending(second):
        wait_until(lambda: shown(directory).count(": adopted (") == 2 or second.poll() is not None)
        assert second.poll() is None, shown(directory)
        os.kill(second.pid, signal.SIGINT)
        second.wait(DEADLINE)
    wait_until(lambda: not residue(directory))
    assert running(directory) == set()
    assert {job(directory, rule)["outcome"] for rule in ("slow", "python")} == {"cancelled"}
    assert entries(directory) == []
    assert started(side)["slow"] == started(side)["python"] == 1


def test_room_that_others_have_is_counted(workdir: Path) -> None:
    """A run that does not need the continuing job waits for that job's cores, and does not adopt it."""
    directory = workdir / "work"
    side = prepare(directory, f"""
        SIDE = config["side"]
        rule wide:
            output: "wide.txt"
            threads: 2
            shell: "echo wide >> {{SIDE}}/log; {HELD}; echo wide ended >> {{SIDE}}/log; echo whole > {{output}}"
        rule other:
            output: "other.txt"
            shell: "echo other >> {{SIDE}}/log; echo whole > {{output}}"
        """)
    crashed(directory, lambda: (side / "log").exists(), "-j2", *FINISH, "wide.txt")
    process = start(directory, "-j2", "--nolock", "other.txt")
    with ending(process):
        wait_until(lambda: "The 2 core(s) and the memory" in shown(directory))
        (side / "go").touch()
        assert process.wait(DEADLINE) == 0, shown(directory)
    assert (side / "log").read_text().split("\n")[:-1] == ["wide", "wide ended", "other"]
    assert "1 wait with staged outputs" in shown(directory)
    assert staged(directory) == ["wide"]
    (directory / "other.txt").unlink()
    (directory / "wide.txt").write_text("by hand\n")
    last = run(directory, "other.txt", "-j2", "--nolock", "--config", f"side={side}")
    assert "wide.txt was changed by another process since the job started" in last.output
    assert "wide.txt was changed" in job(directory, "wide")["discarded"]
    assert residue(directory) == []
    assert entries(directory) == []


def test_gc_gives_up_what_has_waited_too_long(workdir: Path) -> None:
    """gc removes staged outputs after ``--kept-after``, not ``--leftovers-after``."""
    directory, side = prepared(workdir)
    crashed(directory, lambda: written(directory, "slow.txt"), "-j1", *FINISH, "slow.txt")
    (side / "go").touch()
    # gc spares files that a living process holds.
    wait_until(lambda: staged(directory) == ["slow"] and nobody(directory))
    listed = forge(directory, "gc", "--json", "--leftovers-after", "0.01s", check=True)
    assert [item for item in json.loads(listed.stdout) if item["part"] == "staging"] == []
    link = directory.with_name("link")
    link.symlink_to(directory)
    linked = forge(directory, "gc", "--json", "--leftovers-after", "0.01s", "--directory", str(link), check=True)
    assert [item for item in json.loads(linked.stdout) if item["part"] == "staging"] == []
    removed = forge(directory, "gc", "--json", "--kept-after", "0.01s", check=True)
    assert [item["part"] for item in json.loads(removed.stdout) if item["part"] == "staging"] == ["staging"]
    assert job(directory, "slow")["discarded"] == "removed by snakemake-forge gc"
    assert residue(directory) == []


def test_two_runs_at_once(workdir: Path) -> None:
    """One run adopts and publishes; the other one waits for it, and starts nothing either."""
    directory, side = prepared(workdir)
    crashed(directory, lambda: all_begun(directory))
    both = [start(directory, "-j3", "--nolock") for _ in range(2)]
    try:
        wait_until(lambda: shown(directory).count("reason: Missing output files: slow.txt") == 3)
        (side / "go").touch()
        codes = [process.wait(DEADLINE) for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert codes == [0, 0], shown(directory)
    assert shown(directory).count("rule slow has finished, begun by") == 1, shown(directory)
    assert started(side)["slow"] == started(side)["python"] == 1
    assert job(directory, "slow")["adopted"]
    assert (directory / "slow.txt").read_text() == "whole\n"
    wait_until(lambda: not residue(directory))


def test_jobs_of_a_run_that_lives_are_its_own(workdir: Path) -> None:
    """Another run that makes the same outputs with changed code does not end them."""
    directory, side = prepared(workdir)
    first = start(directory)
    with ending(first):
        wait_until(lambda: all_begun(directory))
        refused = resume(directory, "--stop")
        assert refused.returncode == 2
        assert "may have adopted the jobs" in refused.stderr
        snakefile = (directory / "Snakefile").read_text()
        (directory / "Snakefile").write_text(snakefile.replace("echo whole > {output[0]}", "echo other > {output[0]}"))
        second = start(directory, "-j3", "--nolock", *FINISH)
        with ending(second):
            wait_until(lambda: started(side)["slow"] == 2)
            os.kill(second.pid, signal.SIGINT)
            second.wait(DEADLINE)
        (side / "go").touch()
        assert first.wait(DEADLINE) == 0, shown(directory)
    assert "discarded" not in shown(directory)
    assert (directory / "slow.txt").read_text() == "whole\n"
    assert [record["outcome"] for record in jobs(directory, "slow")] == ["succeeded", "cancelled"]
    wait_until(lambda: not residue(directory))
    assert entries(directory) == []


def test_staged_in_the_scratch(workdir: Path) -> None:
    """On an overlay, which cannot be an upper layer, jobs are staged in the scratch."""
    with on_an_overlay(workdir) as directory:
        side = prepare(directory, WORKFLOW)
        (directory / "in.txt").write_text("in\n")
        crashed(directory, lambda: (directory / "quick.txt").exists() and {"slow", "python"} <= started(side).keys())
        (side / "go").touch()
        wait_until(lambda: staged(directory) == ["python", "slow"] and nobody(directory))
        done = resume(directory)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {name: (directory / name).read_text() for name in ("slow.txt", "beside.txt", "python.txt")} == {
            "slow.txt": "whole\n", "beside.txt": "in\n", "python.txt": "whole\n"}
        assert started(side)["slow"] == started(side)["python"] == 1
        wait_until(lambda: not residue(directory))
        assert not list(directory.glob(".forge-copy*"))


@pytest.mark.busy
def test_a_hundred_at_once(workdir: Path) -> None:
    directory = workdir / "work"
    side = prepare(directory, """
        SIDE = config["side"]
        rule all:
            input: expand("{i}.txt", i=range(100))
        rule one:
            output: "{i}.txt", "{i}.idx"
            shell: "echo {wildcards.i} >> {SIDE}/log; while [ ! -e {SIDE}/go ]; do sleep 1; done; echo {wildcards.i} | tee {output}"
        """)
    crashed(directory, lambda: (side / "log").exists() and started(side).total() == 100, "-j100", *FINISH)
    (side / "go").touch()
    wait_until(lambda: len(staged(directory)) == 100 and nobody(directory))
    done = run(directory, "-j100", "--nolock", "--config", f"side={side}")
    assert done.code == 0, done.output
    assert started(side) == {str(i): 1 for i in range(100)}
    assert all((directory / f"{i}.{end}").read_text() == f"{i}\n" for i in range(100) for end in ("txt", "idx"))
    (newest,) = [r for path in directory.glob(".snakemake/forge/runs/*/run.json") if (r := json.loads(path.read_text()))["adopted"]]
    assert len(newest["adopted"]) == 100
    assert residue(directory) == []


@pytest.mark.v2
@pytest.mark.kernel
def test_a_supervisor_that_ends_leaves_the_cgroups_of_others() -> None:
    """An empty cgroup stays too: its job is about to enter it."""
    group, tried = open_run_cgroup(f"forge-test-adopt-{os.getpid()}", 1 << 30, None)
    assert group is not None, tried
    try:
        others = group.create_job("00001-other", Limits(1 << 28, 1, 10, None), CpuMode.OFF)
        group.prepare()
        group.release()
        assert group.job("00001-other") is not None
        assert others.pids() == []
        assert others.remove()
        group.release()
        assert list(find({f"forge-test-adopt-{os.getpid()}"})) == []
    finally:
        group.remove()
    assert list(find({f"forge-test-adopt-{os.getpid()}"})) == []
