"""The job directory: the files of one attempt. Format: docs/reference/record.md.

The supervisor writes ``spec.json`` and ``command.sh`` while the job starts, and renames ``verdict.json`` into place at
the end: the only end marker.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from ..kernel.failpoints import reached
from ..spec import words
from ..spec.job import RECORD_SCHEMA, LaunchSpec
from ..spec.units import show_bytes, show_seconds
from ..spec.verdict import Verdict
from .codec import as_json, plain, verdict_json
from .identity import start_time
from .jsonfile import COMMAND, EVENTS, SPEC, STDERR, STDOUT, VERDICT, begin_to_write, on_its_way, to_disk, write_file

_PLAIN = (
    *("name", "rule", "attempt", "retry", "retry_of", "submitted", "command", "how", "cpu_mode"),
    *("runtime", "runtime_id", "backend", "workdir", "scratch_base", "inputs", "outputs", "logs"),
    *("declared_at", "by_default", "threads_asked", "slurm_job"),
)
"""Fields of a specification that ``spec.json`` has by their names, as they are."""


def now() -> str:
    """Return the time in the format of all records: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat()


class JobDirectory:
    """The record of one attempt, while Forge writes it."""

    def __init__(self, spec: LaunchSpec) -> None:
        """Make the directory, and open the streams for the supervisor.

        Raises:
            OSError: if the directory cannot be written.
        """
        self.path = spec.job_dir
        self._spec = spec
        self.started = now()
        self._begin = time.monotonic()
        os.makedirs(self.path)
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        self.stdout = os.open(f"{self.path}/{STDOUT}", flags, 0o644)
        try:
            self.stderr = os.open(f"{self.path}/{STDERR}", flags, 0o644)
        except OSError:
            os.close(self.stdout)
            raise
        self._cpu = time.process_time()
        self._events: list[str] = []
        self.mark("created", **_before(spec, self._begin))
        reached("created")

    def describe(self, pid: int | None = None, staging: Mapping[str, str] | None = None) -> None:
        """Write ``spec.json`` and ``command.sh``.

        Args:
            pid: the job's process on the host, by which others find the cgroup of a running job.
            staging: for directories in which the job writes, where its files are while it runs.

        Raises:
            OSError: if they cannot be written.
        """
        process = None if pid is None else _identity(pid)
        about = self._spec_json() | {"process": process, "staging": dict(staging or {})}
        write_file(f"{self.path}/{SPEC}", json.dumps(about, ensure_ascii=False))
        write_file(f"{self.path}/{COMMAND}", _script(self._spec), mode=0o755)
        reached("described")

    def complete(self) -> None:
        """Write what :meth:`describe` could not write: there was no space."""
        if not all(os.path.exists(f"{self.path}/{name}") for name in (SPEC, COMMAND)):
            self.describe()

    def _spec_json(self) -> dict[str, object]:
        spec = self._spec
        return {
            "schema": RECORD_SCHEMA,
            **{name: getattr(spec, name) for name in _PLAIN},
            "wildcards": dict(spec.wildcards),
            "created": self.started,
            "limits": spec.limits.as_json(),
            "isolation": plain(spec.isolation),
            "environment": dict(spec.environment),
            "layers": spec.files.layers,
            "sandbox": as_json(spec),
        }

    def seconds(self) -> float:
        """Return the time since the start."""
        return round(time.monotonic() - self._begin, 6)

    def mark(self, name: str, **data: object) -> None:
        """Note an event with the time since the start; it stays in memory until :meth:`finish`."""
        self._events.append(self._event(name, data))

    def _event(self, name: str, data: Mapping[str, object]) -> str:
        if not data:  # most have none, and json.dumps() takes ten times as long
            return f'{{"schema": {RECORD_SCHEMA}, "event": "{name}", "seconds": {self.seconds()}}}'
        return json.dumps({"schema": RECORD_SCHEMA, "event": name, "seconds": self.seconds(), **data})

    def event(self, name: str, **data: object) -> None:
        """Note an event at which a test can kill this process: see :mod:`..kernel.failpoints`."""
        self.mark(name, **data)
        reached(name)

    def append_event(self, name: str, **data: object) -> None:
        """Note an event after :meth:`finish`."""
        fd = os.open(f"{self.path}/{EVENTS}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(fd, f"{self._event(name, data)}\n".encode())
        finally:
            os.close(fd)

    def reported(self, recorded_seconds: float) -> None:
        """Note that the verdict was reported, and what this process has used for the attempt.

        Args:
            recorded_seconds: when the record was written: :meth:`seconds`.

        Raises:
            OSError: if the disk is full, for example.
        """
        used = round(time.process_time() - self._cpu, 6)
        self.append_event("reported", recorded_seconds=recorded_seconds, cpu_seconds=used)

    def finish(self, verdict: Verdict) -> None:
        """Write the events, then ``verdict.json`` in one step.

        Raises:
            OSError: if the disk is full, for example; then there is no verdict.
        """
        self.event("ended", outcome=str(verdict.outcome))
        write_file(f"{self.path}/{EVENTS}", "\n".join(self._events) + "\n")
        write_verdict(self._spec, verdict)

    def begin_to_keep(self) -> None:
        """Start to write the files of a long job to the disk, so that they name it after a crash of the host.

        Nobody waits for the disk here.

        Raises:
            OSError: if the files cannot be opened.
        """
        self._send_to_disk(SPEC, COMMAND)

    def keep(self) -> None:
        """Write the record to the disk: a crash of the host would leave empty files of the last half minute.

        The supervisor calls it after the report: nobody has to wait for it. It waits only for the verdict, which takes
        two flushes of the disk instead of seven; the other files are then on the disk too where the file system writes
        data before the names that lead to it (ext4: data=ordered).

        Raises:
            OSError: if the disk is full, for example.
        """
        for fd in (self.stdout, self.stderr):
            begin_to_write(fd)
        self._send_to_disk(SPEC, COMMAND, EVENTS)
        to_disk(f"{self.path}/{VERDICT}")
        to_disk(self.path)

    def _send_to_disk(self, *names: str) -> None:
        for name in names:
            with suppress(FileNotFoundError):  # the disk was full
                on_its_way(f"{self.path}/{name}")

    def close(self) -> None:
        """Close the streams."""
        os.close(self.stdout)
        os.close(self.stderr)


def write_verdict(spec: LaunchSpec, verdict: Verdict) -> None:
    """Rename ``verdict.json`` into place.

    Raises:
        OSError: if it cannot be written.
    """
    temporary = f"{spec.job_dir}/.{VERDICT}.{os.getpid()}"
    write_file(temporary, json.dumps(verdict_json(spec, verdict), ensure_ascii=False))
    reached("verdict")
    os.rename(temporary, f"{spec.job_dir}/{VERDICT}")


def record_unseen(spec: LaunchSpec, verdict: Verdict) -> Verdict:
    """Write the record of an attempt that no supervisor has recorded, into its directory or a new one.

    Returns:
        The verdict, with a note if it could not be written: it counts all the same.
    """
    try:
        with suppress(FileExistsError):
            record = JobDirectory(spec)
            record.close()
            record.describe()
            record.finish(verdict)
            return verdict
        write_verdict(spec, verdict)
    except OSError as error:
        return replace(verdict, notes=(*verdict.notes, words.UNRECORDED.format(error.strerror)))
    return verdict


def _before(spec: LaunchSpec, begin: float) -> dict[str, float]:
    """Return the time that the attempt took before it had a directory: none is known of one that another host began."""
    if not spec.planned or spec.backend != "local":
        return {}
    return {"plan_seconds": round(spec.planned - spec.asked, 6), "dispatch_seconds": round(begin - spec.planned, 6)}


def _identity(pid: int) -> dict[str, int] | None:
    try:
        return {"pid": pid, "start_time": start_time(pid)}
    except OSError:  # the process has ended
        return None


_SCRATCH = """export TMPDIR="${TMPDIR:-/tmp}"
export TMP="$TMPDIR" TEMP="$TMPDIR" TEMPDIR="$TMPDIR" FORGE_SCRATCH="$TMPDIR"
"""


def _script(spec: LaunchSpec) -> str:
    variables = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in spec.environment.items())
    limits = spec.limits
    memory = show_bytes(limits.memory_bytes) if limits.memory_bytes else "of the run"
    wall = f"at most {show_seconds(limits.wall_seconds)}" if limits.wall_seconds else "no time limit"
    return (
        f"#!/usr/bin/env bash\n# Rule {spec.rule}, attempt {spec.attempt}: the same command by hand, "
        f"without limits and sandbox.\n# Under Forge: memory {memory}, {limits.cpus} CPU(s), {wall}.\n"
        f"cd {shlex.quote(spec.workdir)} || exit\n{variables}{_SCRATCH}set -euo pipefail\n{spec.by_hand}\n"
    )
