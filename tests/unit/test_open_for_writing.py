"""Files that some process has open for writing."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel import open_for_writing
from snakemake_executor_plugin_forge.kernel.open_for_writing import held


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the wait for writers: nobody closes these files a little later."""
    monkeypatch.setattr(open_for_writing, "_PATIENCE_SECONDS", 0.1)


def test_only_who_can_write_holds_a_file(tmp_path: Path) -> None:
    path, other = str(tmp_path / "file"), str(tmp_path / "other")
    for place in (path, other):
        Path(place).write_bytes(b"x")
    names = [path, other, str(tmp_path / "none")]
    assert held(names) == []
    with open(path, "rb"):
        assert held(names) == []
    with open(path, "r+b") as file:
        assert held(names) == [path]
        mapped = mmap.mmap(file.fileno(), 1)
    assert held(names) == [path]
    mapped.close()
    assert held(names) == []
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    assert held(names) == [path]
    os.close(fd)


def test_a_directory_is_held_with_any_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/link").symlink_to("b")
    os.mkfifo(tmp_path / "a/fifo")
    assert held([str(tmp_path / "a")]) == []
    with (tmp_path / "a/b/file").open("w"):
        assert held([str(tmp_path / "a"), str(tmp_path / "a/link")]) == [str(tmp_path / "a")]
    assert held([str(tmp_path / "a")]) == []
