"""Snakemake's own feature tests with Forge: see tests/upstream/README.md."""

import subprocess

import pytest

pytestmark = [pytest.mark.host, pytest.mark.timeout(3600)]


def test_nothing_fails_with_forge_only(upstream: subprocess.CompletedProcess[str]) -> None:
    """Only tests that tests/upstream/known.toml explains may fail; pytest's summary names them."""
    if upstream.returncode != 0:
        pytest.fail(upstream.stdout, pytrace=False)
