"""The files of a job on a node: the plan fits the node's abilities, and leftovers of copies are cleared up."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from snakemake_executor_plugin_forge.backends.slurm import exchange, fence, node
from snakemake_executor_plugin_forge.backends.slurm.copies import clear_copies, wrote_in_place
from snakemake_executor_plugin_forge.record.jsonfile import CLOSED
from snakemake_executor_plugin_forge.sandbox.cgroups.slurm_step import StepCgroup
from snakemake_executor_plugin_forge.spec.file_policy import fitted, plan_files
from snakemake_executor_plugin_forge.spec.host import POLLED, Host
from snakemake_executor_plugin_forge.spec.job import (
    FilePolicy,
    Files,
    JobRequest,
    LaunchSpec,
    RunContext,
    Target,
    Undeclared,
)
from snakemake_executor_plugin_forge.staging import journal
from snakemake_executor_plugin_forge.staging.journal import Move
from snakemake_executor_plugin_forge.staging.liveness import may_live
from snakemake_executor_plugin_forge.staging.recovery import recover_dead_runs
from tests.unit.test_slurm_parse import spec

ABLE = Host(1 << 30, 4, "cgroup-v1", "", "user", "", ("mount-ns",))
TARGETS = (Target("/work/out/a.txt", "out/a.txt"), Target("/data/b.txt", "/data/b.txt"))
GUARD = Files(FilePolicy.GUARD, layers=("/work", "/data"), targets=TARGETS, inputs=("/work/in.txt",), home="/home/me",
              hidden=("/secret",), writable=("/cache",), keep_incomplete=True)


def planned(**changes: object) -> LaunchSpec:
    return replace(spec(), files=replace(GUARD, **changes))  # type: ignore[arg-type]


def test_an_able_node_does_as_planned() -> None:
    assert fitted(GUARD, ABLE, ("/", "/proc"), "/home/me") == GUARD
    assert fitted(Files(), ABLE, (), None) == Files()
    got = node.enclosed(planned(), ABLE, (), "/home/me")
    assert got.isolation.files == "guard"
    assert {"layers", "read-only"} <= set(got.isolation.mechanisms)
    assert got.isolation.not_enforced == ()


def test_a_node_with_other_mounts_has_other_layers() -> None:
    got = fitted(GUARD, ABLE, ("/", "/work/out", "/work/ref", "/home/me/tools", "/elsewhere"), "/home/me")
    assert got.layers == ("/work", "/data", "/work/out")
    assert got.mounts == ("/work/out", "/work/ref", "/home/me/tools")
    assert fitted(GUARD, replace(ABLE, layers_apart=True), (), "/home/me").apart
    assert fitted(GUARD, ABLE, ("/home/me/tools",), None) == replace(GUARD, home=None)
    assert fitted(GUARD, replace(ABLE, home_layer=False), (), "/home/me").home is None


def test_a_node_without_layers_is_open_and_says_so() -> None:
    for host in (replace(ABLE, layers_note="refused"), replace(ABLE, namespaces="none", namespaces_note="refused")):
        got = node.enclosed(planned(), replace(host, not_enforced=("cpu",)), (), "/home/me")
        assert not got.files.staged
        assert (got.files.layers, got.files.targets, got.files.hidden) == ((), (), ("/secret",))
        assert got.isolation.files == "open"
        assert got.isolation.not_enforced == ("cpu", "files")
        assert "layers" not in got.isolation.mechanisms
        confined = {"/work", "/data", "/home/me", "/tmp", "/cache"}
        assert confined <= set(got.files.writable) if host.namespaces == "none" else got.files.writable == ()


def test_slurms_cgroup_stands_in_where_forge_can_make_none() -> None:
    polled = replace(ABLE, cgroup=POLLED, not_enforced=("cpu", "run"))
    step = StepCgroup("/c/job_1", "/c", 1, 0, 0, 1 << 30)
    assert node.within_slurm(polled, None, 4) is polled
    assert node.within_slurm(polled, replace(step, memory_limit_bytes=None), 4) is polled
    for host, cpus, cgroup, missing in ((polled, 4, node.SLURM_CGROUP, ()), (polled, 2, node.SLURM_CGROUP, ("cpu",)),
                                        (ABLE, 4, "cgroup-v1", ())):
        got = node.within_slurm(host, step, cpus)
        assert (got.cgroup, got.not_enforced, got.mechanisms[-1]) == (cgroup, missing, node.SLURM_CGROUP)


def test_what_is_mounted_in_the_home_directory_is_seen_through_its_layer() -> None:
    run = RunContext("r", "/work", "/work/.snakemake/forge", (), home="/home/me",
                     mount_points=("/", "/home/me/tools", "/home/you", "/work/ref"))
    request = JobRequest("a", {}, 1, 1, {}, "true")
    files = plan_files(request, FilePolicy.GUARD, Undeclared.KEEP, ABLE, run, nested=False)
    assert files.mounts == ("/home/me/tools", "/work/ref")


# -- copies


class Place:
    """An attempt of a run in a working directory, whose copies have layers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / ".snakemake/forge"
        self.run = self.state / "runs/R"
        self.attempt = str(self.run / "slurm/b1/0")
        self.run.mkdir(parents=True)
        (self.run / "run.json").write_text(json.dumps({"host": "elsewhere", "ended": None}))
        self.spec = replace(spec(), workdir=str(root), job_dir=str(self.run / "00001-map"),
                            files=Files(FilePolicy.GUARD, layers=(str(root),)))

    def copy(self) -> tuple[fence.CopyClaim, Path]:
        """Start a copy with two files in its layer."""
        claim = fence.claim(self.attempt, "test")
        assert claim is not None
        layer = self.state / "staging" / f"{exchange.copy_name('R', self.attempt, claim.number)}-{os.getpid()}-1"
        (layer / "upper").mkdir(parents=True)
        for name in "ab":
            (layer / "upper" / name).write_text(f"of copy {claim.number}")
        return claim, layer

    def journal(self, layer: Path) -> None:
        """Leave the copy as if it had been killed between two renames."""
        moves = tuple(Move.of(str(layer / "upper" / name), str(self.root / name)) for name in "ab")
        journal.write(str(layer), journal.Journal(moves))
        os.rename(layer / "upper" / "a", self.root / "a")


def test_nothing_of_a_forbidden_copy_is_published(tmp_path: Path) -> None:
    place = Place(tmp_path)
    claim, layer = place.copy()
    assert fence.forbid(place.attempt, "the test")
    assert not fence.is_current(claim)
    assert fence.process_of(place.attempt, 1) == os.getpid()
    assert clear_copies(place.spec, place.attempt) == []
    assert not layer.exists()
    assert not (tmp_path / "a").exists()


def test_copies_of_a_dead_run_are_left_alone_until_it_is_closed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    claim, layer = place.copy()
    assert fence.take(claim)
    place.journal(layer)
    assert may_live(f"{place.state}/runs/R@b1.0.1", 1)
    assert recover_dead_runs(str(place.state), str(tmp_path), "test").removed == 0
    assert not (tmp_path / "b").exists()
    for record, alive in (({"ended": "now"}, False), ({"ended": "now", "declared_dead": True}, True)):
        (place.run / "run.json").write_text(json.dumps(record))
        assert may_live(f"{place.state}/runs/R@b1.0.1", 1) is alive
    (place.run / CLOSED).touch()
    recovered = recover_dead_runs(str(place.state), str(tmp_path), "test")
    assert recovered.published == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert not layer.exists()


def test_a_copy_that_wrote_in_place_is_known_by_its_record(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.copy()
    place.copy()
    assert not wrote_in_place(place.spec, place.attempt)
    second = Path(f"{place.spec.job_dir}.copy2")
    second.mkdir()
    (second / "spec.json").write_text(json.dumps({"isolation": {"files": "open"}}))
    assert wrote_in_place(place.spec, place.attempt)
    assert not wrote_in_place(replace(place.spec, files=Files()), place.attempt)
