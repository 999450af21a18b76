"""The rungs of the ladder that this host has beside root's: soft limits, with and without namespaces.

Root runs the tests: the commands run as an ordinary user (tests/ordinary.py), or in a mount namespace with read-only
cgroups.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_forge.kernel.process_tree import command_name
from snakemake_executor_plugin_forge.sandbox.cgroups.base import cgroup_mounts
from snakemake_executor_plugin_forge.sandbox.cgroups.v2 import open_delegated

from .. import ordinary
from ..conftest import DEADLINE, Result, command, ending, forge, residue, run, wait_until, write_workflow, written
from .test_containment import BOMB

pytestmark = pytest.mark.slow  # many starts of Snakemake

READ_ONLY = """
while read -r _ path kind _; do case $kind in cgroup|cgroup2) mount -o remount,bind,ro "$path";; esac; done < /proc/mounts
exec "$@"
"""
READ_ONLY_CGROUPS = ["unshare", "-m", "--propagation", "private", "bash", "-c", READ_ONLY, "bash"]

WORKFLOW = """
rule all:
    input: "ok.out", "oom.out", "hidden.out", "shm.out", "python.out", "daemon.out", "hiding.out", "sleeper.out"
rule ok:
    output: "ok.out"
    resources: mem_mb=40, runtime=10
    shell: "id -u > {output}"
rule oom:
    output: "oom.out"
    resources: mem_mb=100, runtime=10
    shell: "python3 -c 'x = bytearray(300 * 2**20); import time; time.sleep(60)'; touch {output}"
rule hidden:
    output: "hidden.out"
    resources: mem_mb=100, runtime=10
    shell: "python3 -c 'x = bytearray(300 * 2**20); import time; time.sleep(60)' || true; sleep 0.3; touch {output}"
rule shm:
    output: "shm.out"
    resources: mem_mb=100, runtime=10
    shell: "dd if=/dev/zero of=/dev/shm/x bs=1M count=300 2>/dev/null; sleep 60; touch {output}"
rule python:
    output: "python.out"
    resources: runtime=10
    run:
        import subprocess
        subprocess.Popen(["setsid", "sleep", "1013"])
        open(output[0], "w").write("x")
rule daemon:
    output: "daemon.out"
    resources: runtime=10
    shell: "(setsid nohup sleep 1012 >/dev/null 2>&1 &); sleep 0.3; echo ok > {output}"
rule hiding:
    output: "hiding.out"
    resources: runtime=10
    shell: "for i in 1 2 3 4 5 6 7 8; do (trap '' TERM HUP INT; setsid sleep 1011 &) ; done; sleep 0.3; echo ok > {output}"
rule sleeper:
    output: "sleeper.out"
    shell: "trap '' TERM; sleep 3600; touch {output}"
rule bomb:
    output: "bomb.out"
    shell: "BOMB"
""".replace("BOMB", BOMB % 180)


def _doctor(directory: Path, before: list[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    done = forge(directory, "doctor", "--json", *arguments, before=before)
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


@pytest.fixture
def place(workdir: Path) -> Path:
    """A working directory of the ordinary user."""
    write_workflow(workdir, WORKFLOW)
    ordinary.hand_over(workdir)
    return workdir


def _survivors() -> list[str]:
    return [p.name for p in Path("/proc").iterdir() if p.name.isdigit() and _owner(p) == ordinary.UID]


def _owner(path: Path) -> int:
    try:
        return path.stat().st_uid
    except OSError:
        return -1


OUTCOMES = {
    "ok": "succeeded", "oom": "oom", "hidden": "oom", "shm": "oom", "python": "succeeded", "daemon": "succeeded",
    "hiding": "succeeded", "sleeper": "timeout",
}


@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "no_namespaces"])
def test_an_ordinary_user_without_a_cgroup(place: Path, namespaces: bool) -> None:
    # Without namespaces all jobs share /dev/shm, and nothing tells whose files are in it.
    expected = {rule: outcome for rule, outcome in OUTCOMES.items() if namespaces or rule != "shm"}
    result = run(place, "-j2", "-k", "--forge-wall", "2s", "--forge-grace", "1s", "--forge-pids", "400", *(f"{rule}.out" for rule in expected),
                 before=ordinary.prefix(namespaces=namespaces))
    assert {a["rule"]: a["outcome"] for a in result.attempts()} == expected, result.output
    assert result.read("ok.out").strip() == str(ordinary.UID)
    for attempt in result.attempts():
        assert attempt["isolation"]["limits"] == "soft"
        assert attempt["isolation"]["not_enforced"] == ["cpu", "run", *([] if namespaces else ["files"])]
        assert ("pid-ns" in attempt["isolation"]["mechanisms"]) == namespaces
    reason = result.attempt("oom")["reason"]
    assert "polled" in reason and "raise the rule's mem_mb" in reason
    assert not (place / "oom.out").exists()
    assert "sleep 1013" in " ".join(result.attempt("python")["notes"])
    assert "left 8 process" in " ".join(result.attempt("hiding")["notes"])
    assert result.attempt("sleeper")["seconds"] < 3600  # less than its sleep
    assert "Forge: soft limits" in result.output
    wait_until(lambda: not _survivors())
    assert residue(place) == []


@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "no_namespaces"])
def test_a_fork_bomb_of_an_ordinary_user(place: Path, namespaces: bool) -> None:
    result = run(place, "-j1", "--forge-pids", "200", "bomb.out", before=ordinary.prefix(namespaces=namespaces))
    attempt = result.attempt("bomb")
    assert attempt["outcome"] == "pids"
    assert attempt["usage"]["pids_peak"] >= 200
    if namespaces:  # the kernel counts
        assert attempt["usage"]["pids_peak"] == 200
    wait_until(lambda: not _survivors())


@pytest.mark.parametrize(("namespaces", "victim"), [(True, "forge-super"), (False, "forge-super"), (False, "forge-nursery")])
def test_a_killed_process_of_forge_takes_its_job_with_it(place: Path, namespaces: bool, victim: str) -> None:
    (place / "Snakefile").write_text("""
rule a:
    output: "a.out"
    shell: "for i in 1 2 3; do (trap '' TERM; setsid sleep 1014 &); done; touch started; sleep 3600; touch {output}"
""")
    process = subprocess.Popen(
        [*ordinary.prefix(namespaces=namespaces), *command("forge", "-j1")], cwd=place, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with ending(process):
        wait_until(lambda: written(place, "started"), process)
        time.sleep(0.3)
        for pid in map(int, _survivors()):  # all supervisors: idle ones have no job
            with suppress(ProcessLookupError):  # it may have died with a process killed before
                if command_name(pid) == victim:
                    os.kill(pid, signal.SIGKILL)
        process.wait(DEADLINE)
    (attempt,) = Result(process.returncode, "", place).attempts("a")
    assert attempt["outcome"] in ("lost", "cancelled")
    wait_until(lambda: not _survivors())


def test_read_only_cgroups_of_root_are_the_next_rung(workdir: Path) -> None:
    write_workflow(workdir, WORKFLOW)
    result = run(workdir, "-j2", "oom.out", "ok.out", "-k", before=READ_ONLY_CGROUPS)
    assert {a["rule"]: (a["outcome"], a["isolation"]["limits"]) for a in result.attempts()} == {
        "ok": ("succeeded", "soft"), "oom": ("oom", "soft"),
    }
    code, report = _doctor(workdir, READ_ONLY_CGROUPS, "--require", "limits")
    assert code == 1
    assert "Read-only file system" in report["rungs"][0]["refusal"]
    assert residue(workdir) == []


def test_soft_limits_do_not_satisfy_a_requirement(place: Path) -> None:
    result = run(place, "-j1", "ok.out", "--forge-require", "limits", before=ordinary.prefix())
    assert result.code != 0
    assert "--forge-require=limits: this host does not give Forge limits that the kernel enforces" in result.output
    assert "snakemake-forge doctor --require limits" in result.output
    assert not (place / "ok.out").exists()
    wait_until(lambda: not _survivors())


def test_network_off_needs_namespaces(place: Path) -> None:
    result = run(place, "-j1", "ok.out", "--forge-network", "off", before=ordinary.prefix(namespaces=False))
    assert result.code != 0
    assert "network off (--forge-network or forge_network) cannot be had on this host" in result.output
    assert not (place / "ok.out").exists()


def test_doctor_tells_the_line_of_the_run_and_leaves_nothing(place: Path) -> None:
    code, report = _doctor(place, ordinary.prefix())
    assert code == 0
    output = run(place, "-j1", "ok.out", before=ordinary.prefix()).output
    (start,) = place.glob(".snakemake/forge/runs/*/run.json")
    line = json.loads(start.read_text())["isolation"]
    assert line in output
    memory = re.compile(r"[\d.]+ [GM]iB")  # free memory changes
    assert memory.sub("", line) == memory.sub("", report["line"])
    assert {row["what"]: row["state"] for row in report["enforced"]} | {"memory": "soft", "CPU": "not enforced"} == {
        row["what"]: row["state"] for row in report["enforced"]
    }
    assert not [path for path in Path("/tmp").glob("*doctor*") if _owner(path) == ordinary.UID]
    wait_until(lambda: not _survivors())


def test_doctor_without_namespaces_says_which_sysctl(place: Path) -> None:
    code, report = _doctor(place, ordinary.prefix(namespaces=False), "--require", "full")
    assert code == 1
    assert report["namespaces"]["kind"] == "none"
    assert "sysctl -w user.max_user_namespaces=10000" in [item["do"] for item in report["advice"]]


def _cgroups_of_doctor() -> set[str]:
    return {f"{parent}/{name}" for parent, directories, _ in os.walk("/sys/fs/cgroup") for name in directories if "forge-doctor" in name}


@pytest.mark.v2
@pytest.mark.kernel
def test_doctor_of_root(workdir: Path) -> None:
    code, report = _doctor(workdir, [], "--require", "full")
    advice = [item for item in report["advice"] if "--forge-io-weight" not in item["why"]]  # depends on the host's disks
    assert (code, report["missing"], advice) == (0, [], [])
    assert {row["state"] for row in report["enforced"] if row["what"] != "I/O weight"} == {"enforced"}
    left = _cgroups_of_doctor()
    wait_until(lambda: not left & _cgroups_of_doctor())  # cgroups of other tests' doctors go, too


@pytest.mark.kernel
def test_a_cgroup_that_is_taken_away_is_noticed(workdir: Path) -> None:
    """Fault 107: the job's processes are moved out of its memory cgroup, which is then removed: nothing would limit the job."""
    write_workflow(workdir, """
        rule a:
            output: "a.out"
            resources: mem_mb=100
            shell: "touch started; sleep 3600; touch {output}"
        """)
    process = subprocess.Popen(command("forge", "-j1"), cwd=workdir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: written(workdir, "started"), process)
    (run,) = (workdir / ".snakemake/forge/runs").iterdir()
    cgroup = Path(json.loads((run / "run.json").read_text())["cgroup"], "00001-a")
    shelter = cgroup.parent / "shelter"
    shelter.mkdir()
    try:
        while pids := (cgroup / "cgroup.procs").read_text().split():
            for pid in pids:
                with suppress(ProcessLookupError):  # touch has ended meanwhile
                    (shelter / "cgroup.procs").write_text(pid)
        cgroup.rmdir()
        process.wait(DEADLINE)
    finally:
        process.kill()
    attempt = Result(process.returncode, "", workdir).attempt("a")
    assert attempt["outcome"] == "failed"
    # Forge saw the empty cgroup, or only that it was gone.
    assert re.search("was emptied or removed from outside|somebody removed or changed the job's cgroup", attempt["reason"])
    assert residue(workdir) == []


def test_processes_that_stepped_aside_step_back() -> None:
    """The v2 hierarchy of a hybrid host has no controllers: Forge refuses the rung and moves the processes back."""
    mounts = cgroup_mounts(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    (unified,) = [mount.mount_point for mount in mounts if mount.version == 2]
    delegated = Path(unified, f"forge-test-{os.getpid()}")
    delegated.mkdir()
    try:
        with subprocess.Popen(["sleep", "100"]) as process:
            (delegated / "cgroup.procs").write_text(str(process.pid))
            with pytest.raises(OSError, match="the controllers memory, pids are not delegated"):
                open_delegated(str(delegated), "forge-x", 2**30, 100)
            assert (delegated / "cgroup.procs").read_text().split() == [str(process.pid)]
            assert [entry.name for entry in delegated.iterdir() if entry.is_dir()] == []
            process.kill()
    finally:
        delegated.rmdir()
