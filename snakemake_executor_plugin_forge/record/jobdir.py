"""The job directory: the files of one attempt. Format: docs/reference/record.md.

``spec.json`` and ``command.sh`` are written while the job starts, ``verdict.json`` is renamed into place at the end
and is the only end marker.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from contextlib import suppress
from datetime import UTC, datetime

from ..faults import reached
from ..model import RECORD_SCHEMA, LaunchSpec, Verdict
from .identity import start_time
from .jsonfile import on_its_way, to_disk, write_file
from .layout import COMMAND, EVENTS, SPEC, STDERR, STDOUT, VERDICT
from .sandbox import as_json


def now() -> str:
    """The time as in all records: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat()


class JobDirectory:
    """Writes the record of one attempt."""

    def __init__(self, spec: LaunchSpec) -> None:
        """Make the directory; the streams are open for the supervisor.

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
        self._events = [self._event("created")]
        reached("created")

    def describe(self, pid: int | None = None) -> None:
        """Write ``spec.json`` and ``command.sh``.

        Args:
            pid: of the job's process on the host, by which others find the cgroup of a running job.

        Raises:
            OSError: if they cannot be written.

        """
        process = None if pid is None else _identity(pid)
        write_file(f"{self.path}/{SPEC}", json.dumps(self._spec_json() | {"process": process}, ensure_ascii=False))
        write_file(f"{self.path}/{COMMAND}", _script(self._spec), mode=0o755)
        reached("described")

    def _spec_json(self) -> dict[str, object]:
        spec = self._spec
        return {
            "schema": RECORD_SCHEMA,
            "name": spec.name,
            "rule": spec.rule,
            "wildcards": dict(spec.wildcards),
            "attempt": spec.attempt,
            "retry": spec.retry,
            "retry_of": spec.retry_of,
            "command": spec.command,
            "how": spec.how,
            "created": self.started,
            "limits": spec.limits.as_json(),
            "cpu_mode": str(spec.cpu_mode),
            "isolation": spec.isolation.as_json(),
            "environment": dict(spec.environment),
            "runtime": spec.runtime,
            "runtime_id": spec.runtime_id,
            "backend": spec.backend,
            "workdir": spec.workdir,
            "scratch_base": spec.scratch_base,
            "inputs": list(spec.inputs),
            "outputs": list(spec.outputs),
            "layers": list(spec.files.layers),
            "sandbox": as_json(spec),
            "logs": list(spec.logs),
        }

    def _event(self, name: str, **data: object) -> str:
        seconds = round(time.monotonic() - self._begin, 6)
        return json.dumps({"schema": RECORD_SCHEMA, "event": name, "seconds": seconds, **data})

    def event(self, name: str, **data: object) -> None:
        """Note what happened, with the time since the start. Kept in memory until :meth:`finish`."""
        self._events.append(self._event(name, **data))
        reached(name)

    def append_event(self, name: str, **data: object) -> None:
        """Note what happened after :meth:`finish`."""
        with open(f"{self.path}/{EVENTS}", "a", encoding="utf-8") as file:
            file.write(self._event(name, **data) + "\n")

    def finish(self, verdict: Verdict) -> None:
        """Write the events, then ``verdict.json`` in one step.

        Raises:
            OSError: if the disk is full, for example; no half verdict is left then.

        """
        self.event("ended", outcome=str(verdict.outcome))
        write_file(f"{self.path}/{EVENTS}", "\n".join(self._events) + "\n")
        write_verdict(self._spec, verdict)

    def begin_to_keep(self) -> None:
        """Have a host that ends while the job runs know afterwards which job it was.

        Nobody waits for the disk here. To be called of jobs that take their time.

        Raises:
            OSError: if the files cannot be opened.

        """
        for name in (SPEC, COMMAND):
            with suppress(FileNotFoundError):  # the disk was full when it was to be written
                on_its_way(f"{self.path}/{name}")

    def keep(self) -> None:
        """Have it survive the sudden end of the host: else the last half minute would be empty files.

        To be called after the report, since nobody has to wait for it. The verdict is waited for alone, which is two
        flushes of the disk instead of seven; what goes before it is then on the disk as well where data is written
        before the names that lead to it (ext4: data=ordered).

        Raises:
            OSError: if the disk is full, for example.

        """
        for name in (STDOUT, STDERR, SPEC, COMMAND, EVENTS):
            with suppress(FileNotFoundError):  # the disk was full when it was to be written
                on_its_way(f"{self.path}/{name}")
        to_disk(f"{self.path}/{VERDICT}")
        to_disk(self.path)

    def close(self) -> None:
        """Close the streams."""
        os.close(self.stdout)
        os.close(self.stderr)


def write_verdict(spec: LaunchSpec, verdict: Verdict) -> None:
    """Rename ``verdict.json`` into place; also for an attempt whose supervisor died."""
    temporary = f"{spec.job_dir}/.{VERDICT}.{os.getpid()}"
    write_file(temporary, json.dumps(verdict_json(spec, verdict), ensure_ascii=False))
    reached("verdict")
    os.rename(temporary, f"{spec.job_dir}/{VERDICT}")


def verdict_json(spec: LaunchSpec, verdict: Verdict) -> dict[str, object]:
    """The object that ``snakemake-forge jobs --json`` lists, and more."""
    return {
        "schema": RECORD_SCHEMA,
        "rule": spec.rule,
        "wildcards": dict(spec.wildcards),
        "attempt": spec.attempt,
        "retry": spec.retry,
        "retry_of": spec.retry_of,
        "outcome": str(verdict.outcome),
        "reason": verdict.reason,
        "remedy": verdict.remedy,
        "evidence": dict(verdict.evidence),
        "exit_code": verdict.exit_code,
        "signal": verdict.signal,
        "started": verdict.started,
        "seconds": round(verdict.seconds, 6),
        "limits": spec.limits.as_json(),
        "usage": verdict.usage.as_json(),
        "isolation": spec.isolation.as_json(),
        "runtime": spec.runtime,
        "backend": spec.backend,
        "how": spec.how,
        "undeclared_writes": list(verdict.undeclared_writes),
        "undeclared_reads": None if verdict.undeclared_reads is None else list(verdict.undeclared_reads),
        "outputs": [dict(output) for output in verdict.outputs],
        "notes": list(verdict.notes),
        "staged": verdict.staged,
        "adopted": None,  # these two are filled in by whoever decides over what is staged: staged.py
        "discarded": None,
        "directory": spec.job_dir,
    }


def _identity(pid: int) -> dict[str, int] | None:
    try:
        return {"pid": pid, "start_time": start_time(pid)}
    except OSError:  # it is over already
        return None


def _script(spec: LaunchSpec) -> str:
    variables = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in spec.environment.items())
    limits = spec.limits
    return (
        f"#!/usr/bin/env bash\n# Rule {spec.rule}, attempt {spec.attempt}: the same command by hand, "
        f"without limits and sandbox.\n# Under Forge: memory {limits.memory_bytes or 'of the run'}, "
        f"{limits.cpus} CPU(s), {limits.wall_seconds or 'unlimited'} s.\n"
        f"cd {shlex.quote(spec.workdir)} || exit\n{variables}set -euo pipefail\n{spec.by_hand}\n"
    )
