"""Programs of Debian packages that single tests need."""

from __future__ import annotations

import shutil

import pytest

from .packages import install


def need(program: str, package: str) -> str:
    """The path of a program. Root installs it if it is missing; for another user the test is skipped."""
    why = install([package]) if shutil.which(program) is None else ""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian's package {package}): {why}")
    return path
