"""Readers for the words of an attempt: its streams, from its directory or its run's archive, and its rule's logs."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from ..record import sound
from ..record.archive import NAME, read_entries
from ..record.jsonfile import SPEC, STDERR, VERDICT, load
from ..record.plain_files import read_end
from ..record.reader import RUN
from .explain import Told, tells

_TAIL_BYTES = 16384


def read_tail(directory: str, name: str, limit_bytes: int = _TAIL_BYTES) -> str:
    """The end of a stream; "" if there is none.

    Args:
        directory: the job directory, which may no longer exist.
        name: ``stdout.log`` or ``stderr.log``.
    """
    return read_end(f"{directory}/{name}", limit_bytes) or (archived_stream(directory, name) or "")[-limit_bytes:]


def read_telling(directory: str) -> Told:
    """The end of the text that explains a failure: stderr or, if that does not, a file of the rule's ``log:``."""
    stderr = Told(read_tail(directory, STDERR))
    if tells(stderr.text):
        return stderr
    logs = [Told(read_end(path, _TAIL_BYTES, straight=True), name) for name, path in rule_logs(directory)]
    logs = [log for log in logs if log.text.strip()]
    return next((log for log in logs if tells(log.text)), logs[0] if logs else stderr)


def with_context(record: Mapping[str, Any], told: Told | None = None) -> dict[str, Any]:
    """The record of an attempt with what explain() takes from other files: ``told``, ``run_memory_bytes``.

    Args:
        told: what the job has said, if that is known.
    """
    directory = record["directory"]
    found = {**record, "told": told or read_telling(directory), "lost_streams": lost_with_archive(directory)}
    if record["outcome"] == "oom" and record.get("backend") == "local":
        run = sound.run(load(f"{os.path.dirname(record['directory'])}/{RUN}") or {})
        found["run_memory_bytes"] = run["memory_bytes"]
    return found


def rule_logs(directory: str) -> list[tuple[str, str]]:
    """The existing files of the rule's ``log:``, by their names in the rule, each where it is now.

    While the job runs they are staged: ``spec.json`` has the directories. No link is on the way but those of the user
    to their places, which are resolved; it must be read so (``straight``), because the job may make some meanwhile.
    """
    spec = read_spec(directory) or {}
    ended = os.path.exists(f"{directory}/{VERDICT}") or not os.path.isdir(directory)  # the latter is in the archive
    staging = {} if ended else spec.get("staging") or {}
    found = []
    for name in spec.get("logs", ()):
        place = os.path.join(spec["workdir"], name)
        roots = [root for root in staging if place.startswith(f"{root}/")]
        root = max(roots, key=len, default=None)
        parent, last = os.path.split(place)
        path = f"{os.path.realpath(parent)}/{last}"
        if root is not None:
            path = f"{os.path.realpath(staging[root])}/{place.removeprefix(f'{root}/')}"
        with suppress(OSError):
            if stat.S_ISREG(os.lstat(path).st_mode):
                found.append((name, path))
    return found


def archived_stream(directory: str, name: str) -> str | None:
    """A stream from the archive; None if the archive lacks it."""
    entry = _archived(directory)
    streams = (entry or {}).get("streams")
    return str(streams.get(name, "")) if isinstance(streams, dict) else None


def lost_with_archive(directory: str) -> str:
    """A sentence if the streams of an attempt were in an archive that is damaged, and are lost; else ""."""
    path = f"{os.path.dirname(directory)}/{NAME}"
    if os.path.isdir(directory) or not os.path.exists(path) or _archived(directory) is not None:
        return ""
    return f"{path} is damaged: what it had of this attempt is lost"


def read_spec(directory: str) -> dict[str, Any] | None:
    """``spec.json`` of an attempt; None if the archive lacks it too."""
    found = load(f"{directory}/{SPEC}") or (_archived(directory) or {}).get("spec")
    return sound.spec(found) if isinstance(found, dict) else None


def _archived(directory: str) -> dict[str, Any] | None:
    run_dir, _, attempt = directory.rpartition("/")
    with suppress(OSError):
        return _entries(run_dir, os.stat(f"{run_dir}/{NAME}").st_mtime_ns).get(attempt)
    return None


@lru_cache(maxsize=1)
def _entries(run_dir: str, mtime_ns: int) -> dict[str, dict[str, Any]]:
    """The archive of a run by the names of its attempts; ``mtime_ns`` is that of its file."""
    del mtime_ns
    return {entry["name"]: entry for entry in read_entries(run_dir)}
