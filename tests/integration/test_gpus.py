"""Each GPU belongs to one job at a time, and other jobs do not see it.

The tests make the devices, as nodes with the numbers of /dev/null.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from ..conftest import DEADLINE, command, ending, forge, residue, run, wait_until, write_workflow

# Prints visible nodes, the variable, hidden nodes, and a line for each node that the job can use.
TAG = uuid.uuid4().hex[:8]  # other runs of these tests also have such nodes
LOOK = (
    f"echo $(cd /dev; ls | grep -- '{TAG}-gpu') ${{{{CUDA_VISIBLE_DEVICES:-}}}} > {{output}}; ls -A /dev/.forge-gpus >> {{output}}; "
    f"for f in $(ls -d /dev/*-{TAG}-gpu* 2>/dev/null); do test -c $f && echo x > $f && echo writable >> {{output}}; done; true"
)


@pytest.fixture
def gpus() -> Iterator[list[str]]:
    """Two character devices that can be read and written."""
    nodes = [f"/dev/forge-{TAG}-gpu{number}" for number in (0, 1)]
    for node in nodes:
        os.mknod(node, stat.S_IFCHR, os.makedev(1, 3))
        os.chmod(node, 0o666)
    try:
        yield nodes
    finally:
        for node in nodes:
            os.unlink(node)


def _span(attempt: dict[str, object]) -> tuple[float, float]:
    start = datetime.fromisoformat(str(attempt["started"])).timestamp()
    return start, start + float(str(attempt["seconds"]))


def test_two_jobs_have_one_each_and_the_others_wait(workdir: Path, gpus: list[str]) -> None:
    write_workflow(workdir, f"""
        rule all:
            input: expand("{{i}}.out", i=range(6)), "both.out", "plain.out", "python.out"
        rule one:
            output: "{{i}}.out"
            resources: gpu=1
            shell: {LOOK + "; touch $XDG_CACHE_HOME/{wildcards.i}; until [ $(ls $XDG_CACHE_HOME | wc -l) -ge 2 ]; do sleep 0.1; done"!r}
        rule both:
            output: "both.out"
            resources: gpus=2
            shell: {LOOK!r}
        rule plain:
            output: "plain.out"
            shell: {LOOK!r}
        rule python:
            output: "python.out"
            resources: gpu=1
            run:
                import os
                seen = [name for name in os.listdir("/dev") if "{TAG}-gpu" in name]
                with open(output[0], "w") as file:
                    print(*seen, os.environ["CUDA_VISIBLE_DEVICES"], file=file)
        """)
    (workdir / "cache").mkdir()
    result = run(workdir, "-j16", "--forge-gpus", ",".join(gpus), env={"XDG_CACHE_HOME": str(workdir / "cache")})
    assert result.code == 0, result.output
    names = [os.path.basename(node) for node in gpus]
    ones = result.attempts("one")
    by_device: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    for attempt in [*ones, result.attempt("both"), result.attempt("python")]:
        for number in attempt["limits"]["gpus"]:
            by_device[number].append(_span(attempt))
    for attempt in ones:
        (number,) = attempt["limits"]["gpus"]
        expected = f"{names[number]} 0\nwritable\n"
        assert result.read(f"{attempt['wildcards']['i']}.out") == expected
    for spans in by_device.values():
        spans.sort()
        assert all(first[1] <= second[0] for first, second in pairwise(spans)), spans
    assert any(a[0] < b[1] and b[0] < a[1] for a in by_device[0] for b in by_device[1]), "none ran at the same time"
    assert result.read("both.out") == f"{' '.join(names)} 0,1\nwritable\nwritable\n"
    assert result.attempt("both")["limits"]["gpus"] == [0, 1]
    assert result.read("python.out").split() in ([names[0], "0"], [names[1], "0"])
    assert result.read("plain.out") == "\n"
    assert result.attempt("plain")["limits"]["gpus"] == []
    assert f"GPUs {', '.join(gpus)}" in result.output
    assert residue(workdir) == []


def test_one_supervisor_shows_each_job_its_own(workdir: Path, gpus: list[str]) -> None:
    """Jobs with and without GPUs follow each other: none sees a GPU of the job before, in a sandbox made ahead or not."""
    write_workflow(workdir, f"""
        rule all:
            input: expand("{{i}}.out", i=range(12))
        rule one:
            output: "{{i}}.out"
            resources: gpu=lambda wildcards: [0, 1, 2, 0, 0, 0, 1, 1, 1, 2, 1, 0][int(wildcards.i)]
            shell: {LOOK!r}
        """)
    result = run(workdir, "-j1", "--forge-gpus", ",".join(gpus))
    assert result.code == 0, result.output
    for number, count in enumerate([0, 1, 2, 0, 0, 0, 1, 1, 1, 2, 1, 0]):
        names = " ".join(os.path.basename(node) for node in gpus[:count])
        visible = ",".join(str(n) for n in range(count))
        expected = f"{names} {visible}".strip() + "\n" + "writable\n" * count
        assert result.read(f"{number}.out") == expected, number
    assert residue(workdir) == []


USER_PROGRAM = """
import encodings.ascii, os, shutil, sys  # all that cannot be imported later
from snakemake_executor_plugin_forge.kernel import syscalls
from snakemake_executor_plugin_forge.sandbox import privileges
from snakemake_executor_plugin_forge.sandbox.filesystem import mounts
from snakemake_executor_plugin_forge.sandbox.base import prepare

gpus = tuple(sys.argv[1:])
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)  # here, and not before this program: it may lie where only root can read
syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # as if it had been started by that user: /proc/self is its own
base = prepare("user", gpus)
last = ()
for own in (gpus[1:], (), gpus, ()):
    mounts.place_gpus(last, own)
    last = own
    steps = mounts.gpu_steps(own)
    if os.fork() == 0:
        syscalls.run([syscalls.unshare_step(syscalls.CLONE_NEWNS), *steps, *privileges.drop_steps(base.capabilities)])
        names = sorted(name for name in os.listdir("/dev") if "/dev/" + name in gpus)
        for name in names:
            with open("/dev/" + name, "w") as device:
                print("used", file=device)
        print(*names, os.listdir("/dev/.forge-gpus"), flush=True)
        os._exit(0)
    os.wait()
"""


def test_an_ordinary_user_gets_the_same(gpus: list[str]) -> None:
    """An ordinary user's supervisor shows four successive jobs their GPUs by bind mounts in a user namespace."""
    done = subprocess.run(
        [sys.executable, "-c", USER_PROGRAM, *gpus], cwd="/", capture_output=True, text=True, check=False, timeout=DEADLINE
    )
    first, second = (os.path.basename(node) for node in gpus)
    assert done.stdout.splitlines() == [f"{second} []", "[]", f"{first} {second} []", "[]"], done.stderr


@pytest.fixture
def alone_in_dev() -> Iterator[None]:
    """Other sessions of these tests on this host wait: Forge counts all devices with a driver's name."""
    fd = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


@pytest.mark.usefixtures("alone_in_dev")
def test_names_of_the_drivers(workdir: Path) -> None:
    """``auto`` finds GPUs by name, and a job without gpu sees only control devices; AMD's GPUs lie in their own directory."""
    number = 1000 + os.getpid() % 1000000
    made_directory = not os.path.isdir("/dev/dri")
    os.makedirs("/dev/dri", exist_ok=True)
    nodes = [f"/dev/nvidia{number}", f"/dev/nvidia-forge{number}x", f"/dev/dri/renderD{number}"]
    look = f"(ls -d /dev/nvidia*{number}* /dev/dri/*{number} 2>/dev/null; env | grep VISIBLE | sort) > {{output}} || true"
    write_workflow(workdir, f"""
        rule all:
            input: "one.out", "plain.out"
        rule one:
            output: "one.out"
            resources: gpu=1
            shell: "{look}"
        rule plain:
            output: "plain.out"
            shell: "{look}"
        """)
    try:
        for node in nodes:
            os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        count = sum(name.removeprefix("nvidia").isdigit() for name in os.listdir("/dev"))  # the host's GPUs count too
        result = run(workdir, "-j2", env={"CUDA_VISIBLE_DEVICES": str(count - 1)})
        assert result.code == 0, result.output
        assert result.read("one.out").split() == [nodes[1], nodes[0], "CUDA_VISIBLE_DEVICES=0"]
        assert result.read("plain.out").split()[:1] == [nodes[1]] and nodes[0] not in result.read("plain.out")
        result = run(workdir, "-j2", "-F", "--forge-gpus", nodes[2])
        assert result.code == 0, result.output
        assert result.read("one.out").split() == [
            nodes[2], nodes[1], "HIP_VISIBLE_DEVICES=0", "ROCR_VISIBLE_DEVICES=0"
        ]
        assert result.read("plain.out").split() == [nodes[1]]
    finally:
        for node in nodes:
            Path(node).unlink(missing_ok=True)
        if made_directory:
            os.rmdir("/dev/dri")
    assert residue(workdir) == []


def test_what_cannot_be_had_is_refused_before_anything_runs(workdir: Path, gpus: list[str]) -> None:
    """One of the refusals in unit/test_gpus.py, with a real run."""
    write_workflow(workdir, """
        rule all:
            input: "first.out", "greedy.out"
        rule first:
            output: "first.out"
            shell: "touch {output}"
        rule greedy:
            output: "greedy.out"
            resources: gpu=3
            shell: "touch {output}"
        """)
    result = run(workdir, "-j2", "--forge-require", "limits", "--forge-gpus", ",".join(gpus))
    assert result.code != 0
    assert "Rule greedy: gpu=3, but this run has 2 (/dev/forge-" in result.output
    assert "Traceback" not in result.output
    assert not (workdir / "first.out").exists()
    assert residue(workdir) == []


def test_a_group_with_two_gpu_jobs_is_refused(workdir: Path, gpus: list[str]) -> None:
    write_workflow(workdir, """
        rule all:
            input: "b.out"
        rule a:
            output: pipe("a.txt")
            resources: gpu=1
            shell: "echo x > {output}"
        rule b:
            input: "a.txt"
            output: "b.out"
            resources: gpu=1
            shell: "cat {input} > {output}"
        """)
    result = run(workdir, "-j4", "--forge-gpus", ",".join(gpus))
    assert result.code != 0
    assert "run at the same time, as a group, and each asks for GPUs" in result.output
    assert residue(workdir) == []


def test_stopping_ends_those_that_wait_too(workdir: Path, gpus: list[str]) -> None:
    write_workflow(workdir, """
        rule all:
            input: expand("{i}.out", i=range(5))
        rule one:
            output: "{i}.out"
            resources: gpu=1, forge_files="open"
            shell: "touch begun.{wildcards.i}; sleep 1000; touch {output}"
        """)
    log = workdir / "log.txt"
    with log.open("w") as output:
        snakemake = subprocess.Popen(command("forge", "-j5", "--forge-gpus", ",".join(gpus)), cwd=workdir, stdout=output, stderr=output)
    with ending(snakemake):
        # Snakemake has submitted all five jobs, and two of them have begun.
        wait_until(lambda: log.read_text().count("rule one:") == 5 and len(list(workdir.glob("begun.*"))) == 2, snakemake)
        snakemake.send_signal(signal.SIGTERM)
        assert snakemake.wait(DEADLINE) != 0
    assert "waits for a free GPU" in log.read_text()
    done = forge(workdir, "jobs", check=True)
    assert done.stdout.count("cancelled") >= 5
    assert done.stdout.count("nothing of it was run") == 3
    assert "GPU" in done.stdout.splitlines()[0]
    assert len(list(workdir.glob("begun.*"))) == 2
    assert residue(workdir) == []
