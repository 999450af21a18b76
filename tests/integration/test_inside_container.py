"""Snakemake with Forge inside a container: bubblewrap, and podman with the options that ``doctor`` names.

The container sees the programs of this host, read-only, and uses the tests' Python. podman runs as root with runc,
without systemd and without a network, so it also works on a host with cgroup v1.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .. import ordinary
from ..conftest import DEADLINE, FORGE, command, residue, wait_until, write_workflow

pytestmark = pytest.mark.slow  # many starts of Snakemake

ROOT = Path(__file__).parents[2]
WORKFLOW = """
rule all:
    input: "ok", "oom", "daemon"
rule ok:
    output: "ok"
    shell: "echo ok > {output}"
rule oom:
    output: "oom"
    resources: mem_mb=100
    shell: "python3 -c 'x = bytearray(300 * 2**20); import time; time.sleep(60)'; touch {output}"
rule daemon:
    output: "daemon"
    shell: "(setsid sleep 1014 >/dev/null 2>&1 &); sleep 0.2; touch {output}"
"""
OUTCOMES = {"ok": "succeeded", "oom": "oom", "daemon": "succeeded"}


@pytest.fixture
def place() -> Iterator[Path]:
    """A working directory below /tmp that an ordinary user can enter."""
    place = Path("/tmp", f"forge-container-{uuid.uuid4().hex[:8]}")
    write_workflow(place / "work", WORKFLOW)
    yield place
    shutil.rmtree(place)


def _need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install bubblewrap podman runc)")


def _bubblewrap(work: Path) -> list[str]:
    return ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--ro-bind", "/", "/",
            "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--ro-bind", str(ROOT), str(ROOT),
            "--ro-bind", sys.prefix, sys.prefix, "--ro-bind", sys.base_prefix, sys.base_prefix,
            "--bind", str(work), str(work), "--chdir", str(work), "--setenv", "HOME", str(work),
            "--setenv", "PYTHONPATH", str(ROOT)]  # fmt: skip


def _podman(place: Path, *options: str) -> list[str]:
    """The podman command. Its root is no image, but an empty directory with the host's /usr."""
    root, work = place / "root", place / "work"
    for name in ("usr", "etc", "proc", "sys", "dev", "tmp", "run", "var/tmp", "root"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    shown = {"/usr", "/etc", sys.base_prefix, sys.prefix, str(ROOT)}
    volumes = [word for path in sorted(shown) for word in ("-v", f"{path}:{path}:ro")]
    variables = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": str(work)}
    return ["podman", "run", "--rm", "--runtime=runc", "--cgroup-manager=cgroupfs", "--network=none", "--ulimit", "nofile=1024:4096",
            "--ulimit", "nproc=1000:1000", *volumes, "-v", f"{work}:{work}", "-w", str(work),
            *(word for name, value in variables.items() for word in ("-e", f"{name}={value}")), *options,
            "--rootfs", str(root)]  # fmt: skip


def _done(before: list[str], *commands: list[str], directory: Path) -> str:
    """Run the commands in one container; return their output."""
    script = "; ".join(shlex.join(one) for one in commands)
    done = subprocess.run([*before, "bash", "-c", script], capture_output=True, text=True, errors="replace", check=False,
                          stdin=subprocess.DEVNULL, timeout=DEADLINE, cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stdout, done.stderr
    return done.stdout


def _whole_run(before: list[str], place: Path) -> dict[str, dict[str, Any]]:
    """Run the workflow; return the records of its attempts by rule."""
    run = ["bash", "-c", shlex.join(command("forge", "-j2", "-k")) + " > log 2>&1"]
    records = json.loads(_done(before, run, [*FORGE, "jobs", "--json"], directory=place / "work"))
    assert {record["rule"]: record["outcome"] for record in records} == OUTCOMES, (place / "work/log").read_text()
    assert not (place / "work/oom").exists()
    wait_until(lambda: "/conmon" not in str(residue(place / "work")))  # podman's monitor ends a moment after podman
    assert residue(place / "work") == []
    return {record["rule"]: record for record in records}


@pytest.mark.parametrize("as_user", [False, True], ids=["as_is", "ordinary"])
def test_inside_bubblewrap(place: Path, as_user: bool) -> None:
    """bubblewrap has read-only cgroups and one user: limits are soft, but nested namespaces work."""
    _need("bwrap")
    before = []
    if as_user and os.geteuid() == 0:
        ordinary.hand_over(place / "work")
        before = ordinary.prefix()
    record = _whole_run([*before, *_bubblewrap(place / "work")], place)["daemon"]
    assert record["isolation"]["limits"] == "soft"
    assert {"mount-ns", "pid-ns"} <= set(record["isolation"]["mechanisms"])
    assert "sleep 1014" in " ".join(record["notes"])


@pytest.mark.skipif(os.geteuid() != 0, reason="podman is run by root here")
def test_inside_podman_without_options(place: Path) -> None:
    """Without namespaces and cgroups, limits are soft, the record says so, and doctor names the missing option."""
    _need("podman", "runc")
    record = _whole_run(_podman(place), place)["daemon"]
    assert record["isolation"]["limits"] == "soft"
    assert "mount-ns" not in record["isolation"]["mechanisms"]
    advice = _advice(_podman(place), place)
    assert "--cap-add SYS_ADMIN" in advice


@pytest.mark.skipif(os.geteuid() != 0, reason="podman is run by root here")
def test_inside_podman_with_what_doctor_advises(place: Path) -> None:
    """With all options that doctor advises, the kernel enforces everything."""
    _need("podman", "runc")
    options: list[str] = []
    while advice := _advice(_podman(place, *options), place):
        new = [word for line in advice.splitlines() for word in shlex.split(line)[2:-1]]
        assert new and not set(new) <= set(options), f"the advice does not help: {advice}"
        options += new
    record = _whole_run(_podman(place, *options), place)["ok"]
    assert record["isolation"]["limits"].startswith("cgroup")
    assert record["isolation"]["not_enforced"] == []
    assert {"mount-ns", "pid-ns"} <= set(record["isolation"]["mechanisms"])


@pytest.mark.skipif(os.geteuid() != 0, reason="podman is run by root here")
def test_an_ordinary_user_inside_podman(place: Path) -> None:
    """With doctor's option an ordinary user gets namespaces; v1 cgroups are root's."""
    _need("podman", "runc")
    user = ["--user", f"{ordinary.UID}:{ordinary.UID}"]
    before = _report(_podman(place, *user), place)
    assert before["namespaces"]["kind"] == "none"
    assert "mount proc on /proc" in before["namespaces"]["refusal"], "the namespace itself is allowed: fault 113"
    advice = "\n".join(item["do"] for item in before["advice"])
    line = next(line for line in advice.splitlines() if "seccomp=unconfined" in line)
    report = _report(_podman(place, *user, *shlex.split(line)[2:-1]), place)
    assert report["namespaces"]["kind"] == "user"


def _report(before: list[str], place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_done(before, [*FORGE, "doctor", "--json"], directory=place / "work"))
    return found


def _advice(before: list[str], place: Path) -> str:
    return "\n".join(item["do"] for item in _report(before, place)["advice"])
