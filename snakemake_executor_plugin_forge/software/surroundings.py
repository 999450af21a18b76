"""The host's conditions for environments and jobs: free disk space and inodes, a clock that agrees with the disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from ..spec.units import MEBIBYTE, show_bytes

MIN_FREE_BYTES = 100 * MEBIBYTE
MIN_FREE_INODES = 1000
MAX_CLOCK_SECONDS = 2.0
_YEAR_2020 = 1_577_836_800


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """Free space on the file system of a directory."""

    what: str
    directory: str
    free_bytes: int
    free_inodes: int | None  # None: the file system does not count them

    @property
    def problem(self) -> str | None:
        """A sentence, if the space is too small."""
        if self.free_bytes < MIN_FREE_BYTES:
            return f"{self.what} {self.directory}: only {show_bytes(self.free_bytes)} are free"
        if self.free_inodes is not None and self.free_inodes < MIN_FREE_INODES:
            return f"{self.what} {self.directory}: only {self.free_inodes} more files can be made (inodes)"
        return None


def room(places: Mapping[str, str]) -> list[FreeSpace]:
    """Free space at each place.

    Args:
        places: from purpose to directory, which need not exist yet.
    """
    found = []
    for what, place in places.items():
        directory = os.path.abspath(place)
        while not os.path.isdir(directory):
            directory = os.path.dirname(directory)
        status = os.statvfs(directory)
        inodes = status.f_favail if status.f_files else None
        found.append(FreeSpace(what, place, status.f_bavail * status.f_frsize, inodes))
    return found


def problems(places: Mapping[str, str]) -> list[str]:
    """Problems of the host, in sentences without a full stop.

    Args:
        places: from purpose to directory; includes "working directory".
    """
    clock = clock_problem(places["working directory"])
    return [*(r.problem for r in room(places) if r.problem), *([clock] if clock else [])]


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
