"""A job that uses up a user's quota is treated like one on a full disk. In the guest, as not every kernel has quotas."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.host import guest
from tests.host.guest_cache import GuestError

pytestmark = [pytest.mark.host, pytest.mark.soak, pytest.mark.timeout(3600)]

_RULES = {
    "loud": 'shell: "dd if=/dev/zero of={output} bs=1M count=40"',
    "silent": 'shell: "head -c 40M /dev/zero > {output} 2>/dev/null || true"',
    "python": 'run:\n        open(output[0], "wb").write(bytes(40 << 20))',
    "inodes": 'shell: "mkdir d; touch d/{{1..2000}}; echo x > {output}"',
    "fits": 'shell: "head -c 5M /dev/zero > {output}"',
}
_SNAKEFILE = "rule all:\n    input: " + ", ".join(f'"{name}.txt"' for name in _RULES) + "\n" + "".join(
    f'rule {name}:\n    output: "{name}.txt"\n    {text}\n' for name, text in _RULES.items()
)
# struct if_dqblk of linux/quota.h: 16 MiB and 1,000 files. The command: Q_SETQUOTA of users; the last field: which are set.
_LIMIT = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
limits = struct.pack("8QI", 16 << 10, 0, 0, 1000, 0, 0, 0, 0, 5)
assert libc.quotactl(ctypes.c_int(0x80000800 - (1 << 32)), b"/dev/vdd", 1000, limits) == 0, ctypes.get_errno()
"""
_SCRIPT = f"""
set -e
mkdir -p /run/disk
mount -t ext4 -o usrquota /dev/vdd /run/disk
mkdir /run/disk/work
cd /run/disk/work
cp /host/Snakefile .
for name in {" ".join(_RULES)}; do echo old > $name.txt; done
chown -R tester: .
"$FORGE_GUEST_PYTHON" -c '{_LIMIT}'
as-tester "$FORGE_GUEST_PYTHON" -m snakemake --executor forge --scheduler greedy -j1 -k --forceall > /host/said 2>&1 && exit 1
as-tester "$FORGE_GUEST_PYTHON" -m snakemake_executor_plugin_forge.cli.main jobs --json > /host/jobs.json
for name in {" ".join(_RULES)}; do echo $name $(head -c 3 $name.txt | tr '\\0' 0); done > /host/outputs
find .snakemake/forge/staging -mindepth 1 > /host/left || true
cd / && umount /run/disk
"""


def test_a_quota_is_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "quota.img"
    disk.touch()
    os.truncate(disk, 128 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "quota", "-E", "quotatype=usrquota", disk], check=True, env=os.environ | {"PATH": "/usr/sbin:/sbin"})
    share = tmp_path / "share"
    share.mkdir()
    share.chmod(0o777)
    (share / "Snakefile").write_text(_SNAKEFILE)
    try:
        done = guest.boot(_SCRIPT, share, disk=disk, timeout=1800)
    except GuestError as error:
        pytest.fail(str(error), pytrace=False)
    said = (share / "said").read_text() if (share / "said").exists() else ""
    assert done.status == 0, done.output + said
    attempts = {attempt["rule"]: attempt for attempt in json.loads((share / "jobs.json").read_text())}
    assert {name: a["outcome"] for name, a in attempts.items()} == {**dict.fromkeys(_RULES, "disk"), "fits": "succeeded"}, said
    assert {a["cause"] for a in attempts.values() if a["outcome"] == "disk"} == {"file system full"}
    assert (share / "outputs").read_text().split() == [word for name in _RULES for word in (name, "000" if name == "fits" else "old")]
    assert (share / "left").read_text() == ""
    assert "Traceback" not in said
