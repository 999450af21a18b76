"""Installs Debian packages for tests that root runs: one process at a time, and no package starts a daemon."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_LOCK = Path("/var/lock/forge-tests-apt")
_POLICY = Path("/usr/sbin/policy-rc.d")  # keeps packages' scripts from starting daemons


def install(packages: Sequence[str]) -> str:
    """Install packages, under a lock, as apt does not wait for that of its lists.

    Returns:
        The reason if the installation failed, else "".

    """
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "that takes root, and apt-get"
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = not _POLICY.exists()
        if made:
            _POLICY.write_text("#!/bin/sh\nexit 101\n")
            _POLICY.chmod(0o755)
        try:
            for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
                done = subprocess.run(
                    ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", *step], check=False, text=True, capture_output=True,
                    env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, stdin=subprocess.DEVNULL,
                )  # fmt: skip
                if done.returncode != 0:
                    return done.stderr.strip() or done.stdout.strip()
        finally:
            if made:
                _POLICY.unlink()
    return ""
