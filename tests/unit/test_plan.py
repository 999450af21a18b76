"""Decisions on the plan of a job: limits, files, devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snakemake_executor_plugin_forge.spec.errors import RequirementError, UsageError
from snakemake_executor_plugin_forge.spec.file_policy import inside_outputs
from snakemake_executor_plugin_forge.spec.host import Host, check_requirement, isolation_line
from snakemake_executor_plugin_forge.spec.job import (
    Config,
    CpuMode,
    FilePolicy,
    JobRequest,
    Network,
    OnDisconnect,
    Require,
    RunContext,
    Target,
    TargetKind,
)
from snakemake_executor_plugin_forge.spec.plan import exposures, plan
from snakemake_executor_plugin_forge.spec.resources import capped, check_resources, without_tiny

GIB = 1024**3
HOST = Host(7 * GIB, 4, "cgroup-v2", "/sys/fs/cgroup/x", "root", "", ("mount-ns", "landlock", "seccomp"))
RUN = RunContext("run", "/work", "/work/.snakemake/forge", ())
REQUEST = JobRequest("call", {"sample": "A"}, 1, 2, {"mem_mb": 512, "runtime": 3, "tmpdir": "/tmp"}, "true")


def test_declared_resources_become_limits() -> None:
    spec = plan(REQUEST, 7, "true", "nursery", Config(), HOST, RUN)
    assert (spec.limits.memory_bytes, spec.limits.cpus, spec.limits.wall_seconds) == (512 * 1024**2, 2, 180)
    assert spec.name == "00007-call"
    assert spec.job_dir == "/work/.snakemake/forge/runs/run/00007-call"
    assert spec.scratch_base == "/tmp/forge-run"


def test_settings_fill_in_what_a_rule_does_not_say() -> None:
    request = replace(REQUEST, resources={})
    spec = plan(request, 1, "", "", Config(memory_bytes=99, wall_seconds=5, pids=6), HOST, RUN)
    assert (spec.limits.memory_bytes, spec.limits.wall_seconds, spec.limits.pids) == (99, 5, 6)


def test_the_line_of_a_run_names_what_is_missing_and_who_knows_more() -> None:
    assert isolation_line(HOST, Network.ON, FilePolicy.GUARD) == (
        "Forge: limits by cgroup-v2, 7.0 GiB for all jobs together; mount-ns, landlock, seccomp; files guard; "
        "network on.")
    soft = replace(HOST, cgroup="soft", not_enforced=("cpu", "run"), namespaces="none", mechanisms=("subreaper",))
    assert isolation_line(soft, Network.ON, FilePolicy.GUARD) == (
        "Forge: soft limits (memory and processes polled, none of CPU, 7.0 GiB for each job); subreaper (no namespaces); "
        "files open (guard cannot be had: no namespaces); network on; more: snakemake-forge doctor.")
    too_much = replace(HOST, memory_bytes=2 * GIB)
    assert "7.0 GiB (--forge-run-memory; there are only 2.0 GiB) for all jobs together" in isolation_line(
        too_much, Network.ON, FilePolicy.GUARD)
    assert "but not of cpu" in isolation_line(replace(HOST, not_enforced=("cpu",)), Network.ON, FilePolicy.OPEN)


def test_network_off_is_not_forgotten_where_it_cannot_be_had() -> None:
    with pytest.raises(UsageError, match=r"Rule call: network off .* cannot be had"):
        plan(REQUEST, 1, "", "", Config(network=Network.OFF), replace(HOST, namespaces="none"), RUN)


def test_a_rule_overrides_settings() -> None:
    request = replace(REQUEST, resources={"forge_network": "off", "forge_cpu": "share"})
    spec = plan(request, 1, "", "", Config(), HOST, RUN)
    assert (spec.network, spec.cpu_mode) == (Network.OFF, CpuMode.SHARE)
    assert "net-ns" in spec.isolation.mechanisms


def test_names_of_rules_are_safe_in_paths() -> None:
    assert plan(replace(REQUEST, rule="../x y"), 1, "", "", Config(), HOST, RUN).name == "00001-.._x_y"


def test_outputs_directly_in_tmp_are_carried_and_others_exposed() -> None:
    request = replace(REQUEST, inputs=("/tmp/in.txt", "rel.txt"), outputs=("/tmp/o.txt", "/tmp/d/o.txt", "/data/o"))
    spec = plan(request, 1, "", "", Config(), HOST, RUN)
    assert spec.carried == ("/tmp/o.txt",)
    assert spec.exposed == ("/tmp/d", "/tmp/in.txt")


@pytest.mark.parametrize(("changes", "files", "here", "elsewhere"), [
    ({}, "guard", True, True), ({}, "open", False, False), ({"targets": ()}, "guard", False, False),
    ({"targets": (Target("/work/a.log", "a.log", TargetKind.LOG),)}, "guard", False, False),
    ({"together": True}, "guard", False, False), ({"shadow": True}, "guard", False, False),
    ({"live": ("/work/d/fifo",)}, "guard", False, False), ({"outputs": ("a", "/tmp/o")}, "guard", True, False)])
def test_a_later_run_adopts_only_what_is_staged_and_shared_with_nobody(
    changes: dict[str, Any], files: str, here: bool, elsewhere: bool
) -> None:
    request = replace(REQUEST, targets=(Target("/work/a", "a"),), outputs=("a",), resources={"forge_files": files})
    config = Config(on_disconnect=OnDisconnect.FINISH)
    for remote, adoptable in ((False, here), (True, elsewhere)):
        spec = plan(replace(request, **changes), 1, "", "", config, HOST, RUN, remote=remote)
        assert (spec.adoptable, spec.detachable) == (adoptable, adoptable and not remote)


def test_exposures_keep_only_the_outermost() -> None:
    assert exposures(["/tmp/a/b/c", "/tmp/a/x"], ("/tmp/a",), set()) == ("/tmp/a",)


@pytest.mark.parametrize("value", ["<TBD>", None, True])
def test_values_that_are_not_known_yet_are_not_judged(value: object) -> None:
    check_resources("r", {"mem_mb": value, "gpu": None}, HOST)


@pytest.mark.parametrize(("resources", "words"), [
    ({"mem_mb": 1}, "mem_mb=1 is less than the 4 MB"), ({"mem_mb": -1}, "mem_mb=-1"), ({"disk_mb": -1}, "disk_mb=-1"),
    ({"mem_mb": 99999999}, "mem_mb=99999999 is more than .*--set-resources r:mem_mb=1024, .* --resources mem_mb=1024; or raise --forge-run-memory"), ({"runtime": -5}, "runtime=-5 is below zero. It counts minutes; 0 means the same as no runtime at all"),
    ({"forge_network": "of"}, "forge_network='of' is not one of on, off"),
    ({"forge_nice": -5}, "resource forge_nice=-5 must be a whole number between 0 and 19")])
def test_absurd_values_are_refused(resources: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=f"Rule r: .*{words}"):
        check_resources("r", resources, replace(HOST, run_memory_bytes=GIB))


@pytest.mark.parametrize(
    ("require", "host", "missing"),
    [
        (Require.LIMITS, replace(HOST, cgroup="soft", cgroup_note="why"), "limits that the kernel enforces .why."),
        (Require.LIMITS, replace(HOST, not_enforced=("cpu",)), "limits of cpu"),
        (Require.FULL, replace(HOST, namespaces="none", namespaces_note="because"), "because"),
    ],
)
def test_requirements_name_what_is_missing(require: Require, host: Host, missing: str) -> None:
    check_requirement(require, HOST)
    with pytest.raises(RequirementError, match=missing):
        check_requirement(require, host)


def test_what_a_runtime_may_write_does_not_narrow_what_an_open_job_may() -> None:
    config = Config(files=FilePolicy.OPEN, writable=("/data/cache",))
    without_mounts = replace(HOST, namespaces="none")
    assert plan(REQUEST, 1, "", "", config, without_mounts, RUN).files.writable == ()
    guarded = plan(REQUEST, 1, "", "", replace(config, files=FilePolicy.GUARD), without_mounts, RUN).files
    assert (guarded.policy, guarded.writable[0], guarded.writable[-1]) == (FilePolicy.OPEN, "/work", "/data/cache")


def test_what_is_mounted_in_a_layer_is_not_seen_through_it() -> None:
    run = replace(RUN, mount_points=("/", "/work", "/work/big", "/data", "/worked"))
    targets = tuple(Target(path, path) for path in ("/work/a/o", "/work/big/x/o", "/data/o", "/data/d/o"))
    request = replace(REQUEST, targets=targets, real_inputs=("/work/i", "/work/big/i", "/work/big/x/i", "/data/i", "/i"))
    files = plan(request, 1, "", "", Config(), HOST, run).files
    assert files.layers == ("/work", "/data", "/work/big/x")
    assert files.mounts == ("/work/big",)
    assert files.inputs == ("/work/i", "/work/big/x/i", "/data/i")


def test_limits_next_to_zero_are_left_out() -> None:
    """Functions of the input's size give such limits for small inputs."""
    asked = {"mem_mb": 3, "disk_mb": 0, "runtime": 1, "x": 0}
    kept, said = without_tiny(asked)
    assert kept == {"runtime": 1, "x": 0} and said is not None and "mem_mb=3 and disk_mb=0" in said
    assert without_tiny(kept) == (kept, None)
    assert plan(replace(REQUEST, resources={"mem_mb": 0}), 1, "", "", Config(), HOST, RUN).limits.memory_bytes is None


def test_a_later_try_gets_what_the_run_has() -> None:
    kept, said = capped({"mem_mb": 8000}, 3, 7 * GIB)
    assert kept == {"mem_mb": 7 * 1024} and said == "asks for mem_mb=8000 at attempt 3; it has mem_mb=7168, all that this run may use"
    assert capped({"mem_mb": 7168}, 3, 7 * GIB) == ({"mem_mb": 7168}, None)
    assert capped({"mem_mb": "<TBD>"}, 3, 7 * GIB)[1] is None


def test_devices_are_not_staged() -> None:
    paths = ("/dev/null", "/proc/7/fd/1", "/dev/pts/0", "/dev/shm/d/o", "/device/o")
    request = replace(REQUEST, targets=tuple(Target(path, path) for path in paths))
    files = plan(request, 1, "", "", Config(), HOST, RUN).files
    assert files.layers == ("/work", "/dev/shm/d", "/device")
    assert [target.path for target in files.targets] == ["/dev/shm/d/o", "/device/o"]


def test_targets_inside_an_output_directory_belong_to_the_outermost() -> None:
    directories = {"/w/d", "/w/d/e", "/w/u"}
    targets = [Target(path, path, directory=path in directories, update=path == "/w/u")
               for path in ("/w/d/e/a", "/w/d/e", "/w/d", "/w/dd", "/w/u", "/w/u/a")]
    found = inside_outputs(targets)
    assert {top: [target.path for target in inside] for top, inside in found.items()} == {"/w/d": ["/w/d/e/a", "/w/d/e"], "/w/u": ["/w/u/a"]}
