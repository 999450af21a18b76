"""A host that suddenly goes down in the middle of a run, and the run after it.

The guest boots twice, with one disk for the working directories. The first boot is reset (sysrq b) without a sync, when
Snakemake has reported a seventh job as finished and three run; in a second directory, Snakemake was killed before and a job
has finished without it. The second boot runs snakemake-forge resume in both directories.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.host import guest
from tests.host.guest_cache import GuestError

pytestmark = [pytest.mark.host, pytest.mark.soak, pytest.mark.timeout(1800)]

_DISK_BYTES = 256 << 20
_DIRECTORY = "/run/disk"
# A job's writes to /host reach this host at once, whatever happens to the guest.
_SNAKEFILE = """
rule all:
    input: expand("{rule}/{n}.txt", rule="quick", n=range(6)), expand("{rule}/{n}.txt", rule="slow", n=range(3)), "last.txt"
rule quick:
    output: "quick/{n}.txt"
    log: "logs/quick.{n}.log"
    shell: "touch /host/ran/quick.{wildcards.n}; seq 20000 > {output}; echo done > {log}"
rule slow:
    output: "slow/{n}.txt"
    shell: "touch /host/ran/slow.{wildcards.n}; seq 20000 > {output}; test ! -e /host/wait || sleep 1000"
rule last:
    input: expand("quick/{n}.txt", n=range(6))
    output: "last.txt"
    shell: "touch /host/ran/last; sleep 2; seq 20000 > {output}"
"""
_FINISHING = """
rule alone:
    output: "alone.txt"
    shell: "touch /host/ran/alone; until [ -e /host/go ]; do sleep 0.1; done; seq 20000 > {output}"
"""
_CATALOG = """
version: 1
defaults: {runtime: telling}
runtimes:
  telling: {host: true, paths: {write: [/host/ran]}}
"""
_COMMANDS = f"""
snake="$FORGE_GUEST_PYTHON -m snakemake --executor forge --scheduler greedy"
forge() {{ "$FORGE_GUEST_PYTHON" -m snakemake_executor_plugin_forge.cli.main "$@"; }}
mkdir -p {_DIRECTORY} && mount -t ext4 /dev/vdd {_DIRECTORY} || exit 1
"""
_BEFORE = f"""
{_COMMANDS}
set -e
for name in work finishing; do
    mkdir {_DIRECTORY}/$name
    cp /host/forge.yaml {_DIRECTORY}/$name
    cp /host/$name.smk {_DIRECTORY}/$name/Snakefile
done
sync

cd {_DIRECTORY}/finishing
$snake -j 1 --forge-on-disconnect finish > /host/finishing.said 2>&1 &
until [ -e /host/ran/alone ]; do kill -0 $!; sleep 0.2; done
kill -9 $!
touch /host/go
until grep -q '"staged": true' .snakemake/forge/runs/*/*/verdict.json; do sleep 0.2; done

cd {_DIRECTORY}/work
$snake -j 9 > /host/said 2>&1 &
until [ "$(grep -c 'Finished jobid' /host/said)" = 7 ] && [ "$(ls /host/ran | grep -c slow)" = 3 ]; do
    kill -0 $!
    sleep 0.1
done
echo 0 > /host/.guest/status
echo b > /proc/sysrq-trigger
"""
_AFTER = f"""
{_COMMANDS}
cd {_DIRECTORY}/work || exit 1
forge jobs --json > /host/jobs.json
find . -name '*.txt' -not -path './.snakemake/*' > /host/found
for name in work finishing; do
    cd {_DIRECTORY}/$name
    forge resume > /host/$name.said 2>&1
    echo $? >> /host/codes
    find . -path '*staging*' -o -path './.snakemake/locks/*' -o -path './.snakemake/incomplete/*' >> /host/left
done
cd {_DIRECTORY}
md5sum work/*/*.txt work/*.txt finishing/*.txt > /host/sums
ls work/logs > /host/logs
cd {_DIRECTORY}/finishing && forge jobs --json > /host/adopted.json
cd / && umount -l {_DIRECTORY}
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file system with a journal, as hosts have it."""
    path = tmp_path / "work.img"
    path.touch()
    os.truncate(path, _DISK_BYTES)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", path], check=True, env=os.environ | {"PATH": "/usr/sbin:/sbin"})
    return path


def _boot(script: str, share: Path, disk: Path) -> str:
    """Run the script in the guest; return its output."""
    (share / "ran").mkdir(parents=True)
    (share / "ran").chmod(0o777)
    for name, text in (("work.smk", _SNAKEFILE), ("finishing.smk", _FINISHING), ("forge.yaml", _CATALOG)):
        (share / name).write_text(text)
    failure = ""
    try:
        done = guest.boot(script, share, disk=disk, timeout=600)
    except GuestError as error:
        failure = str(error)
    said = "".join(path.read_text() for path in sorted(share.glob("*said")))
    if failure or done.status != 0:
        pytest.fail(f"{failure or done.output}\n{said}", pytrace=False)
    return done.output + said


def test_a_reboot_costs_nothing_that_was_finished(tmp_path: Path, disk: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    (before / "wait").touch()
    said = _boot(_BEFORE, before, disk)
    quick, slow = ([f"{rule}.{n}" for n in range(times)] for rule, times in (("quick", 6), ("slow", 3)))
    assert sorted(path.name for path in (before / "ran").iterdir()) == ["alone", "last", *quick, *slow], said

    said = _boot(_AFTER, after, disk)
    assert (after / "codes").read_text() == "0\n0\n", said
    finished = ["./last.txt", *(f"./quick/{n}.txt" for n in range(6))]
    assert sorted((after / "found").read_text().split()) == finished, said
    assert sorted(path.name for path in (after / "ran").iterdir()) == slow, said
    assert not (after / "left").read_text(), said
    whole = hashlib.md5("".join(f"{n}\n" for n in range(1, 20001)).encode()).hexdigest()
    assert [line.split()[0] for line in (after / "sums").read_text().splitlines()] == [whole] * 11, said
    assert (after / "logs").read_text().split() == [f"{name}.log" for name in quick]

    outcomes = sorted((job["rule"], job["outcome"]) for job in json.loads((after / "jobs.json").read_text()))
    # The job last ended just before the host went down: its outputs are there, its record may be missing.
    assert [outcome for rule, outcome in outcomes if rule == "quick"] == ["succeeded"] * 6
    assert [outcome for rule, outcome in outcomes if rule == "slow"] == ["lost"] * 3
    (adopted,) = json.loads((after / "adopted.json").read_text())
    assert (adopted["outcome"], bool(adopted["adopted"])) == ("succeeded", True)
