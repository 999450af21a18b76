"""Reading the streams of an attempt: from its directory or, if that was given up, from the archive of its run."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from .archive import read_entries
from .explain import tells
from .jsonfile import load
from .layout import SPEC, STDERR

_TAIL_BYTES = 16384


def read_tail(directory: str, name: str, limit_bytes: int = _TAIL_BYTES) -> str:
    """The end of a stream; "" if there is none.

    Args:
        directory: the job directory, whether it is still there or not.
        name: ``stdout.log`` or ``stderr.log``.

    """
    with suppress(OSError), open(f"{directory}/{name}", "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - limit_bytes))
        return file.read(limit_bytes).decode("utf-8", "replace")
    return (archived_stream(directory, name) or "")[-limit_bytes:]


def read_telling(directory: str) -> str:
    """The end of what a job said of its failure: of its stderr or, if that tells nothing, of its rule's ``log:``."""
    stderr = read_tail(directory, STDERR)
    if tells(stderr):
        return stderr
    spec = load(f"{directory}/{SPEC}") or archived_spec(directory) or {}
    for name in spec.get("logs", ()):
        path = os.path.join(spec["workdir"], name)
        text = read_tail(*os.path.split(path)) if os.path.isfile(path) else ""
        if text.strip():
            return text
    return stderr


def archived_stream(directory: str, name: str) -> str | None:
    """A stream as the archive has it; None if it has not."""
    entry = _archived(directory)
    return None if entry is None else str(entry["streams"].get(name, ""))


def archived_spec(directory: str) -> dict[str, Any] | None:
    """``spec.json`` as the archive has it; None if it has not."""
    entry = _archived(directory)
    return None if entry is None else entry["spec"]


def _archived(directory: str) -> dict[str, Any] | None:
    run_dir, _, attempt = directory.rpartition("/")
    return next((entry for entry in read_entries(run_dir) if entry["name"] == attempt), None)
