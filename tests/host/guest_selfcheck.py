"""Tests of the guest itself: they run inside it, before the tests of Forge, and nowhere else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20
# Runs in its own delegated cgroup: moves to a leaf, then limits a child that takes too much memory.
LIMIT_A_CHILD = """
set -eu
here=/sys/fs/cgroup$(sed 's/^0:://' /proc/self/cgroup)
mkdir "$here/leaf" "$here/job"
echo $$ > "$here/leaf/cgroup.procs"
echo '+memory +pids +cpu' > "$here/cgroup.subtree_control"
echo 32M > "$here/job/memory.max"
sh -c 'echo $$ > "$1/cgroup.procs"; exec "$2" -c "bytearray(128 << 20)"' sh "$here/job" "$1" || true
grep -qx 'oom_kill 1' "$here/job/memory.events"
"""


def own_cgroup() -> Path:
    """Find the cgroup of this process."""
    line = Path("/proc/self/cgroup").read_text().strip()
    assert line.startswith("0::/"), f"not pure cgroup v2: {line}"
    return CGROUPS / line.removeprefix("0::/")


@pytest.mark.kernel
@pytest.mark.v2
@pytest.mark.kernel_user
@pytest.mark.v2_user
def test_only_cgroup_v2_is_mounted() -> None:
    """There is one cgroup file system, of version 2, in the usual place."""
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = [(left.split()[4], right.split()[0]) for left, right in mounts if right.startswith("cgroup")]
    assert found == [(str(CGROUPS), "cgroup2")]


@pytest.mark.kernel
@pytest.mark.v2
def test_root_limits_memory() -> None:
    """A child cgroup that root makes limits memory."""
    assert os.geteuid() == 0
    group = CGROUPS / "forge-selfcheck"
    group.mkdir()
    try:
        (group / "memory.max").write_text(str(32 * MIB))
        command = f'echo $$ > {group}/cgroup.procs; exec {sys.executable} -c "bytearray({128 * MIB})"'
        done = subprocess.run(["sh", "-c", command], check=False)
        assert done.returncode == -signal.SIGKILL
        assert "oom_kill 1" in (group / "memory.events").read_text().splitlines()
    finally:
        group.rmdir()


@pytest.mark.kernel
@pytest.mark.v2
def test_root_has_a_delegated_cgroup() -> None:
    """All controllers that Forge uses are there for the tests as root."""
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set((own_cgroup() / "cgroup.controllers").read_text().split())


@pytest.mark.kernel_user
@pytest.mark.v2_user
def test_user_has_a_delegated_cgroup() -> None:
    """An ordinary user can make cgroups in the service that systemd gave it."""
    assert os.geteuid() != 0
    group = own_cgroup()
    assert "user@1000.service" in group.parts
    assert {"cpu", "memory", "pids"} <= set((group / "cgroup.controllers").read_text().split())
    child = group / "forge-selfcheck"
    child.mkdir()
    child.rmdir()


@pytest.mark.kernel_user
@pytest.mark.v2_user
def test_user_limits_memory(tmp_path: Path) -> None:
    """An ordinary user can limit memory, from its own leaf cgroup."""
    script = tmp_path / "limit.sh"
    script.write_text(LIMIT_A_CHILD)
    command = ["systemd-run", "--user", "--quiet", "--wait", "--pipe", "--collect", "-p", "Delegate=yes"]
    done = subprocess.run([*command, "bash", str(script), sys.executable], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.kernel_user
@pytest.mark.v2_user
def test_user_can_make_namespaces() -> None:
    """An ordinary user may mount in its own namespaces."""
    command = ["unshare", "-Urmp", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.kernel
@pytest.mark.v2
@pytest.mark.kernel_user
@pytest.mark.v2_user
def test_checkout_cannot_be_changed() -> None:
    """Errors of the tests cannot harm the checkout on the host."""
    checkout = Path(os.environ["FORGE_GUEST_CHECKOUT"])
    with pytest.raises(OSError, match=r"Read-only file system|Permission denied"):
        (checkout / "forge-selfcheck").touch()


@pytest.mark.kernel
@pytest.mark.v2
def test_a_workflow_runs(tmp_path: Path) -> None:
    """Snakemake starts from its script and writes, with the host's interpreter and packages."""
    (tmp_path / "Snakefile").write_text('rule:\n    output: "out.txt"\n    shell: "echo done > {output}"\n')
    command = [str(Path(sys.executable).with_name("snakemake")), "--executor", "forge", "-j1"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.txt").read_text() == "done\n"
