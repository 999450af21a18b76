"""Files that some process has open for writing."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from snakemake_executor_plugin_forge.kernel.writers import held


def test_only_who_can_write_holds_a_file(tmp_path: Path) -> None:
    path, other = str(tmp_path / "file"), str(tmp_path / "other")
    for place in (path, other):
        Path(place).write_bytes(b"x")
    names = [path, other, str(tmp_path / "none"), str(tmp_path)]
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
