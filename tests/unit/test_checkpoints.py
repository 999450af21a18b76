"""The directory of a job's own checkpoints, on disk: one user at a time, and only of the same job."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.spec.job import Config, JobRequest, LaunchSpec, RunContext
from snakemake_executor_plugin_forge.spec.plan import plan
from snakemake_executor_plugin_forge.staging.checkpoints import Checkpoint, CheckpointInUseError, basis, take

from .test_plan import HOST

HOLDER = """
import sys
from snakemake_executor_plugin_forge.staging.checkpoints import Checkpoint
held = Checkpoint(sys.argv[1], b"one")
open(sys.argv[1] + "/x", "w").close()
print("has it", flush=True)
sys.stdin.read()
"""


def planned(workdir: Path, **changes: object) -> LaunchSpec:
    request = JobRequest("call", {"sample": "A"}, 1, 1, {}, "true", inputs=("in.txt",), outputs=("out.txt",), recipe="x")
    run = RunContext("run", str(workdir), f"{workdir}/.snakemake/forge", ())
    return plan(replace(request, **changes), 1, "true", "launcher", Config(), HOST, run)  # type: ignore[arg-type]


def test_the_same_job_has_the_same_directory_whatever_the_attempt(tmp_path: Path) -> None:
    first = planned(tmp_path)
    assert first.checkpoint == first.environment["FORGE_CHECKPOINT_DIR"]
    assert planned(tmp_path, attempt=2, resources={"mem_mb": 100}).checkpoint == first.checkpoint
    others = [planned(tmp_path, rule="other"), planned(tmp_path, wildcards={"sample": "B"}), planned(tmp_path, outputs=())]
    assert len({first.checkpoint, *(other.checkpoint for other in others)}) == 4
    strange = planned(tmp_path, rule="../x/\udcff").checkpoint
    assert strange is not None
    assert os.path.dirname(strange) == f"{tmp_path}/.snakemake/forge/checkpoints"


@pytest.mark.parametrize("change", [
    lambda place: (place / "in.txt").write_text("two"),
    lambda place: os.utime(place / "in.txt", (1, 1)),
    lambda place: (place / "in.txt").unlink(),
], ids=["content", "time", "gone"])
def test_changed_inputs_make_it_another_job(tmp_path: Path, change: Callable[[Path], object]) -> None:
    (tmp_path / "in.txt").write_text("one")
    before = basis(planned(tmp_path))
    assert basis(planned(tmp_path)) == before
    change(tmp_path)
    assert basis(planned(tmp_path)) != before


def test_another_recipe_script_or_software_makes_it_another_job(tmp_path: Path) -> None:
    spec = planned(tmp_path)
    (tmp_path / "script.py").write_text("pass")
    others = [planned(tmp_path, recipe="y"), planned(tmp_path, sources=(f"{tmp_path}/script.py",)),
              replace(spec, runtime="conda", runtime_id="abc")]
    assert len({basis(spec), *map(basis, others)}) == 4


@pytest.fixture(params=[True, False], ids=["attributes", "no attributes"])
def attributes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system has extended attributes; if not, it answers as NFS before 4.2 does."""

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if not request.param:
        monkeypatch.setattr(os, "getxattr", refuse)
        monkeypatch.setattr(os, "setxattr", refuse)
    return bool(request.param)


def test_it_stays_after_failure_and_goes_after_success(tmp_path: Path, attributes: bool) -> None:
    path = tmp_path / "checkpoints" / "job"
    for _ in range(3):
        checkpoint = Checkpoint(str(path), b"one")
        assert not checkpoint.discarded
        (path / "deep").mkdir(exist_ok=True)
        (path / "deep" / "state").write_text("x")
        checkpoint.end(succeeded=False)
        assert (path / "deep" / "state").exists()
    other = Checkpoint(str(path), b"two")
    assert other.discarded
    assert os.listdir(path) == []
    (path / "link").symlink_to(tmp_path)
    other.end(succeeded=True)
    assert os.listdir(tmp_path / "checkpoints") == []


def test_nothing_is_left_of_a_job_that_has_no_use_for_it(tmp_path: Path, attributes: bool) -> None:
    Checkpoint(f"{tmp_path}/job", b"one").end(succeeded=False)
    assert os.listdir(tmp_path) == []


def test_two_jobs_never_share_it(tmp_path: Path) -> None:
    spec = planned(tmp_path)
    path = str(spec.checkpoint)
    os.makedirs(os.path.dirname(path))
    holder = subprocess.Popen(
        [sys.executable, "-c",
         HOLDER, path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "has it\n"
    with pytest.raises(CheckpointInUseError):
        Checkpoint(path, b"one")
    other = take(spec)
    assert other is not None
    assert other.path != path
    Path(other.path, "y").touch()
    other.end(succeeded=False)
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)], "a second attempt gets a directory that does not last"
    holder.kill()
    holder.communicate()
    mine = Checkpoint(path, b"one")
    assert os.listdir(path) == ["x"], "a killed attempt leaves it to the next"
    mine.end(succeeded=True)
