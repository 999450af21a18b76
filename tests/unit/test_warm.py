"""A fork of the server of warm starts (tests/warm.py) behaves as an executed Snakemake."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .. import ordinary
from ..conftest import command

SNAKEFILE = """
import json, locale, os, re, resource, signal, sys, tempfile, threading, time
status = dict(line.strip().partition(":")[::2] for line in open("/proc/self/status"))
print(json.dumps({
    "argv": sys.argv, "cmdline": open("/proc/self/cmdline").read(), "orig_argv": sys.orig_argv, "path": sys.path, "flags": re.sub("dont_write_bytecode=., ", "", str(sys.flags)), "bytecode": sys.dont_write_bytecode,
    "directories": [os.getcwd(), workflow.rundir, tempfile.gettempdir()], "umask": os.umask(0o22), "zone": time.tzname,
    "environment": dict(os.environ), "locale": locale.setlocale(locale.LC_CTYPE), "descriptors": sorted(os.listdir("/proc/self/fd")),
    "streams": [[stream.encoding, stream.errors, stream.line_buffering, stream.isatty()] for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "stdin": sys.stdin.read(), "leads": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()], "parent": os.getppid(),
    "ignored": sorted(int(number) for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN),
    "limits": [resource.getrlimit(number) for number in range(16)], "owner": os.stat("/proc/self/fd").st_uid,
    "status": {name: status[name] for name in ("Uid", "Gid", "Groups", "SigBlk", "NoNewPrivs", "Seccomp", "CapEff", "CapBnd", "Cpus_allowed")},
}), file=sys.stderr)
sys.exit("at its end")
"""


def _start(directory: Path, *, cold: bool, before: list[str]) -> tuple[dict[str, Any], int, str]:
    """The process's description of itself, its exit status, and the rest of its output."""
    environment = os.environ | {"FORGE_TEST_BYTE": "\udcff", "TZ": "Asia/Tokyo"} | ({"FORGE_TEST_COLD": "1"} if cold else {})
    done = subprocess.run([*before, *command("local", "--dry-run")], cwd=directory, env=environment, input="from the test\n", text=True,
                          errors="surrogateescape", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, start_new_session=True, umask=0o26)
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(said)
    assert (found["environment"].pop("FORGE_TEST_COLD", None) is not None) == cold
    return found, done.returncode, done.stdout.replace(said, "")


@pytest.mark.parametrize("user", [False, pytest.param(True, marks=pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user"))])
def test_it_has_all_that_popen_gives(tmp_path: Path, user: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORGE_TEST_COLD", raising=False)  # the whole session may have it
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    if user:
        ordinary.hand_over(tmp_path)
    warm, cold = (_start(tmp_path, cold=cold, before=ordinary.prefix(groups=True) if user else []) for cold in (False, True))
    assert {name: (value, cold[0][name]) for name, value in warm[0].items() if value != cold[0][name]} == {}
    assert warm[1:] == cold[1:]
    assert warm[0]["stdin"] == "from the test\n" and warm[0]["parent"] == os.getpid() and warm[0]["owner"] == (ordinary.UID if user else os.geteuid())
