"""Directories that get a layer when a job has outputs in many."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from snakemake_executor_plugin_forge.sandbox.filesystem.overlay import LayerPool
from snakemake_executor_plugin_forge.spec.file_policy import plan_files
from snakemake_executor_plugin_forge.spec.job import FilePolicy, Files, JobRequest, RunContext, Target, Undeclared
from snakemake_executor_plugin_forge.staging.scene import LayerPlace, Scene
from snakemake_executor_plugin_forge.staging.undeclared import decide

from .test_plan import HOST


def layers(*paths: str, unwritable: tuple[str, ...] = (), points: tuple[str, ...] = ("/", "/data")) -> tuple[str, ...]:
    run = RunContext("run", "/work", "/work/.snakemake/forge", (), home="/people/me", mount_points=points,
                     may_cover=lambda directory: directory not in unwritable)
    request = JobRequest("r", {}, 1, 1, {}, "true", targets=tuple(Target(path, path) for path in paths))
    return plan_files(request, FilePolicy.GUARD, Undeclared.KEEP, HOST, run, nested=False).layers


def outputs(directory: str, number: int = 2000) -> list[str]:
    return [f"{directory}/{i}/out.txt" for i in range(number)]


def test_a_layer_is_open_to_its_user_alone(tmp_path: Path) -> None:
    """Otherwise every user could run a set-user-ID program in root's layer. The job sees the mode of the place."""
    tmp_path.chmod(0o777)
    (layer,) = LayerPool().take_all(Files(FilePolicy.GUARD, layers=(str(tmp_path),)), str(tmp_path), "forge-r", "")
    assert stat.S_IMODE(os.stat(layer.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(layer.upper).st_mode) == 0o777
    assert stat.S_IMODE(os.stat(os.path.dirname(layer.directory)).st_mode) & 0o500 == 0o500


def test_few_directories_have_a_layer_each() -> None:
    assert layers("/work/a/x", *outputs("/data/p", 3)) == ("/work", "/data/p/0", "/data/p/1", "/data/p/2")


def test_many_directories_have_one_over_a_directory_around_them() -> None:
    assert layers(*outputs("/data/p")) == ("/work", "/data/p")
    assert layers(*outputs("/data/p"), *outputs("/scratch/q")) == ("/work", "/data/p", "/scratch/q")


def test_a_layer_covers_no_home_no_working_directory_and_nothing_of_the_system() -> None:
    assert set(layers(*outputs("/people/me/x"), *outputs("/people/you"))) == {"/work", "/people/me/x", "/people/you"}
    assert set(layers(*outputs("/srv/a"), *outputs("/srv/b"))) == {"/work", "/srv/a", "/srv/b"}
    assert len(layers(*outputs("/srv", 20))) == 21


def test_a_layer_is_in_a_directory_that_can_hold_it() -> None:
    assert set(layers(*outputs("/data/p/a"), *outputs("/data/p/b"), unwritable=("/data/p",))) == {"/work", "/data/p/a", "/data/p/b"}


def test_a_layer_covers_one_file_system() -> None:
    found = layers(*outputs("/data/p"), *outputs("/data/p/disk"), points=("/", "/data", "/data/p/disk"))
    assert set(found) == {"/work", "/data/p", "/data/p/disk"}


def test_inputs_that_are_not_mounted_may_not_be_changed(tmp_path: Path) -> None:
    root, upper = tmp_path / "root", tmp_path / "upper"
    for place, text in ((root, "old\n"), (upper, "new\n")):
        (place / "directory").mkdir(parents=True)
        for name in ("input", "directory/inner", "other"):
            (place / name).write_text(text)
    inputs = (f"{root}/input", f"{root}/directory")
    scene = Scene("r", str(root), str(tmp_path / "state"), 2**62, (LayerPlace(str(root), str(upper), True),), (), (), (),
                  allow=True, inputs=inputs)
    decided = decide(scene)
    assert {harm.path for harm in decided.harms} == {f"{root}/input", f"{root}/directory/inner"}
    assert [move.place for move in decided.moves] == [f"{root}/other"]
