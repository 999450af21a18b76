"""The host's conditions for environments and jobs: free disk space and inodes, a clock that agrees with the disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress

from ..spec.units import MEBIBYTE, show_bytes

MIN_FREE_BYTES = 100 * MEBIBYTE
MIN_FREE_INODES = 1000
MAX_CLOCK_SECONDS = 2.0
_YEAR_2020 = 1_577_836_800


def lack_of_space(what: str, directory: str) -> str | None:
    """A sentence, if the file system of a directory, which need not exist yet, has too little free space."""
    there = os.path.abspath(directory)
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    status = os.statvfs(there)
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes < MIN_FREE_BYTES:
        return f"{what} {directory}: only {show_bytes(free_bytes)} are free"
    if status.f_files and status.f_favail < MIN_FREE_INODES:  # not all file systems count them
        return f"{what} {directory}: only {status.f_favail} more files can be made (inodes)"
    return None


def problems(places: Mapping[str, str]) -> list[str]:
    """Problems of the host, in sentences without a full stop.

    Args:
        places: from purpose to directory; includes "working directory".
    """
    lacks = [lack_of_space(what, directory) for what, directory in places.items()]
    return [problem for problem in (*lacks, clock_problem(places["working directory"])) if problem is not None]


def clock_problem(directory: str) -> str | None:
    """A sentence, if the time stamps of new files there do not agree with this host's clock.

    Snakemake uses time stamps to detect outdated files.
    """
    if time.time() < _YEAR_2020:
        return f"the clock of this host says {time.strftime('%Y-%m-%d')}"
    before = time.time()
    try:
        fd, path = tempfile.mkstemp(prefix=".forge-clock-", dir=directory)
    except OSError as error:
        return f"{directory} cannot be written: {error.strerror}"
    try:
        difference = os.fstat(fd).st_mtime - before
    finally:
        os.close(fd)
        with suppress(FileNotFoundError):
            os.unlink(path)
    if abs(difference) <= MAX_CLOCK_SECONDS:
        return None
    return (
        f"files made in {directory} get a time {abs(difference):.0f} s {'ahead of' if difference > 0 else 'behind'} "
        "this host's clock; Snakemake would take files for out of date that are not"
    )
