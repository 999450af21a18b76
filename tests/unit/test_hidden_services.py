"""Sockets of the host's services, which no job sees."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.sandbox.filesystem import mounts


@pytest.mark.skipif(os.geteuid() != 0, reason="mount(2) is root's")
def test_a_service_that_ends_while_it_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket was there a moment ago; nothing is mounted then, and the job starts."""
    monkeypatch.setattr(mounts, "_DIRECTORIES", ())
    monkeypatch.setattr(mounts, "_SOCKETS", ())
    monkeypatch.setattr(mounts, "mode_of", lambda _: stat.S_IFSOCK)
    mounts.hide({"SSH_AUTH_SOCK": f"{tmp_path}/agent"})
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
