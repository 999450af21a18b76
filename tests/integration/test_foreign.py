"""A working directory whose file system cannot be an overlay's upper layer: outputs are staged in the scratch, then copied."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import residue, run, wait_until, write_workflow

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a mount for all users of this host is root's to make")


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """A directory on FUSE, which stands for NFS, Lustre and GPFS: none of them can be an upper layer."""
    program = shutil.which("bindfs")
    assert program is not None, "bindfs is not installed: apt-get install bindfs"
    (tmp_path / "below").mkdir()
    mount_point = tmp_path / "foreign"
    mount_point.mkdir()
    # No extended attributes, as on many of these file systems.
    subprocess.run([program, "--xattr-none", tmp_path / "below", mount_point], check=True)
    try:
        yield mount_point.resolve()
    finally:
        wait_until(lambda: subprocess.run(["umount", mount_point], check=False).returncode == 0)


def test_everything_is_published_all_the_same(foreign: Path) -> None:
    for name in ("in.txt", "kept.txt", "replaced.txt"):
        (foreign / name).write_text("old\n")
    write_workflow(foreign, """
        rule all:
            input: "new.out", "replaced.txt", "dir", "refused.out"
        rule new:
            input: "in.txt"
            output: "new.out"
            log: "logs/new.log"
            shell: "echo new > {output}; echo log > {log}; echo x > extra.txt; truncate -s 1G sparse.bin"
        rule replaced:
            input: "in.txt"
            output: "replaced.txt", "second.txt"
            shell: "[ ! -e replaced.txt ]; echo new | tee {output}"
        rule directory:
            input: "in.txt"
            output: directory("dir")
            shell: "mkdir -p {output}/a; echo new > {output}/a/b; ln -s b {output}/a/c; chmod 750 {output}/a"
        rule refused:
            input: "in.txt"
            output: "refused.out"
            shell: "(echo x >> {input}) 2>/dev/null && echo written > {output} || echo refused > {output}"
        rule fails:
            input: "in.txt"
            output: "kept.txt"
            shell: "echo half > {output}; exit 1"
        """)
    result = run(foreign, "-j2", "-k", "-F")
    assert result.code == 0, result.output
    assert result.read("new.out") == "new\n"
    assert result.read("logs/new.log") == "log\n"
    assert result.read("extra.txt") == "x\n"
    assert (foreign / "sparse.bin").stat().st_size == 2**30
    assert (foreign / "sparse.bin").stat().st_blocks * 512 < 2**20
    assert result.read("replaced.txt") == result.read("second.txt") == "new\n"
    assert result.read("dir/a/c") == "new\n"
    assert os.readlink(foreign / "dir/a/c") == "b"
    assert (foreign / "dir/a").stat().st_mode & 0o777 == 0o750
    assert result.read("refused.out") == "refused\n"
    assert {a["isolation"]["files"] for a in result.attempts()} == {"guard"}
    failed = run(foreign, "-j1", "-F", "kept.txt")
    assert failed.code != 0
    assert result.read("kept.txt") == "old\n"
    assert [name for name in os.listdir(foreign) if name.startswith(".forge")] == []
    assert residue(foreign) == []
