"""Advice for each refusal of the host, and the table of mechanisms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snakemake_executor_plugin_forge.cli.doctor import Facts, advise, table
from snakemake_executor_plugin_forge.spec.host import Host, Rung

from .test_plan import HOST

FACTS = Facts(1000, "eve", None, in_slurm_job=False, has_systemd=True, cgroup_versions=(2,), sysctls={})
SOFT = replace(HOST, cgroup="soft", cgroup_note="no", not_enforced=("cpu", "run"), tried=(Rung("cgroup v2", "no"),))
READ_ONLY = replace(SOFT, tried=(Rung("cgroup v2", "[Errno 30] Read-only file system: '/x'"),))
BARE = replace(HOST, namespaces="none", namespaces_note="no")


@pytest.mark.parametrize(
    ("host", "facts", "words"),
    [
        (SOFT, FACTS, "loginctl enable-linger eve"),
        (SOFT, FACTS, "Delegate=cpu cpuset io memory pids"),
        (SOFT, replace(FACTS, cgroup_versions=(1, 2)), "systemd.unified_cgroup_hierarchy=1"),
        (SOFT, replace(FACTS, in_slurm_job=True), "ConstrainRAMSpace=yes"),
        (READ_ONLY, replace(FACTS, container="podman"), "--security-opt unmask=/sys/fs/cgroup"),
        (READ_ONLY, replace(FACTS, container="docker"), "docker run --privileged"),
        (READ_ONLY, replace(FACTS, uid=0, container="podman", cgroup_versions=(1,)), "-v /sys/fs/cgroup:/sys/fs/cgroup:rw"),
        (BARE, replace(FACTS, uid=0, container="podman"), "podman run --cap-add SYS_ADMIN"),
        (READ_ONLY, replace(FACTS, uid=0), "mount -o remount,rw /sys/fs/cgroup"),
        (replace(HOST, not_enforced=("cpu",)), FACTS, "/etc/systemd/system/user@.service.d/delegate.conf"),
        (replace(HOST, io_weight_note="x", io_controller=False), FACTS, "Delegate=cpu cpuset io memory pids"),
        (replace(HOST, io_weight_note="no disk"), replace(FACTS, uid=0), "echo bfq > /sys/block/DISK/queue/scheduler"),
        (BARE, replace(FACTS, sysctls={"user.max_user_namespaces": "0"}), "user.max_user_namespaces=10000"),
        (BARE, replace(FACTS, sysctls={"kernel.unprivileged_userns_clone": "0"}), "unprivileged_userns_clone=1"),
        (BARE, replace(FACTS, sysctls={"kernel.apparmor_restrict_unprivileged_userns": "1"}), "restrict_unprivileged_userns=0"),
        (BARE, replace(FACTS, container="docker"), "seccomp=unconfined"),
    ],
)
def test_each_cause_has_its_advice(host: Host, facts: Facts, words: str) -> None:
    assert words in "\n".join(item.do for item in advise(host, facts))


def test_no_advice_where_nothing_is_missing() -> None:
    assert list(advise(HOST, FACTS)) == []
    assert {row.state for row in table(HOST)} == {"enforced"}
    contained = replace(FACTS, container="podman")  # its disks are the host's affair
    assert list(advise(replace(HOST, io_weight_note="no disk"), contained)) == []


def test_the_table_pretends_nothing() -> None:
    states = {row.what: row.state for row in table(replace(SOFT, namespaces="none"))}
    assert states["memory"] == states["processes"] == states["end of all processes"] == "soft"
    assert states["CPU"] == states["all jobs together"] == states["network off"] == "not enforced"
    assert {r.what: r.state for r in table(replace(HOST, io_weight_note="x"))}["I/O weight"] == "not enforced"
    assert states["inputs read-only"] == states["outputs all at once"] == "not enforced"
    assert {r.what: r.how for r in table(replace(HOST, layers_note="EINVAL"))}["outputs all at once"] == "EINVAL"
