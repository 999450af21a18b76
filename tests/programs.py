"""Programs of Debian's packages that single tests need."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def need(program: str, package: str) -> str:
    """The path of a program, which root installs if it is not there; nobody else can."""
    if shutil.which(program) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
        subprocess.run(install, check=False, capture_output=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian's package {package})")
    return path
