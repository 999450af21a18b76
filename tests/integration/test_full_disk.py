"""File systems that fill up at any moment: the outcome is ``disk``, old outputs stay, and ``resume`` finishes once space is free.

The working directory and the scratch are small file systems in the test's own mount namespace.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from .. import ordinary
from ..conftest import DEADLINE, FORGE, command, write_workflow

pytestmark = [pytest.mark.security, pytest.mark.slow]

RULES = {
    "output": 'output: "output.txt"\n    shell: "dd if=/dev/zero of={output} bs=1M count=100"',
    "log": 'output: "log.txt"\n    log: "log.log"\n    shell: "dd if=/dev/zero of={output} bs=1M count=100 2> {log}"',
    "python": 'output: "python.txt"\n    run:\n        open(output[0], "wb").write(bytes(100 << 20))',
    "script": 'output: "script.txt"\n    script: "script.py"',
    "scratch": 'output: "scratch.txt"\n    shell: "head -c 100M /dev/zero > $TMPDIR/x; mv $TMPDIR/x {output}"',
    "spill": 'output: "spill.txt"\n    shell: "head -c 100M /dev/zero > $TMPDIR/x || true; echo new > {output}"',
    "silent": 'output: "silent.txt"\n    shell: "head -c 100M /dev/zero > {output} 2>/dev/null || true"',
    "inodes": 'output: "inodes.txt"\n    shell: "mkdir d; touch d/{{1..4000}}; echo x > {output}"',
    "fits": 'output: "fits.txt"\n    shell: "head -c 5M /dev/zero > {output}"',
}
OWN = "rule all:\n    input: " + ", ".join(f'"{name}.txt"' for name in RULES) + "\n" + "\n".join(
    f"rule {name}:\n    {text}" for name, text in RULES.items()
)
FILLED = """
rule all:
    input: "shell.txt", "checkpoint.txt", "python.txt"
rule shell:
    output: "shell.txt"
    shell: "touch begun; until test -e again -o $(df --output=avail . | tail -1) -lt 64; do sleep 0.1; done; echo new > {output}"
rule checkpoint:
    output: "checkpoint.txt"
    shell: "touch begun; until test -e again -o $(df --output=avail . | tail -1) -lt 64; do sleep 0.1; done; echo more > $FORGE_CHECKPOINT_DIR/x; echo new > {output}"
rule python:
    output: "python.txt"
    run:
        import os, time
        open("begun", "w").close()
        while os.statvfs(".").f_bavail > 16 and not os.path.exists("again"):
            time.sleep(0.1)
        open(output[0], "w").write("new")
"""
MOUNTS = """
mount -t tmpfs -o size=20M,nr_inodes=2000,mode=777 none work
mount -t tmpfs -o size=10M,mode=777 none /mnt
cp -r files/. work
chown -R {uid}:{uid} work; cd work
"""


def _in_small_mounts(directory: Path, user: str, script: str) -> str:
    """Run a shell script in the working directory; ``$snakemake`` and ``$forge`` are the commands."""
    (directory / "work").mkdir()
    uid = ordinary.UID if user == "user" else 0
    before = ordinary.prefix() if user == "user" else []
    scratch = ["--forge-scratch-dir", "/mnt"]
    words = {"snakemake": [*before, *command("forge", "-k", *scratch)], "forge": [*before, *FORGE]}
    head = "".join(f"{name}={shlex.quote(shlex.join(value))}\n" for name, value in words.items())
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "bash", "-c", "set -e\n" + head + MOUNTS.format(uid=uid) + script],
        cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False, timeout=DEADLINE, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts small file systems")
@pytest.mark.parametrize("user", ["root", "user"])
def test_a_job_that_fills_the_disk(workdir: Path, user: str) -> None:
    write_workflow(workdir / "files", OWN)
    (workdir / "files/script.py").write_text("open(snakemake.output[0], 'wb').write(bytes(100 << 20))")
    for name in RULES:
        (workdir / f"files/{name}.txt").write_text("old")
    said = _in_small_mounts(workdir, user, f"""
        eval "$snakemake" -j1 --forceall && exit 1
        for name in {" ".join(RULES)}; do echo "$name is $(head -c 3 $name.txt | tr '\\0' 0)"; done
        echo "left$(find /mnt .snakemake/forge/staging -mindepth 1 2> /dev/null)"
        eval "$forge" jobs --json > ../jobs.json
        df -k --output=used . | tail -1
    """)
    outcomes = {a["rule"]: a["outcome"] for a in _attempts(workdir)}
    assert outcomes == {**dict.fromkeys(RULES, "disk"), "fits": "succeeded"}, said
    assert {a["cause"] for a in _attempts(workdir) if a["outcome"] == "disk"} == {"file system full"}
    for name in RULES:
        assert f"{name} is {'000' if name == 'fits' else 'old'}\n" in said
    assert f"file system {workdir / 'work'}; free space there" in said
    assert "file system /mnt; free space there" in said
    assert "Traceback" not in said
    assert all(line == "left" for line in said.splitlines() if line.startswith("left"))


def _attempts(directory: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((directory / "jobs.json").read_text())
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts small file systems")
@pytest.mark.parametrize("user", ["root", "user"])
def test_somebody_else_fills_the_disk(workdir: Path, user: str) -> None:
    """No space is left for verdicts, Snakemake's log or outputs; old outputs stay, and ``resume`` finishes."""
    write_workflow(workdir / "files", FILLED)
    for name in ("shell", "checkpoint", "python"):
        (workdir / f"files/{name}.txt").write_text("old")
    said = _in_small_mounts(workdir, user, """
        eval "$snakemake" -j3 --forceall & run=$!
        until test "$(ls .snakemake/forge/staging/*/upper/begun 2> /dev/null | wc -l)" = 3; do kill -0 $run; sleep 0.1; done
        head -c 30M /dev/zero > filler || true
        wait $run && exit 1
        echo "now $(cat shell.txt checkpoint.txt python.txt)"
        echo "left$(find /mnt .snakemake/forge/staging -mindepth 1 2> /dev/null)"
        rm filler; touch again
        eval "$forge" resume
        echo "then $(cat shell.txt checkpoint.txt python.txt | tr -d '\\n')"
        echo "left$(find /mnt .snakemake/forge/staging -mindepth 1 2> /dev/null)"
    """)
    before, after = said.split("now oldoldold")
    assert before.count("the disk is full") >= 3
    assert f"the record of this attempt is incomplete, {workdir / 'work'}" in before
    assert "snakemake.log is incomplete: No space left on device" in before
    assert "then newnewnew" in after
    assert "Traceback" not in said
    assert all(line == "left" for line in said.splitlines() if line.startswith("left"))
