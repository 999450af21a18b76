"""Snakemake's own feature tests with Forge: see tests/upstream/README.md."""

import subprocess

import pytest

pytestmark = [pytest.mark.host, pytest.mark.timeout(3600)]


def test_nothing_fails_with_forge_only(upstream: subprocess.CompletedProcess[str]) -> None:
    """But for the differences that tests/upstream/known.toml gives a reason for; pytest's summary names these."""
    if upstream.returncode != 0:
        pytest.fail(upstream.stdout, pytrace=False)
