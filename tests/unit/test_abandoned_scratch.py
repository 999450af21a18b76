"""Scratch of copies of jobs on a node: directories that a process holds stay, and the others are removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from snakemake_executor_plugin_forge.backends.slurm.exchange import COPY_NAME, copy_name
from snakemake_executor_plugin_forge.sandbox.filesystem.scratch import remove_abandoned

# Like a copy on a node: makes and holds the base, and takes a slot in it.
_HOLDER = """
import os, sys, time
from snakemake_executor_plugin_forge.sandbox.filesystem.scratch import Scratch, hold
hold(sys.argv[1])
scratch = Scratch(sys.argv[1], ())
open(scratch.root + "/big", "w").close()
print(scratch.slot, flush=True)
time.sleep(1000)
"""


def _hold(base: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, str(base)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def _age(*bases: Path) -> None:
    for base in bases:
        os.utime(base, (time.time() - 100, time.time() - 100))


def test_what_nobody_holds_goes(tmp_path: Path) -> None:
    living, dead, young, kept, other = (
        tmp_path / copy_name(f"20261123-22382{n}-9653-802f", f"/runs/x/slurm/b1/{n}", 1) for n in range(5)
    )
    other = tmp_path / "forge-20261123-223826-9653-802f"  # of a run on its own host: resume and gc remove that
    holders = [_hold(base) for base in (living, dead, young, kept, other)]
    try:
        (kept / "kept-forge-00001-a").mkdir()
        for process, _ in holders[1:]:
            process.send_signal(signal.SIGKILL)
            process.wait()
        _age(living, dead, kept, other)
        removed = remove_abandoned(str(tmp_path), COPY_NAME)
        assert sorted(removed) == sorted([holders[1][1], holders[3][1]])
        assert not dead.exists()
        assert [path.name for path in kept.iterdir()] == ["kept-forge-00001-a"]
        assert all(Path(slot, "tmp", "big").exists() for slot in (holders[0][1], holders[2][1], holders[4][1]))
    finally:
        for process, _ in holders:
            process.kill()
            process.communicate()
    _age(living, young)
    remove_abandoned(str(tmp_path), COPY_NAME)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kept.name, other.name])


def test_another_users_stays(tmp_path: Path) -> None:
    base = tmp_path / "forge-r@b1.0.1"
    (base / "slot-1").mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(base, 54321, 54321)
    _age(base)
    assert remove_abandoned(str(tmp_path), COPY_NAME) == ([] if os.geteuid() == 0 else [f"{base}/slot-1"])
    assert remove_abandoned(str(tmp_path / "nothing"), COPY_NAME) == []
