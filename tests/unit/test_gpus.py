"""GPUs: requests of rules, devices of a run, and the variables that tell a job its own."""

from __future__ import annotations

import os
import stat
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel import syscalls
from snakemake_executor_plugin_forge.plugin.config import to_config
from snakemake_executor_plugin_forge.plugin.settings import ExecutorSettings
from snakemake_executor_plugin_forge.sandbox.enter import SandboxKey
from snakemake_executor_plugin_forge.sandbox.filesystem import mounts
from snakemake_executor_plugin_forge.sandbox.filesystem.mounts import is_gpu
from snakemake_executor_plugin_forge.sandbox.gpus import find
from snakemake_executor_plugin_forge.spec.errors import RequirementError, UsageError
from snakemake_executor_plugin_forge.spec.host import Host
from snakemake_executor_plugin_forge.spec.job import Config, JobRequest, Require, RunContext
from snakemake_executor_plugin_forge.spec.plan import plan, with_gpus
from snakemake_executor_plugin_forge.spec.resources import (
    check_group,
    check_required,
    choose_gpus,
    gpu_count,
    gpu_number,
)

from ..child import in_child

NVIDIA = ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia10")
AMD = ("/dev/dri/renderD128", "/dev/dri/renderD129")
HOST = Host(2**33, 4, "cgroup-v2", "", "root", "", ("mount-ns",), NVIDIA)
RUN = RunContext("run", "/work", "/work/.snakemake/forge", ())


@pytest.mark.parametrize(
    ("resources", "count"),
    [({}, 0), ({"gpu": 2}, 2), ({"gpus": 3}, 3), ({"gpu": 0}, 0), ({"gpu": 1, "gpus": 1}, 1), ({"gpu": "<TBD>"}, 0), ({"gpu": 4}, 3)],
)
def test_both_names_count(resources: dict[str, object], count: int) -> None:
    assert gpu_count("r", resources, NVIDIA) == count


@pytest.mark.parametrize("resources", [{"gpu": -1}, {"gpus": "a100"}, {"gpu": 1.5}, {"gpu": 1, "gpus": 2}])
def test_what_cannot_be_had_is_refused(resources: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"Rule r: gpus?=.*(whole number|mean the same)"):
        gpu_count("r", resources, NVIDIA)


def test_too_few_are_a_note_or_refused() -> None:
    request = JobRequest("r", {}, 1, 1, {"gpu": 4}, "true")
    assert plan(request, 1, "", "", Config(), HOST, RUN).isolation.not_enforced == ("gpu",)
    with pytest.raises(RequirementError, match=r"this run has 3 \(/dev/nvidia0, .*--set-resources r:gpu=3"):
        plan(request, 1, "", "", Config(require=Require.LIMITS), HOST, RUN)
    with pytest.raises(RequirementError, match=r"this run has no GPU: .*--set-resources r:gpu=0"):
        check_required("r", {"gpu": 1}, Require.FULL, replace(HOST, gpus=()))


def test_only_one_of_a_group_may_have_some() -> None:
    check_group([("a", {"gpu": 2}), ("b", {})], NVIDIA)
    with pytest.raises(UsageError, match="Rules a and c run at the same time"):
        check_group([("a", {"gpu": 1}), ("b", {}), ("c", {"gpus": 1})], NVIDIA)


def test_libraries_count_from_zero_and_the_record_has_the_hosts_numbers() -> None:
    spec = plan(JobRequest("r", {}, 1, 1, {"gpu": 2}, "true"), 1, "", "", Config(), HOST, RUN)
    assert (spec.gpu_count, spec.gpus, spec.limits.gpus) == (2, (), ())
    assigned = with_gpus(spec, ("/dev/nvidia1", "/dev/nvidia10"))
    assert assigned.limits.as_json()["gpus"] == (1, 10)
    assert assigned.environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "ROCR_VISIBLE_DEVICES" not in assigned.environment
    amd = with_gpus(spec, AMD)
    assert amd.limits.gpus == (128, 129)
    assert {amd.environment[f"{kind}_VISIBLE_DEVICES"] for kind in ("ROCR", "HIP")} == {"0,1"}
    assert "CUDA_VISIBLE_DEVICES" not in amd.environment


def test_a_process_that_waits_is_for_the_same_devices_only() -> None:
    spec = plan(JobRequest("r", {}, 1, 1, {"gpu": 1}, "true"), 1, "", "", Config(), HOST, RUN)
    assert SandboxKey.of(with_gpus(spec, NVIDIA[:1])) != SandboxKey.of(with_gpus(spec, NVIDIA[1:2]))
    assert SandboxKey.of(replace(spec, gpu_count=0)).gpus == ()


@pytest.mark.parametrize(
    ("found", "kfd", "environment", "chosen"),
    [
        (("/dev/nvidia10", "/dev/nvidia0", "/dev/nvidia1"), False, {}, NVIDIA),
        (AMD, True, {}, AMD),
        (AMD, False, {}, ()),  # of another maker, or a display
        ((*AMD, *NVIDIA), True, {}, NVIDIA),
        (NVIDIA, False, {"SLURM_JOB_GPUS": "1,10", "CUDA_VISIBLE_DEVICES": "0,1"}, NVIDIA[1:]),
        (NVIDIA, False, {"CUDA_VISIBLE_DEVICES": "2"}, NVIDIA[2:]),
        (NVIDIA, False, {"CUDA_VISIBLE_DEVICES": ""}, ()),
        (NVIDIA, False, {"CUDA_VISIBLE_DEVICES": "-1"}, ()),
        (NVIDIA, False, {"ROCR_VISIBLE_DEVICES": "0"}, NVIDIA),
        (AMD, True, {"ROCR_VISIBLE_DEVICES": "1"}, AMD[1:]),
        ((), False, {"CUDA_VISIBLE_DEVICES": "GPU-4711"}, ()),
    ],
)
def test_auto_takes_what_snakemake_may_use(
    found: tuple[str, ...], kfd: bool, environment: dict[str, str], chosen: tuple[str, ...]
) -> None:
    assert choose_gpus(found, kfd, environment) == chosen


def test_a_restriction_that_is_no_number_is_not_guessed_at() -> None:
    with pytest.raises(UsageError, match=r"CUDA_VISIBLE_DEVICES=GPU-4711 .* --forge-gpus /dev/nvidia0"):
        choose_gpus(NVIDIA, False, {"CUDA_VISIBLE_DEVICES": "GPU-4711"})


@pytest.mark.parametrize(("text", "nodes"), [("auto", None), ("none", ()), ("/dev/nvidia1, /dev/dri/renderD128", None)])
def test_the_flag(text: str, nodes: tuple[str, ...] | None) -> None:
    config = to_config(ExecutorSettings(gpus=text))
    assert config.gpus == (nodes if "/" not in text else ("/dev/nvidia1", "/dev/dri/renderD128"))


@pytest.mark.parametrize("text", ["all", "nvidia0", "/dev/nvidiactl", "/dev/../etc/x1", "/dev/nvidia0,", "/tmp/gpu0",
                                  "/dev/nvidia0,/dev/nvidia0"])
def test_a_flag_that_cannot_be_used(text: str) -> None:
    with pytest.raises(UsageError, match="--forge-gpus="):
        to_config(ExecutorSettings(gpus=text))


def test_what_controls_all_devices_is_no_device() -> None:
    assert [node for node in (*NVIDIA, *AMD) if not is_gpu(node)] == []
    assert not any(map(is_gpu, ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-modeset", "/dev/kfd", "/dev/dri/card0")))
    assert [gpu_number(node) for node in (*NVIDIA, *AMD)] == [0, 1, 10, 128, 129]


def test_devices_that_are_wanted_must_be_there(tmp_path: Path) -> None:
    node = f"/dev/forge-{uuid.uuid4().hex[:8]}-0"
    with pytest.raises(UsageError, match=node):
        find((node,), {})
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    try:
        assert find((node,), {}) == (node,)
    finally:
        os.unlink(node)
    assert find((), {}) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_with_the_network_off_there_is_no_infiniband(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """InfiniBand traffic leaves the host from any network namespace."""
    (tmp_path / "uverbs0").touch()
    monkeypatch.setattr(mounts, "_RDMA", str(tmp_path))

    def seen() -> tuple[list[str], bool]:
        mounts.enter_namespace("root")
        syscalls.run(mounts.offline_steps())
        return os.listdir(tmp_path), os.access(tmp_path, os.W_OK)

    assert in_child(seen) == ([], False)
    assert os.listdir(tmp_path) == ["uverbs0"]
    monkeypatch.setattr(mounts, "_RDMA", str(tmp_path / "none"))
    assert mounts.offline_steps() == []
