"""Directories that supervisors make and remove beside one another: each finds them or makes them again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.sandbox.filesystem.directories import among_others, make_shared

_PROCESSES = 4
_LAYERS = """
import os, sys
from snakemake_executor_plugin_forge.spec.job import FilePolicy, Files
from snakemake_executor_plugin_forge.sandbox.filesystem.overlay import LayerPool
root = sys.argv[1]
for _ in range(400):
    (layer,) = LayerPool().take_all(Files(FilePolicy.GUARD, layers=(root,)), root, "forge-run", root)
    assert os.path.isdir(layer.upper) and os.path.isdir(layer.work)
    layer.remove()
"""
_SLOTS = """
import os, sys
from snakemake_executor_plugin_forge.sandbox.filesystem.scratch import Scratch
for _ in range(400):
    scratch = Scratch(sys.argv[1] + "/base", ("/tmp",))
    assert os.path.isdir(scratch.root)
    scratch.remove()
"""
_CHECKPOINTS = """
import sys
from snakemake_executor_plugin_forge.staging.checkpoints import Checkpoint, CheckpointInUseError
for _ in range(400):
    try:
        Checkpoint(sys.argv[1] + "/checkpoints/job", b"x").end(succeeded=True)
    except CheckpointInUseError:
        pass
"""


@pytest.mark.parametrize("work", [_LAYERS, _SLOTS, _CHECKPOINTS], ids=["layers", "slots", "checkpoints"])
def test_supervisors_come_and_go_beside_one_another(work: str, tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", work, str(tmp_path)], stderr=subprocess.PIPE, text=True)
               for _ in range(_PROCESSES)]
    said = [process.communicate()[1] for process in running]
    assert not "".join(said)
    assert [process.returncode for process in running] == [0] * _PROCESSES


def test_one_that_is_removed_between_two_looks_at_it_is_made_again(tmp_path: Path) -> None:
    """The directory is there when os.makedirs() calls mkdir(2), and gone when it asks whether it is a directory."""
    shared = tmp_path / "staging"
    shared.mkdir()

    def make() -> None:
        try:
            shared.mkdir()
        except FileExistsError:
            shared.rmdir()
            raise

    among_others(make)
    assert shared.is_dir()


def test_what_can_never_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "away" / "nothing")
    with pytest.raises(FileExistsError):
        make_shared(str(tmp_path / "link"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_shared(str(tmp_path / "file" / "below"))
