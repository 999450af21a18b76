"""What a run depends on. Apart from identity.py, because what it needs would triple the memory of a launcher."""

from __future__ import annotations

import importlib.metadata
import platform
from contextlib import suppress


def software_versions() -> dict[str, str]:
    """The versions that a run depends on, for its record."""
    found = {"python": platform.python_version(), "linux": platform.release()}
    for name, package in (("snakemake", "snakemake"), ("forge", "snakemake-executor-plugin-forge")):
        with suppress(importlib.metadata.PackageNotFoundError):  # run from a directory on PYTHONPATH
            found[name] = importlib.metadata.version(package)
    return found
