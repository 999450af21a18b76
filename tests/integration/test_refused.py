"""Features that a host seems to have but refuses: a bus that denies access, a mount in a new namespace."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_forge.sandbox.seccomp import ABIS, ARCHITECTURES, refused

from .. import ordinary
from ..conftest import forge

ONLY_V2 = ["unshare", "-m", "--propagation", "private", "bash", "-c",
           """awk '$3 == "cgroup" {print $2}' /proc/self/mounts | xargs -r umount; exec "$@" """, "bash"]  # fmt: skip
BUS = """<busconfig><type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow own="*"/><allow send_destination="org.freedesktop.DBus"/><deny send_destination="org.freedesktop.systemd1"/>
</policy></busconfig>"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes cgroups and system calls away from others")


def _doctor(place: Path, before: list[str], *arguments: str, **variables: str) -> tuple[int, dict[str, Any]]:
    ordinary.hand_over(place)
    done = forge(place, "doctor", "--json", *arguments, before=before, env=variables)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


@contextmanager
def _bus() -> Iterator[str]:
    """A real message bus that lets no user talk to systemd."""
    path = Path("/tmp", f"forge-bus-{uuid.uuid4().hex[:8]}")
    path.with_suffix(".conf").write_text(BUS.format(path=path))
    daemon = subprocess.Popen(["dbus-daemon", "--nofork", "--print-address", f"--config-file={path}.conf"],
                              stdout=subprocess.PIPE, text=True)
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline().startswith("unix:")
        path.chmod(0o777)
        yield f"unix:path={path}"
    finally:
        daemon.kill()
        daemon.communicate()
        path.unlink()
        path.with_suffix(".conf").unlink()


@pytest.mark.parametrize("as_user", [False, True], ids=["root", "ordinary"])
def test_a_bus_that_refuses_is_a_rung_that_does_not_bear(workdir: Path, as_user: bool) -> None:
    """Fault 111."""
    before = [*ONLY_V2, *(ordinary.prefix() if as_user else [])]
    name = "DBUS_SESSION_BUS_ADDRESS" if as_user else "DBUS_SYSTEM_BUS_ADDRESS"
    with _bus() as address:
        code, report = _doctor(workdir, before, "--require", "limits", **{name: address})
    rungs = {rung["rung"]: rung["refusal"] for rung in report["rungs"]}
    # Root gets no answer at all on such a bus (seen with dbus 1.14): that is a refusal as well.
    wanted = "systemd refused a delegated scope" if as_user else "systemd was not reached|systemd refused a delegated scope"
    assert re.search(wanted, str(rungs["systemd scope"])), rungs
    if as_user:
        assert list(rungs)[-1] == "delegated cgroup v2", "the next rung was tried"
    assert all(rungs.values())
    assert report["line"].startswith("Forge: soft limits")
    assert code == 1 and report["missing"]


def _without_mount(machine: str) -> str:
    """A Python program that blocks mount(2) and then executes a command, as AppArmor or an engine does."""
    (native, _) = ABIS[machine]
    number = next(call.number for call in refused(native, nested=False) if call.name == "mount")
    steps = [(0x20, 0, 0, 4), (0x15, 0, 3, ARCHITECTURES[native]), (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001),
             (0x06, 0, 0, 0x7FFF0000)]  # fmt: skip
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    return (f"import ctypes, os, struct, sys\ncode = ctypes.create_string_buffer({code!r}, {len(code)})\n"
            f"filled = struct.pack('HxxxxxxN', {len(steps)}, ctypes.addressof(code))\nlibc = ctypes.CDLL(None)\n"
            "assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filled, 0, 0) == 0\n"
            "os.execvp(sys.argv[1], sys.argv[1:])")  # fmt: skip


@pytest.mark.parametrize("as_user", [False, True], ids=["root", "ordinary"])
def test_namespaces_without_mounts_are_none(workdir: Path, as_user: bool) -> None:
    """Fault 113: the namespace can be made; only a mount in it shows that it is useless."""
    before = [*(ordinary.prefix() if as_user else []), sys.executable, "-c", _without_mount(os.uname().machine)]
    made = subprocess.run([*before, "unshare", *(["-r"] if as_user else []), "-m", "--propagation", "unchanged", "true"], check=False,
                          capture_output=True, text=True, cwd="/")
    assert made.returncode == 0, made.stderr
    code, report = _doctor(workdir, before, "--require", "full")
    assert report["namespaces"]["kind"] == "none"
    assert "mount" in report["namespaces"]["refusal"]
    assert "pid-ns" not in report["mechanisms"] and "subreaper" in report["mechanisms"]
    assert code == 1 and any("namespaces" in one for one in report["missing"])
