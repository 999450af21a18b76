"""Mount points of cgroups, from real and captured /proc/self/mountinfo."""

from __future__ import annotations

import pytest

from snakemake_executor_plugin_forge.sandbox.cgroups.base import cgroup_mounts
from snakemake_executor_plugin_forge.sandbox.cgroups.ladder import ladder

V1 = """\
36 25 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 25 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
38 25 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
24 1 8:1 / / rw - ext4 /dev/sda1 rw
"""
OWN_V1 = "5:memory:/a/b\n4:cpu,cpuacct:/c\n0::/u\n"


def test_hybrid() -> None:
    found = cgroup_mounts(V1, OWN_V1)
    assert [(m.version, m.own) for m in found] == [
        (1, "/sys/fs/cgroup/memory/a/b"), (1, "/sys/fs/cgroup/cpu,cpuacct/c"), (2, "/sys/fs/cgroup/unified/u"),
    ]
    assert {"cpu", "cpuacct"} <= found[1].controllers


def test_container_that_sees_only_its_own_cgroup() -> None:
    mountinfo = "40 30 0:26 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
    (mount,) = cgroup_mounts(mountinfo, "0::/docker/abc/job\n")
    assert mount.own == "/sys/fs/cgroup/job"


def test_cgroup_namespace() -> None:
    (mount,) = cgroup_mounts("40 30 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "0::/\n")
    assert mount.own == "/sys/fs/cgroup"


def test_hosts_with_v1_do_not_look_further_and_say_what_is_missing() -> None:
    with pytest.raises(OSError, match="the controllers pids are not mounted as v1"):
        next(iter(ladder(cgroup_mounts(V1, OWN_V1), "forge-x", 1, 1)))[1]()


def test_without_a_cgroup_file_system_that_is_the_reason() -> None:
    with pytest.raises(OSError, match="no cgroup file system is mounted"):
        next(iter(ladder([], "forge-x", 1, 1)))[1]()


def test_inside_a_slurm_job_the_user_manager_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = cgroup_mounts("40 30 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "0::/slurm/job_1\n")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    make = dict(ladder(mounts, "forge-x", 1, 1))["systemd scope"]
    with pytest.raises(OSError, match="it would leave the limits of the Slurm job"):
        make()
