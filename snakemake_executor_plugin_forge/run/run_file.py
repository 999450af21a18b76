"""``run.json``, the record of a run: docs/reference/record.md has its fields."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ..kernel.syscalls import spread_subdirectories
from ..record.attempt_dir import now
from ..record.identity import software_versions, this_process, user_name
from ..record.jsonfile import replace_file
from ..record.origin import claim
from ..record.reader import RUN
from ..spec.errors import ForgeError, HostError
from ..spec.job import RECORD_SCHEMA


class RunFile:
    """The record of one run, which grows while the run becomes known."""

    def __init__(
        self,
        directory: str,
        workdir: str,
        backend: str,
        workflow: Mapping[str, object],
        started_in: str | None,
        notice: Callable[[str], None],
    ) -> None:
        """Make the directory of the run and write all that ``snakemake-forge resume`` needs to repeat its command.

        Args:
            directory: the directory of the run, named by the run.
            workflow: JSON values that describe the workflow.
            started_in: the directory in which the user gave the command of this process.
            notice: shows a sentence to the user.

        Raises:
            HostError: if the directory cannot be written.
        """
        self.directory = directory
        self._lock = threading.Lock()
        aside = self._make_directory()
        if aside is not None:  # see record/origin.py
            notice(
                f"Forge: the records in {os.path.dirname(aside)}/forge were not made by Forge, perhaps by a job. "
                f"They are ignored, and now in {aside}."
            )
        self._facts: dict[str, object] = {
            "schema": RECORD_SCHEMA,
            "run": os.path.basename(directory),
            **this_process(),
            "command": sys.argv,
            "workdir": workdir,
            "isolation": "",
            "backend": backend,
            "cgroup": "",
            "memory_bytes": 0,
            "runtimes": {},
            "versions": software_versions(),
            "user": user_name(),
            "workflow": workflow,
            "started": now(),
            "ended": None,
            "restart": {"python": sys.executable, "arguments": sys.orig_argv[1:], "directory": started_in},
        }
        self.update()

    def _make_directory(self) -> str | None:
        try:
            runs = os.path.dirname(self.directory)
            aside = claim(os.path.dirname(runs))
            os.makedirs(runs, exist_ok=True)
            spread_subdirectories(runs)
            os.mkdir(self.directory)
        except OSError as error:
            raise HostError(
                f"the record of this run cannot be written to {self.directory}: {error.strerror}. "
                "Make the working directory writable, or start Snakemake in another one with --directory."
            ) from error
        return aside

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Put on record that the run is over, if Forge refuses to start it: nothing of it is there to resume."""
        try:
            yield
        except ForgeError:
            self.update(ended=now())
            raise

    def update(self, **facts: object) -> None:
        """Add these facts, and replace the file: durably, or a power cut could leave it empty. For several threads."""
        with self._lock:
            self._facts |= facts
            replace_file(f"{self.directory}/{RUN}", json.dumps(self._facts, indent=1), durable=True)
