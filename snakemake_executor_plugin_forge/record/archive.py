"""The archive of a run: what is kept of its attempts when their directories are given up. Written by retention.py."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from typing import Any

NAME = "attempts.jsonl.gz"


def read_archive(run_dir: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the verdict of each archived attempt; nothing if the run has no archive."""
    for entry in read_entries(run_dir):
        yield str(entry["name"]), dict(entry["verdict"]) | {"directory": f"{run_dir}/{entry['name']}"}


def read_entries(run_dir: str) -> Iterator[dict[str, Any]]:
    """All that is kept of each attempt. Format: docs/reference/record.md."""
    path = f"{run_dir}/{NAME}"
    if not os.path.exists(path):
        return
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
