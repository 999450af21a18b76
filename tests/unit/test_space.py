"""Full file systems that a successful job may not have noticed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel import syscalls
from snakemake_executor_plugin_forge.supervisor.space import ignored

from ..child import in_child


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_only_a_file_that_may_lack_its_end_makes_a_full_disk_matter(tmp_path: Path) -> None:
    def found() -> list[list[int]]:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
        results = []
        for size, content in (("128k", 5), ("32k", 5), ("32k", 4096), ("32k", 0)):
            syscalls.mount("none", str(tmp_path), "tmpfs", 0, f"size={size}")
            (tmp_path / "deep").mkdir()
            (tmp_path / "deep/out").write_bytes(bytes(content))
            places = [str(tmp_path)]
            results.append([refusal.error for layers in (places, []) for refusal in ignored(places, layers, ())])
        return results

    assert in_child(found) == [[], [errno.ENOSPC], [errno.ENOSPC] * 2, [errno.ENOSPC] * 2]
