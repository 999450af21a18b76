"""The program that keeps a cgroup's processes from changing settings of the kernel."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel import syscalls
from snakemake_executor_plugin_forge.kernel.bpf import keep_settings

from ..child import in_child

# Each file gets the value that it has: nothing changes, whether the write succeeds or not.
REFUSED, ALLOWED = ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/swappiness"), ("/proc/sys/net/ipv4/ip_forward",)


def _write_again(path: str) -> int:
    try:
        Path(path).write_text(Path(path).read_text())
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user can write no settings")
def test_settings_are_kept_but_those_of_the_network(tmp_path: Path) -> None:
    def written() -> list[int]:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
        syscalls.mount("none", str(tmp_path), "cgroup2")
        before = (tmp_path / Path("/proc/self/cgroup").read_text().partition("0::/")[2].split("\n")[0] / "cgroup.procs")
        cgroup = tmp_path / f"forge-test-{os.getpid()}"
        cgroup.mkdir()
        try:
            keep_settings(str(cgroup))
            without = [_write_again(path) for path in (*REFUSED, *ALLOWED)]
            (cgroup / "cgroup.procs").write_text("0")
            inside = [_write_again(path) for path in (*REFUSED, *ALLOWED)]
            before.write_text("0")
        finally:
            cgroup.rmdir()
        return without + inside

    assert in_child(written) == [0, 0, 0, errno.EPERM, errno.EPERM, 0]
